"""Telling people of alerts by mail, chat, webhooks or desktop, from a thread that training never waits for."""

import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sapflow.errors import InputError, MissingExtraError
from sapflow.telemetry.events import ActionTaken, Alert
from sapflow.telemetry.resuming import NOTIFY, WhatIsNew
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Severity

if TYPE_CHECKING:
    from apprise import NotifyBase

log = logging.getLogger("sapflow.notify")

Outcome = Callable[[bool, str], None]
"""Told what came of an alert: whether every service took it, and in words."""

QUEUE_LIMIT = 256
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 5.0
NOTIFYING_SECONDS = 5.0  # that alerts have to get away when the training is over

# A rule file may come from a stranger, who is not to have other variables sent to a place of their choosing.
PREFIX = "SAPFLOW_"
VARIABLE = re.compile(r"\$\{([^}]*)\}")
# What these say of a failure is taken into the outcome; in their own lines secrets may stand.
LOGGERS = ("apprise", "urllib3.connectionpool")


@dataclass(frozen=True, eq=False)
class _Message:
    alert: Alert
    env_id: int
    run_id: str
    on_outcome: Outcome


class EnvNotifier:
    """A notifier as an env has it: what came of an alert it says in the stream, aside, since no run determines it.

    An alert goes by the number of its ALERT_RAISED. A resumed env raises again what it raised after its checkpoint, by
    the same numbers; of those, it passes over what the journal has an outcome of.
    """

    def __init__(self, notifier: "Notifier", stream: EventStream, known: WhatIsNew | None) -> None:
        self._notifier, self._stream, self._known = notifier, stream, known

    def notify(self, epoch: int, sequence: int, alert: Alert) -> None:
        """Have an alert sent that was raised in this epoch, and with this number; unless people were told before."""

        def say(done: bool, outcome: str) -> None:
            self._stream.emit_aside(ActionTaken(epoch=epoch, alert=alert, action=NOTIFY, done=done, outcome=outcome))

        if self._known is None or not self._known.told(self._stream.env_id, sequence):
            env_id = self._stream.env_id
            assert env_id is not None
            self._notifier.notify(alert, env_id, self._stream.run_id, say)

    def catch_up(self) -> None:
        """Have sent what was raised before the env goes on, and of which the journal has no outcome."""
        untold = self._known.untold if self._known is not None else {}
        for (env_id, sequence), raised in untold.items():
            if env_id == self._stream.env_id and sequence < self._stream.next_sequence:
                self.notify(raised.epoch, sequence, raised.alert)


