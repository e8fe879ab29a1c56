"""A journal's file for its one writer: made new, or opened again to go on with."""

import contextlib
import sqlite3
from pathlib import Path

from sapflow.errors import RunDirectoryError
from sapflow.telemetry.journal_layout import CREATE
from sapflow.telemetry.run_directory import refuse_rolled

OPENING_SECONDS = 10.0  # that are waited for those who read a finished journal: they keep it from becoming a live one
BUSY_SECONDS = 0.25


def reopen(path: Path) -> sqlite3.Connection:
    """A journal that is there, after `Source` has found it to be one; what a killed trainer left in its WAL is kept.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=rw",
            uri=True,
            timeout=OPENING_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}").fetchall()
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise RunDirectoryError(f"{path} is being read by somebody at length: wait until they are done") from error
        raise RunDirectoryError(f"cannot write the journal {path} ({error}): check the file and the disk") from error
    return connection


def create(path: Path) -> sqlite3.Connection:
    """A new journal; whenever its maker is killed, readers see no file, an empty one, or one with all its tables.

    Raises:
        RunDirectoryError: there is one already, the run was rolled and its journal removed, or it cannot be made.
    """
    refuse_rolled(path.parent)
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise RunDirectoryError(f"{path} exists, and a journal is written once: choose another directory") from error
    except OSError as error:
        raise RunDirectoryError(f"cannot make the journal {path} ({error}): choose another run directory") from error
    made = path.with_name(f".{path.name}.new")
    try:
        made.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as connection:
            for statement in ("BEGIN IMMEDIATE", *CREATE, "COMMIT", "PRAGMA journal_mode = WAL"):
                connection.execute(statement).fetchall()
        made.replace(path)
        return reopen(path)
    except (OSError, sqlite3.Error, RunDirectoryError) as error:
        path.unlink(missing_ok=True)
        raise RunDirectoryError(f"cannot make the journal {path} ({error}): choose another run directory") from error
    finally:
        made.unlink(missing_ok=True)
