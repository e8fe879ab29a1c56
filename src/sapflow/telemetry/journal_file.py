"""An open journal, for reading: found, checked, and asked in SQL, live or finished, never written to."""

import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sapflow.errors import JournalError
from sapflow.telemetry.journal_layout import APPLICATION_ID, JOURNAL_VERSION
from sapflow.telemetry.run_directory import JOURNAL_NAME, trainer_is_alive, wal_of

BUSY_SECONDS = 0.25

# How SQLite says that it may not make the -shm and -wal files that it wants beside a journal.
NO_FILES_BESIDE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY_DIRECTORY})

COUNT_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('events', 'meta')"


class JournalFile:
    """The journal at `path`, a run directory or the journal itself; one that a trainer is still to make is waited for.

    Raises:
        JournalError: there is none, it is damaged, or a newer Sapflow wrote it. Every method raises it when that shows
            only later.
    """

    def __init__(self, path: Path) -> None:
        self.path = _journal_at(path)
        self.run_dir = self.path.parent
        self._connection: sqlite3.Connection | None = None
        self._found: os.stat_result | None = None  # the file that was connected to
        self._nobody_writes = False  # is what it is read by
        self._connected()

    def rows(self, sql: str, *parameters: object) -> Generator[tuple[Any, ...], None, None]:
        """What `sql` finds; nothing while the journal is still to be made, or is locked for the moment."""
        connection = self._connected()
        if connection is None:
            return
        try:
            with closing(connection.execute(sql, parameters)) as rows:
                yield from rows
        except OverflowError:  # no column holds such a number, so nothing is found
            return
        except sqlite3.Error as error:
            if not _is_busy(error):
                raise self._explained(error) from error

    def answer(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        """The first column of all that `sql` finds.

        Raises:
            JournalError: also where the journal is still to be made, or is locked for the moment.
        """
        connection = self._connected()
        try:
            if connection is not None:
                return [row[0] for row in connection.execute(sql, parameters)]
        except sqlite3.Error as error:
            if not _is_busy(error):
                raise self._explained(error) from error
        raise JournalError(f"{self.path} is locked for the moment: it is looked at again")

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """Inside, all rows are those of one moment, whatever is written meanwhile."""
        connection = self._connected()
        if connection is None or connection.in_transaction:
            yield
            return
        connection.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):  # nothing was written; that a file is damaged is for its rows to say
                connection.execute("COMMIT")

    def expect_news(self) -> None:
        """A trainer is at work: what was opened as a journal that nobody writes is opened anew."""
        if self._nobody_writes and not self.was_replaced:
            self.close()

    @property
    def was_replaced(self) -> bool:
        """Whether another file has the place of the one that is read: a new run of that name, or a copy put there."""
        if self._connection is None or self._found is None:
            return False
        there = self._stat()
        return there is not None and not os.path.samestat(self._found, there)

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection | None:
        if self._connection is None and self._is_there():
            self._connection = self._connect()
        return self._connection

    def _is_there(self) -> bool:
        self._found = self._stat()
        size = None if self._found is None else self._found.st_size
        if size or trainer_is_alive(self.run_dir):
            return bool(size)
        if size == 0:
            raise JournalError(f"{self.path} is empty: its trainer was stopped before it wrote anything")
        raise JournalError(f"there is no journal at {self.path}: name a run directory, or the journal in it")

    def _stat(self) -> os.stat_result | None:
        """Of the journal as it is now; None where there is no such file."""
        try:
            return self.path.stat() if self.path.is_file() else None
        except OSError as error:
            raise _no_access(self.path, error) from error

    def _connect(self) -> sqlite3.Connection | None:
        self._nobody_writes = False
        try:
            return self._open("mode=ro")
        except sqlite3.Error as error:
            if _is_busy(error):
                return None
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK and not trainer_is_alive(self.run_dir):
                return self._recovered(error)
            if error.sqlite_errorcode not in NO_FILES_BESIDE or trainer_is_alive(self.run_dir):
                raise self._explained(error) from error
        # In a read-only directory, and nobody writes: SQLite can do without locks and files beside the journal.
        self._nobody_writes = True
        try:
            return self._open("mode=ro&vfs=unix-none" if self._has_wal() else "mode=ro&immutable=1")
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _recovered(self, error: sqlite3.Error) -> sqlite3.Connection:
        """A trainer was killed within the last transaction of all, which nobody but a writer may take back."""
        try:
            self._open("mode=rw").close()
            return self._open("mode=ro")
        except sqlite3.Error:
            raise self._explained(error) from error

    def _open(self, how: str) -> sqlite3.Connection:
        uri = f"{self.path.as_uri()}?{how}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            # An exclusive reader keeps the index of the WAL in its own memory instead of a -shm file.
            if "unix-none" in how:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            # A text that is none is the trouble of its own row: it equals no text that is one.
            connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
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


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