class Notifier:
    """Sends alerts to every service, one after the other; never blocks, never raises.

    A service that is down, slow or unwilling costs its own time limits, in the notifier's thread; an alert that finds
    the queue full is not sent. The first failure is logged, all are counted.

    Args:
        urls: of services, as apprise reads them; `${SAPFLOW_NAME}` in one stands for that environment variable.
        known: what the journal had already, where the run was resumed.

    Attributes:
        sent: alerts that every service took.
        failed: alerts that some service did not take, or that were not sent for want of room or time.

    Raises:
        InputError: a URL is none, or its variable is not set or of another name.
        MissingExtraError: apprise is not installed.
    """

    def __init__(self, urls: Iterable[str], known: WhatIsNew | None = None) -> None:
        self._known = known
        self.sent = 0
        self.failed = 0
        self._secrets: set[str] = set()
        self._services = [self._service(number, url) for number, url in enumerate(urls, start=1)]
        self._queue: deque[_Message] = deque()
        self._sending: _Message | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sapflow-notify", daemon=True)
        self._thread.start()

    def notify(self, alert: Alert, env_id: int, run_id: str, on_outcome: Outcome) -> None:
        """Have an alert sent.

        Args:
            alert: that was raised.
            env_id: of its env.
            run_id: of its run.
            on_outcome: called once, from the notifier's thread; or from here, if the alert is not going to be sent.
        """
        message = _Message(alert, env_id, run_id, on_outcome)
        with self._changed:
            refusal = self._refusal()
            if not refusal:
                self._queue.append(message)
                self._changed.notify_all()
        if refusal:
            self._conclude(message, False, refusal)

    def of_env(self, stream: EventStream) -> EnvNotifier:
        """The notifier of the env of this stream."""
        return EnvNotifier(self, stream, self._known)

    def close(self, seconds: float) -> None:
        """Send what waits, for at most so long; what has not been sent by then counts as failed, and is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            unsent = [*filter(None, [self._sending]), *self._queue]
            self._queue.clear()
            self._sending = None
        for message in unsent:
            self._conclude(message, False, f"not sent within {seconds:g} s of the end")

    def _refusal(self) -> str:
        """Why no further alert is going to be sent; empty if one is."""
        if self._closing:
            return "not sent: the run is over"
        return f"not sent: {QUEUE_LIMIT} alerts wait already" if len(self._queue) >= QUEUE_LIMIT else ""

    def _run(self) -> None:
        while (message := self._next()) is not None:
            problems = [problem for service in self._services if (problem := self._send(service, message))]
            with self._changed:
                given_up, self._sending = self._sending is not message, None
            if not given_up:
                self._conclude(message, not problems, "; ".join(problems) or "sent")

    def _next(self) -> _Message | None:
        """The next alert, waited for; None when the notifier is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._sending = self._queue.popleft() if self._queue else None
            return self._sending

    def _send(self, service: "NotifyBase", message: _Message) -> str:
        """What went wrong, without secrets; empty if nothing did."""
        from apprise import NotifyType

        critical = message.alert.severity is Severity.CRITICAL
        with _overheard() as said:
            try:
                done = service.notify(
                    title=f"Sapflow {message.alert.severity}: {message.alert.rule}",
                    body=_body(message),
                    notify_type=NotifyType.FAILURE if critical else NotifyType.WARNING,
                )
            except Exception as error:  # a plugin is somebody else's code
                done, said = False, [type(error).__name__]
        if done:
            return ""
        reason = said[-1] if said else "no reason given"
        for secret in sorted(self._secrets, key=len, reverse=True):
            reason = reason.replace(secret, "***")
        return f"{service.service_name}: {reason}"

    def _conclude(self, message: _Message, done: bool, detail: str) -> None:
        with self._changed:
            self.sent += done
            self.failed += not done
            first = not done and self.failed == 1
        if first:
            log.warning("an alert reached nobody, or not everybody: %s (said once; the events have all)", detail)
        try:
            message.on_outcome(done, detail)
        except Exception:  # training comes first, and so do the alerts behind this one
            log.exception("the outcome of a notification could not be said")

    def _service(self, number: int, url: str) -> "NotifyBase":
        try:
            from apprise import Apprise, AppriseAsset
        except ModuleNotFoundError as error:
            raise MissingExtraError("a rule that notifies", "notify") from error
        full = self._expanded(number, url)
        with _overheard():  # it may quote the URL
            service = Apprise.instantiate(full, asset=AppriseAsset(async_mode=False, storage_mode="memory"))
        if service is None:
            raise InputError(f"notification url {number} is none that apprise knows: see its list of services")
        service.socket_connect_timeout = min(service.socket_connect_timeout, SECONDS_TO_CONNECT)
        service.socket_read_timeout = min(service.socket_read_timeout, SECONDS_TO_ANSWER)
        return service

    def _expanded(self, number: int, url: str) -> str:
        """The URL with its variables filled in: quoted, unless a variable is all of it."""

        def value(match: re.Match[str]) -> str:
            text = _variable(match[1], number, os.environ)
            quoted = text if match[0] == url else quote(text, safe="")
            self._secrets |= {text, quoted}
            return quoted

        return VARIABLE.sub(value, url)


def _variable(name: str, number: int, environment: Mapping[str, str]) -> str:
    where = f"notification url {number}: the variable {name[:80]!r}"
    if not name.startswith(PREFIX):
        raise InputError(f"{where} is not for rule files: name it {PREFIX}…")
    if not environment.get(name):
        raise InputError(f"{where} is not set: export it")
    return environment[name]


def _body(message: _Message) -> str:
    alert = message.alert
    lines = (
        f"run {message.run_id}, env {message.env_id}",
        f"slot {alert.slot_id}, seed {alert.seed_id} ({alert.blueprint_id})",
        f"value {alert.value:.3g} since epoch {alert.since_epoch}: {alert.evidence}",
        f"asked for: {', '.join(alert.actions)}",
    )
    return "\n".join(lines)


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What this thread's calls want to log as warnings or worse; none of it is logged, what others log is."""
    said: list[str] = []
    this = threading.get_ident()

    def ours(record: logging.LogRecord) -> bool:
        if record.thread != this:
            return True
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    loggers: list[Any] = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(ours)
    try:
        yield said
    finally:
        for logger in loggers:
            logger.removeFilter(ours)
