"""Writing a run down: a bounded queue, one thread, one SQLite file; telemetry that never blocks or breaks training.

What is promised. An event is *acknowledged* when its transaction is committed (`flush`, `report`). Acknowledged events
survive the death of the process, SIGKILL included. Against loss of power or a crash of the machine the file stays
consistent (WAL, synchronous=NORMAL), but the transactions since the last checkpoint may be missing; `close` makes a
finished run durable and leaves one plain file, which opens from a read-only directory too.

When the journal cannot be written (disk full, file locked) the training goes on: the writer keeps its batch and tries
again, the queue fills, and what finds no room is dropped and counted.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from sapflow.telemetry import codec
from sapflow.telemetry.events import GradientSampled, TelemetryEvent
from sapflow.telemetry.journal_layout import DROPPED_EVENTS, DROPPED_SAMPLES, INSERT_EVENT, SELECT_DROPPED, SET_META
from sapflow.telemetry.journal_opening import create, reopen
from sapflow.telemetry.run_directory import JOURNAL_NAME, network_warning

LOGGER = logging.getLogger("sapflow.journal")

BATCH_EVENTS = 1_000
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 2.0
CLOSING_SECONDS = 2.0  # what the last transaction and the checkpoint may take beyond the caller's timeout

# What is the fault of one event, not of the file: such an event is dropped and its batch goes on without it.
UNWRITABLE = (
    AttributeError, TypeError, ValueError, OverflowError, RecursionError,
    sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError,
)  # fmt: skip


class JournalReport(Struct, frozen=True):
    """How the writing went: events committed and dropped, transactions that failed, and the last error, if any."""

    acknowledged: int
    dropped_events: int
    dropped_samples: int
    write_failures: int
    last_error: str | None


class Journal:
    """The sink that keeps events in `run_dir`/journal.sqlite; the only writer of that file.

    The queue holds `queue_size` events. Samples find room only while it is at most half full, so that they are the
    first to go; other events while there is any. Every drop is counted.

    Args:
        run_dir: that is to have the journal.
        resume: go on with the one that is there, its counts of drops included.
        queue_size: in events.

    Raises:
        RunDirectoryError: there is a journal already (or none, to `resume`; or it was rolled and removed), or the file
            cannot be made or written.
    """

    def __init__(self, run_dir: Path, *, resume: bool = False, queue_size: int = 65_536) -> None:
        self.path = run_dir / JOURNAL_NAME
        if warning := network_warning(run_dir):
            LOGGER.warning(warning)
        self._connection = reopen(self.path) if resume else create(self.path)
        self._queue_size = queue_size
        self._queue: deque[TelemetryEvent] = deque()
        # Guards all that follows. Reentrant, since a signal handler may emit while its thread emits.
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._progressed = threading.Condition(self._lock)
        self._closed = False
        self._finished = False
        self._accepted = 0
        self._settled = 0  # of those accepted: committed, or dropped as unwritable
        self._acknowledged = 0
        self._dropped: Counter[str] = Counter(dict(self._connection.execute(SELECT_DROPPED)) if resume else {})
        self._write_failures = 0
        self._last_error: str | None = None
        self._give_up = threading.Event()
        # Known to the writer alone.
        self._recorded = self._dropped.copy()
        self._failures_in_a_row = 0
        self._unwritable_was_logged = False
        self._thread = threading.Thread(target=self._run, name="sapflow-journal", daemon=True)
        self._thread.start()

    def emit(self, event: TelemetryEvent) -> None:
        """Take the event, or drop and count it; never blocks and never raises, also after `close`."""
        kind = _kind(event)
        with self._lock:
            if self._closed or not self._has_room(kind):
                self._dropped[kind] += 1
                return
            self._queue.append(event)
            self._accepted += 1
            self._arrived.notify()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for what was emitted before; True when all of it is acknowledged.

        Events that were dropped, at the queue or as unwritable, are not waited for.
        """
        with self._lock:
            due = self._accepted
            self._progressed.wait_for(lambda: self._settled >= due or self._finished, timeout)
            return self._settled >= due

    def close(self, timeout: float = 5.0) -> JournalReport:
        """Write what is queued for up to `timeout` seconds, make it durable, and say how it went. Never raises.

        What cannot be written by then is dropped and counted. Closing again changes nothing.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            self._arrived.notify()
        self.flush(timeout)
        self._give_up.set()
        self._thread.join(max(deadline - time.monotonic(), 0.0) + CLOSING_SECONDS)
        return self.report()

    def report(self) -> JournalReport:
        """How the writing has gone so far."""
        with self._lock:
            return JournalReport(
                acknowledged=self._acknowledged,
                dropped_events=self._dropped[DROPPED_EVENTS],
                dropped_samples=self._dropped[DROPPED_SAMPLES],
                write_failures=self._write_failures,
                last_error=self._last_error,
            )

    def _has_room(self, kind: str) -> bool:
        if kind == DROPPED_SAMPLES:
            return 2 * len(self._queue) <= self._queue_size
        return len(self._queue) < self._queue_size

    # The writer's thread, from here on.

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._write(batch)
            self._finish()
        finally:
            self._connection.close()
            with self._lock:
                self._finished = True
                self._progressed.notify_all()

    def _take(self) -> list[TelemetryEvent]:
        """The next batch, waited for; empty when the journal is closed and everything was taken."""
        with self._lock:
            self._arrived.wait_for(lambda: self._queue or self._closed)
            return [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_EVENTS))]

    def _write(self, batch: list[TelemetryEvent]) -> None:
        """Commit the batch, trying again until it works or `close` has no more time."""
        pause = FIRST_RETRY_SECONDS
        while not self._commit(batch):
            if self._give_up.wait(pause):
                self._abandon(batch)
                return
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    def _commit(self, batch: list[TelemetryEvent]) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            unwritable = Counter(_kind(event) for event in batch if not self._insert(event))
            with self._lock:
                dropped = self._dropped + unwritable
            if dropped != self._recorded:
                self._connection.executemany(SET_META, dropped.items())
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            self._note_failure(error)
            return False
        self._recorded = dropped
        self._note_success(len(batch), unwritable)
        return True

    def _insert(self, event: TelemetryEvent) -> bool:
        try:
            body = codec.encode(event)
            row = (event.env_id, event.sequence, event.epoch, event.type.value, event.time, body)
            self._connection.execute(INSERT_EVENT, row)
        except UNWRITABLE as error:
            if not self._unwritable_was_logged:
                self._unwritable_was_logged = True
                LOGGER.error(
                    "an event cannot be written and is dropped, as others like it will be without a further line: %s "
                    "(%s: %s)", type(event.payload).__name__, type(error).__name__, error,
                )  # fmt: skip
            return False
        return True

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _note_failure(self, error: sqlite3.Error) -> None:
        with self._lock:
            self._write_failures += 1
            self._last_error = f"{error} ({error.sqlite_errorname})"
        if self._failures_in_a_row == 0:
            LOGGER.error(
                "cannot write %s: %s; training goes on, and events that find no room in the queue are dropped",
                self.path, self._last_error,
            )  # fmt: skip
        self._failures_in_a_row += 1

    def _note_success(self, taken: int, unwritable: Counter[str]) -> None:
        with self._lock:
            self._dropped += unwritable
            self._acknowledged += taken - unwritable.total()
            self._settled += taken
            self._progressed.notify_all()
            dropped = self._dropped.total()
        if self._failures_in_a_row:
            LOGGER.warning(
                "%s is written again after %d failed attempts; %d events dropped since the run began",
                self.path, self._failures_in_a_row, dropped,
            )  # fmt: skip
            self._failures_in_a_row = 0

    def _abandon(self, batch: Iterable[TelemetryEvent]) -> None:
        with self._lock:
            self._dropped.update(map(_kind, batch))
            self._dropped.update(map(_kind, self._queue))
            self._queue.clear()

    def _finish(self) -> None:
        """Leave one plain, durable file; with a reader at it, or with no room, what is committed stays in the WAL."""
        self._commit([])  # for the drops that are not yet recorded
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()


def _kind(event: TelemetryEvent) -> str:
    """Under which key the event is counted if it is dropped."""
    return DROPPED_SAMPLES if isinstance(event.payload, GradientSampled) else DROPPED_EVENTS
