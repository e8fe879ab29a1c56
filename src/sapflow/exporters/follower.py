"""Follows a run for one exporter: every event at least once, in bounded memory, whatever the backend does."""

import contextlib
import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sapflow.errors import BackendAwayError, ExporterRefusedError, JournalError, RunDirectoryError, SapflowError
from sapflow.exporters.exporter import Exporter
from sapflow.exporters.ledger import Ledger
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import RunState, Source

BATCH_EVENTS = 500
BATCH_BYTES = 2**20  # in the journal, and one event more
POLL_SECONDS = 2.0  # each look costs as much as many an event, and so does each request that it leads to
JOURNAL_POLL_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_ASKED_PAUSE_SECONDS = 300.0  # however long a backend asks to be left alone
CLOSING_SECONDS = 120.0
BREAKING_OFF_SECONDS = 2.0  # that a backend has when the follower is interrupted

log = logging.getLogger("sapflow.exporters")


class Follower:
    """One exporter at work on one run.

    The journal is the buffer: what a backend does not take now is read again later, so that one that is away costs
    neither memory nor events. `wait` is the pause between two tries and two looks; a test may replace it.

    Args:
        run_dir: that is followed.
        exporter: that takes the events; it is closed in the end.
        ledger: entered; says where to begin, and is told how far this has come.
        patience: seconds after the end of the run for which a backend that takes nothing is tried again.
    """

    def __init__(
        self,
        run_dir: Path,
        exporter: Exporter,
        ledger: Ledger,
        *,
        patience: float,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._run_dir = run_dir
        self._exporter = exporter
        self._ledger = ledger
        self._progress = ledger.progress
        self._patience = patience
        self._wait = wait
        self._dropping: Counter[str] = Counter()  # of the batch that is not done with yet
        self._bug_was_logged = False
        self._ledger_failed = False
        self._closing = False
        self._begins_by = 0.0  # until when a run that was cut off may go on

    def run(self, wait_for_run: float = 0.0) -> None:
        """Follow until the run is over and everything is handed over, or dropped and counted.

        Args:
            wait_for_run: seconds to wait for a run that is yet to begin, or to go on after it was cut off.

        Raises:
            JournalError: there is no such run, or its journal cannot be read.
            ExporterRefusedError: the backend wants a person to change something.
            SapflowError: the backend has been away for longer than `patience` after the end of the run, or the run
                directory is gone. What was not handed over is, when the follower is started again.
        """
        self._begins_by = time.monotonic() + wait_for_run
        try:
            with self._opened() as source:
                source.start_after(self._progress.cursor)
                self._note("following")
                while self._step(source):
                    pass
            self._note("closing")
            self._close(CLOSING_SECONDS)
            self._note("done")
        except BaseException as error:
            if not self._closing:
                with contextlib.suppress(SapflowError):
                    self._close(BREAKING_OFF_SECONDS)
            self._progress.error = str(error)
            with contextlib.suppress(SapflowError):
                self._note("stopped")
            raise

    def _opened(self) -> Source:
        while True:
            try:
                return Source(self._run_dir)
            except JournalError:
                if time.monotonic() > self._begins_by:
                    raise
            self._wait(JOURNAL_POLL_SECONDS)

    def _step(self, source: Source) -> bool:
        """Bring a batch, or wait for one; False when the run is over and there is none."""
        skipped = source.skipped.copy()
        over = self._is_over(source)  # asked first: then nothing comes behind what is read
        before = source.cursor
        events = source.read(BATCH_EVENTS, BATCH_BYTES)
        self._dropping = Counter({f"unreadable: {cause}": n for cause, n in (source.skipped - skipped).items()})
        if source.cursor == before:
            if over and source.at_end():
                return False
            self._wait(POLL_SECONDS)
            return True
        self._deliver(events, source)
        self._progress.cursor = source.cursor
        for cause, count in self._dropping.items():  # no sooner, or what is brought again would be counted again
            self._progress.dropped[cause] = self._progress.dropped.get(cause, 0) + count
        self._note("following")
        if not over and source.at_end():
            self._wait(POLL_SECONDS)
        return True

    def _deliver(self, events: Sequence[TelemetryEvent], source: Source) -> None:
        """Bring the events until they are taken; those at fault themselves are found by halving, and dropped."""
        if not events:
            return
        try:
            refused = self._bring(events, source)
        except (BackendAwayError, ExporterRefusedError):
            raise
        except Exception as error:  # the exporter is somebody else's code, and so is what it calls
            if len(events) > 1:
                self._deliver(events[: len(events) // 2], source)
                self._deliver(events[len(events) // 2 :], source)
                return
            self._note_bug(events[0], error)
            self._dropping[type(error).__name__] += 1
        else:
            self._progress.exported += len(events)
            self._dropping.update({what: count for what, count in refused.items() if count})

    def _bring(self, events: Sequence[TelemetryEvent], source: Source) -> Mapping[str, int]:
        pause, tries, give_up_at = FIRST_PAUSE_SECONDS, 0, math.inf
        while True:
            try:
                refused = dict(self._exporter.export(events) or {})  # a stranger's may be none
            except BackendAwayError as error:
                now = time.monotonic()
                if not self._is_over(source):  # perhaps it goes on after it was cut off
                    give_up_at = math.inf
                elif give_up_at == math.inf:
                    give_up_at = now + self._patience
                if now >= give_up_at:
                    raise
                tries += 1
                self._note_away(error, tries)
                self._wait(min(_jittered(pause, error.retry_after), give_up_at - now))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                if tries:
                    log.warning("%s: taken again, after %d tries", self._ledger.path.stem, tries)
                return refused

    def _is_over(self, source: Source) -> bool:
        state = source.status().state
        if state is RunState.LIVE:
            self._begins_by = 0.0  # it has begun: its end is the end
        return state is RunState.COMPLETED or (state is RunState.ENDED and time.monotonic() >= self._begins_by)

    def _close(self, seconds: float) -> None:
        """Close the exporter; one that hangs is left behind, in a thread that does not outlive the process."""
        failure: list[Exception] = []

        def close() -> None:
            try:
                self._exporter.close()
            except Exception as error:
                failure.append(error)

        self._closing = True
        thread = threading.Thread(target=close, name="sapflow-exporter-close", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise BackendAwayError(f"the backend was not done within {seconds:g} s of the end")
        if failure:
            raise SapflowError(f"the end went wrong: {failure[0]}") from failure[0]

    def _note_away(self, error: BackendAwayError, tries: int) -> None:
        if tries == 1:
            log.warning("%s: %s; it is tried again until it works, and nothing is lost", self._ledger.path.stem, error)
        self._progress.retries += 1
        self._progress.error = str(error)
        self._note("retrying")

    def _note_bug(self, event: TelemetryEvent, error: Exception) -> None:
        if not self._bug_was_logged:
            self._bug_was_logged = True
            log.error(
                "%s: a %s is not taken and is dropped, as others like it will be without a further line (%s: %s)",
                self._ledger.path.stem, event.type, type(error).__name__, error,
            )  # fmt: skip

    def _note(self, state: str) -> None:
        self._progress.state = state
        try:
            self._ledger.save()
        except FileNotFoundError as error:
            raise RunDirectoryError(f"the run directory {self._run_dir} is gone: there is nothing to follow") from error
        except OSError as error:  # a full disk: what was handed over comes again after a restart
            if not self._ledger_failed:
                log.warning("%s: cannot keep its place (%s)", self._ledger.path.stem, error)
            self._ledger_failed = True


def _jittered(pause: float, asked: float | None) -> float:
    """Between half of the pause and all of it, so that many followers do not come at once; not before it is asked."""
    own = pause * random.uniform(0.5, 1.0)
    return max(own, min(asked, LONGEST_ASKED_PAUSE_SECONDS)) if asked is not None else own
