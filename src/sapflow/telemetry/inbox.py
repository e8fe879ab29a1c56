"""The trainer's side of the mailbox: each request gets one answer, at one moment of the run, resumed or not.

What a person asks for is not determined by the run, but all that follows from it is. So the answer is numbered among
the events of its env, before those of what it sets off, and the journal is the record of what was asked when. A trainer
that lives through an epoch again carries out again, at its end, what the journal says was asked there; it says the same
again, number by number, and none of it is written twice. Requests that wait are looked at only where the journal knows
nothing further of the env: earlier, they would change what has been written already.

A file is taken away once its answer is acknowledged. A trainer that is killed before that either finds the answer in
the journal, and just takes the file away, or does not, and then nothing came of the request: it is answered now. Where
power fails, an answer that is lost with the newest transactions is lost with everything that followed from it.

An env that has ended, or that never was, says nothing more that is determined: such a request is refused aside.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sapflow.errors import InputError
from sapflow.telemetry.events import RequestAnswered
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.resuming import WhatIsNew
from sapflow.telemetry.stream import EventStream

log = logging.getLogger("sapflow.requests")

SETTLING_SECONDS = 2.0  # that an epoch's end waits for the journal, if something was answered
RETRY_SECONDS = 0.05


class Inbox:
    """The requests of a run, for its trainer; nothing that is in the folder, or that fails there, is raised.

    Args:
        run_dir: of the run.
        flush: waits so many seconds until what was emitted is acknowledged, and tells whether it is.
        known: what the journal had already, where the run was resumed.
    """

    def __init__(self, run_dir: Path, flush: Callable[[float], bool], known: WhatIsNew | None = None) -> None:
        self._mailbox = Mailbox(run_dir)
        self._flush = flush
        self._last_sequence: Mapping[int | None, int] = known.last_sequence if known is not None else {}
        self._again: defaultdict[tuple[int | None, int], list[Request]] = defaultdict(list)
        self._answered: set[str] = set()
        self._unsettled: set[str] = set()
        self._logged: set[str] = set()
        for env_id, answer, numbered in known.answers if known is not None else ():
            self._mark(answer.request_id)
            if numbered and env_id is not None:
                self._again[env_id, answer.epoch].append(_request_of(env_id, answer))
        try:
            self._mailbox.open()
        except OSError as error:
            self._log_once(f"nobody can ask anything of this run: {self._mailbox.folder}: {error.strerror}")

    def again(self, stream: EventStream, epoch: int) -> list[Request]:
        """What was asked of the stream's env at the end of this epoch, when it was lived through before."""
        return self._again.pop((stream.env_id, epoch), []) if stream.env_id is not None else []

    def new(self, stream: EventStream) -> list[Request]:
        """What is asked of the stream's env now."""
        if stream.next_sequence <= self._last_sequence.get(stream.env_id, -1):
            return []
        return [request for request in self._waiting() if request.env_id == stream.env_id]

    def answered(self, *requests: Request) -> None:
        """These were answered: take them away, once the journal has it."""
        for request in requests:
            self._mark(request.request_id)
        self._settle(SETTLING_SECONDS)

    def refuse_others(
        self, epoch: int, living: Collection[int], run: EventStream, envs: Mapping[int, EventStream]
    ) -> None:
        """Refuse, after `epoch` epochs, what is asked of envs that do not live; said by the env, or else by the run."""
        others = [request for request in self._waiting() if request.env_id not in living]
        for request in others:
            env = envs.get(request.env_id)
            outcome = f"there is no env {request.env_id}" if env is None else "the env has ended"
            (env or run).emit_aside(answer(request, epoch, done=False, outcome=outcome))
        if others:
            self.answered(*others)

    def _waiting(self) -> list[Request]:
        if self._unsettled:
            self._settle(RETRY_SECONDS)
        try:
            pending = self._mailbox.pending()
        except InputError as error:
            self._log_once(str(error))
            return []
        for cause, count in self._mailbox.refused.items():
            self._log_once(f"{self._mailbox.folder}: what is no request is passed over: {cause}", f" ({count} files)")
        # One that is there again, or still, since it could not be removed, is not answered again.
        self._unsettled.update(self._answered.intersection(request.request_id for request in pending))
        return [request for request in pending if request.request_id not in self._answered]

    def _mark(self, request_id: str) -> None:
        self._answered.add(request_id)
        self._unsettled.add(request_id)

    def _settle(self, seconds: float) -> None:
        if not self._flush(seconds):
            return
        for request_id in list(self._unsettled):
            try:
                self._mailbox.remove(request_id)
            except OSError as error:
                self._log_once(f"cannot remove answered requests from {self._mailbox.folder}: {error.strerror}")
                return
            self._unsettled.discard(request_id)

    def _log_once(self, what: str, more: str = "") -> None:
        if what not in self._logged:
            self._logged.add(what)
            log.warning("%s%s; training goes on", what, more)


def answer(request: Request, epoch: int, *, done: bool, outcome: str, blueprint_id: str = "") -> RequestAnswered:
    """What is said of a request."""
    return RequestAnswered(
        epoch=epoch,
        slot_id=request.slot_id,
        seed_id=request.seed_id,
        blueprint_id=blueprint_id,
        request_id=request.request_id,
        action=request.action,
        done=done,
        outcome=outcome,
        by=request.by,
        asked_at=request.asked_at,
    )


def _request_of(env_id: int, answer: RequestAnswered) -> Request:
    """What was asked, from what was said of it."""
    return Request(
        request_id=answer.request_id,
        env_id=env_id,
        action=answer.action,  # type: ignore[arg-type]  # it was one when it was answered
        slot_id=answer.slot_id,
        seed_id=answer.seed_id,
        asked_at=answer.asked_at,
        by=answer.by,
    )
