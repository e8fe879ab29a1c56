"""Reading a run: follow its journal by cursor, look back by index; live, finished or killed, never writing to it."""

import sqlite3
from collections import Counter
from collections.abc import Generator
from contextlib import closing, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from sapflow.errors import JournalError, UnreadableEventError
from sapflow.telemetry import codec
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.journal_layout import APPLICATION_ID, DROPPED_EVENTS, DROPPED_SAMPLES, JOURNAL_VERSION
from sapflow.telemetry.run_directory import JOURNAL_NAME, network_warning, trainer_is_alive, wal_of
from sapflow.telemetry.vocabulary import EventType

# Journals come from strangers too: no single event and no single read may take the reader's memory.
MAX_EVENT_BYTES = 16 * 2**20
MAX_READ_BYTES = 64 * 2**20
BUSY_SECONDS = 0.25

# How SQLite says that it may not make the -shm and -wal files that it wants beside a journal.
NO_FILES_BESIDE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY_DIRECTORY})

LATEST_EPOCH = 2**63 - 1

# The size is -1 for what is no bytes; the body is None for what is not to be read.
_COLUMNS = f"""
    id,
    iif(typeof(body) = 'blob', length(body), -1),
    iif(typeof(body) = 'blob' AND length(body) <= {MAX_EVENT_BYTES}, body, NULL)
"""
SELECT_NEXT = f"SELECT {_COLUMNS} FROM events WHERE id > ? ORDER BY id"
SELECT_MOMENT = f"""
    SELECT {_COLUMNS} FROM events
    WHERE env = ? AND type = '{EventType.EPOCH_COMPLETED}' AND epoch <= ? ORDER BY epoch DESC, id DESC
"""
SELECT_STATUS = f"""
    SELECT
        EXISTS (SELECT 1 FROM events WHERE env IS NULL AND type = '{EventType.RUN_COMPLETED}'),
        (SELECT CAST(time AS REAL) FROM events ORDER BY id DESC LIMIT 1),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = '{DROPPED_EVENTS}'), 0),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = '{DROPPED_SAMPLES}'), 0)
"""
COUNT_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('events', 'meta')"


class RunState(StrEnum):
    """How a run stands; ENDED is cut off: not completed, and no trainer holds its directory."""

    LIVE = "LIVE"
    COMPLETED = "COMPLETED"
    ENDED = "ENDED"


class RunStatus(Struct, frozen=True, kw_only=True):
    """A run as a reader sees it now.

    `last_event_time` is in Unix seconds, None before the first event. `dropped_*` never reached the journal, `skipped`
    this reader could not read. `notice` is a line for the person who looks, or empty.
    """

    state: RunState
    last_event_time: float | None = None
    dropped_events: int = 0
    dropped_samples: int = 0
    skipped: int = 0
    notice: str = ""


