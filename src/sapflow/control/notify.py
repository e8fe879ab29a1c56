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
from sapflow.telemetry.events import Alert
from sapflow.telemetry.vocabulary import Severity

if TYPE_CHECKING:
    from apprise import NotifyBase

log = logging.getLogger("sapflow.notify")

Outcome = Callable[[bool, str], None]
"""Told what came of an alert: whether every service took it, and in words."""

QUEUE_LIMIT = 256
REMEMBERED = 4096  # alerts that are not sent a second time
SENT_BEFORE = "not sent again: it was sent before"
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
    """A notifier as an env has it: it knows which env of which run its alerts are of."""

    def __init__(self, notifier: "Notifier", env_id: int, run_id: str) -> None:
        self._notifier, self._env_id, self._run_id = notifier, env_id, run_id

    def notify(self, alert: Alert, on_outcome: Outcome) -> None:
        """See `Notifier.notify`."""
        self._notifier.notify(alert, self._env_id, self._run_id, on_outcome)


class Notifier:
    """Sends alerts to every service, one after the other; never blocks, never raises.

    An alert (a rule, a seed, since an epoch of an env) is sent once. A service that is down, slow or unwilling costs
    its own time limits, in the notifier's thread; an alert that finds the queue full is not sent. The first failure is
    logged, all are counted.

    Args:
        urls: of services, as apprise reads them; `${SAPFLOW_NAME}` in one stands for that environment variable.

    Attributes:
        sent: alerts that every service took.
        failed: alerts that some service did not take, or that were not sent for want of room or time.

    Raises:
        InputError: a URL is none, or its variable is not set or of another name.
        MissingExtraError: apprise is not installed.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        self.sent = 0
        self.failed = 0
        self._secrets: set[str] = set()
        self._services = [self._service(number, url) for number, url in enumerate(urls, start=1)]
        self._queue: deque[_Message] = deque()
        self._sending: _Message | None = None
        self._taken: dict[tuple[object, ...], None] = {}  # in the order in which they came
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
            refusal = self._refusal(message)
            if not refusal:
                self._queue.append(message)
                self._changed.notify_all()
        if refusal:
            self._conclude(message, False, refusal)

    def of_env(self, env_id: int, run_id: str) -> EnvNotifier:
        """The notifier of one env."""
        return EnvNotifier(self, env_id, run_id)

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

    def _refusal(self, message: _Message) -> str:
        """Why the alert is not going to be sent, if it is not; else it is remembered."""
        alert = message.alert
        key = (message.run_id, message.env_id, alert.rule, alert.seed_id, alert.since_epoch)
        if self._closing:
            return "not sent: the run is over"
        if key in self._taken:
            return SENT_BEFORE
        if len(self._queue) >= QUEUE_LIMIT:
            return f"not sent: {QUEUE_LIMIT} alerts wait already"
        self._taken[key] = None
        if len(self._taken) > REMEMBERED:
            del self._taken[next(iter(self._taken))]
        return ""

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
            repeated = detail == SENT_BEFORE
            self.sent += done
            self.failed += not done and not repeated
            first = not done and not repeated and self.failed == 1
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