class Source:
    """A reader of the run at `path`, a run directory or its journal; to be used from one thread.

    A live run whose journal is still to be made is waited for: it has no events yet. `skipped` counts, by cause, the
    events that could not be read.

    Raises:
        JournalError: there is no journal at `path`, it is damaged, or a newer Sapflow wrote it. Every method raises it
            when that shows only later.
    """

    def __init__(self, path: Path) -> None:
        self.path = _journal_at(path)
        self.run_dir = self.path.parent
        self.skipped: Counter[str] = Counter()
        self._notice = network_warning(self.run_dir)
        self._status = RunStatus(state=RunState.LIVE, notice=self._notice)  # until the journal tells more
        self._cursor = 0
        self._connection: sqlite3.Connection | None = None
        self._connected()

    def read(self, limit: int = 5_000) -> list[TelemetryEvent]:
        """The next events, at most `limit`, in the order they were written; empty when there is nothing new."""
        events: list[TelemetryEvent] = []
        taken = 0
        with closing(self._rows(SELECT_NEXT, self._cursor)) as rows:
            for row_id, size, body in rows:
                self._cursor = row_id
                try:
                    events.append(_event(size, body))
                except UnreadableEventError as error:
                    self.skipped[error.cause] += 1
                    continue
                taken += size
                if len(events) == limit or taken >= MAX_READ_BYTES:
                    break
        return events

    def moment(self, env_id: int, epoch: int | None = None) -> TelemetryEvent | None:
        """The env's last readable EPOCH_COMPLETED at or before `epoch` (None: of all), wherever the cursor stands."""
        with closing(self._rows(SELECT_MOMENT, env_id, LATEST_EPOCH if epoch is None else epoch)) as rows:
            for _, size, body in rows:
                with suppress(UnreadableEventError):
                    return _event(size, body)
        return None

    def status(self) -> RunStatus:
        """How the run stands now, which may be further than `read` has come."""
        # Asked before the journal is: a trainer that is gone by then has written all it ever will.
        alive = trainer_is_alive(self.run_dir)
        for completed, last_event_time, dropped_events, dropped_samples in self._rows(SELECT_STATUS):
            unfinished = RunState.LIVE if alive else RunState.ENDED
            self._status = RunStatus(
                state=RunState.COMPLETED if completed else unfinished,
                last_event_time=last_event_time,
                dropped_events=dropped_events,
                dropped_samples=dropped_samples,
                skipped=self.skipped.total(),
                notice=self._notice,
            )
        return self._status

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rows(self, sql: str, *parameters: int) -> Generator[tuple[Any, ...], None, None]:
        """What `sql` finds; nothing while the journal is still to be made, or is locked for the moment."""
        connection = self._connected()
        if connection is None:
            return
        try:
            with closing(connection.execute(sql, parameters)) as rows:
                yield from rows
        except sqlite3.Error as error:
            if not _is_busy(error):
                raise self._explained(error) from error

    def _connected(self) -> sqlite3.Connection | None:
        if self._connection is None and self._is_there():
            self._connection = self._connect()
        return self._connection

    def _is_there(self) -> bool:
        size = self._size()
        if size or trainer_is_alive(self.run_dir):
            return bool(size)
        if size == 0:
            raise JournalError(f"{self.path} is empty: its trainer was stopped before it wrote anything")
        raise JournalError(f"there is no journal at {self.path}: name a run directory, or the journal in it")

    def _size(self) -> int | None:
        """The journal's size in bytes; None where there is no such file."""
        try:
            return self.path.stat().st_size if self.path.is_file() else None
        except OSError as error:
            raise _no_access(self.path, error) from error

    def _connect(self) -> sqlite3.Connection | None:
        try:
            return self._open("mode=ro")
        except sqlite3.Error as error:
            if _is_busy(error):
                return None
            if error.sqlite_errorcode not in NO_FILES_BESIDE or trainer_is_alive(self.run_dir):
                raise self._explained(error) from error
        # In a read-only directory, and nobody writes: SQLite can do without locks and files beside the journal.
        try:
            return self._open("mode=ro&vfs=unix-none" if self._has_wal() else "mode=ro&immutable=1")
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _open(self, how: str) -> sqlite3.Connection:
        uri = f"{self.path.as_uri()}?{how}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # An exclusive reader keeps the index of the WAL in its own memory instead of a -shm file.
            if "unix-none" in how:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            self._verify(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _verify(self, connection: sqlite3.Connection) -> None:
        def number(sql: str) -> int:
            return int(connection.execute(sql).fetchone()[0])

        if number("PRAGMA application_id") != APPLICATION_ID:
            raise JournalError(f"{self.path} is a database of another program: name a run directory of Sapflow")
        version = number("PRAGMA user_version")
        if version > JOURNAL_VERSION:
            raise JournalError(
                f"{self.path} was written by a newer Sapflow (journal version {version}, this one reads "
                f"{JOURNAL_VERSION}): upgrade to read it"
            )
        if number(COUNT_TABLES) != 2:
            raise JournalError(f"{self.path} is damaged (it lacks its tables): restore it from a copy")
        # In this order: a WAL that is gone has been moved into the file before the file's size is asked for.
        claimed = number("PRAGMA page_count") * number("PRAGMA page_size")
        if not self._has_wal() and self.path.stat().st_size < claimed:
            raise JournalError(f"{self.path} is truncated: copy it again, whole")

    def _has_wal(self) -> bool:
        wal = wal_of(self.path)
        return wal.exists() and wal.stat().st_size > 0

    def _explained(self, error: sqlite3.Error) -> JournalError:
        match error.sqlite_errorcode & 0xFF:
            case sqlite3.SQLITE_NOTADB:
                return JournalError(f"{self.path} is no journal: name a run directory, or the journal in it")
            case sqlite3.SQLITE_CORRUPT:
                return JournalError(f"{self.path} is truncated or damaged ({error}): restore it from a copy")
            case _:
                return JournalError(f"{self.path} cannot be read ({error}): check the file and its permissions")


def _journal_at(path: Path) -> Path:
    try:
        return (path / JOURNAL_NAME if path.is_dir() else path).resolve()
    except OSError as error:
        raise _no_access(path, error) from error


def _no_access(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{path} cannot be read ({error.strerror}): check its permissions")


def _event(size: int, body: bytes | None) -> TelemetryEvent:
    if body is None:
        cause = "too large" if size > MAX_EVENT_BYTES else "malformed"
        raise UnreadableEventError(cause, f"{size} bytes")
    return codec.decode(body)


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
