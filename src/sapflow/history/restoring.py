"""A journal for those who read journals, where a rolled run has none any more: made again, byte by byte, aside."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sapflow.errors import JournalError
from sapflow.history.journal_rows import JournalRows
from sapflow.history.manifest import continues, manifest_of
from sapflow.telemetry.journal_layout import CREATE, SET_META
from sapflow.telemetry.run_directory import JOURNAL_NAME, ROLLED_NAME, has_journal

INSERT = "INSERT INTO events (id, env, sequence, epoch, type, time, body) VALUES (?, ?, ?, ?, ?, ?, ?)"


@contextmanager
def with_journal(path: Path) -> Iterator[Path]:
    """A path that has a journal: the one given, unless it is a rolled run without; then a copy, gone with the context.

    Raises:
        JournalError: what was rolled cannot be read.
        MissingExtraError: it can be read only with pyarrow, which is not installed.
        OSError: there is no room for the journal among temporary files.
    """
    if not _is_rolled_away(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sapflow-") as folder:
        copy = Path(folder) / path.resolve().name
        copy.mkdir()
        restore(path, copy)
        yield copy


def _is_rolled_away(path: Path) -> bool:
    """Whether the run has no journal but what it was rolled into, or one that has less than that."""
    try:
        if not path.is_dir() or not (path / ROLLED_NAME).is_dir():
            return False
        if not has_journal(path):
            return True
        manifest = manifest_of(path)
        with closing(JournalRows(path)) as rows:
            return manifest is not None and not continues(rows, manifest)
    except (JournalError, OSError):
        return False  # who reads the journal will say what is wrong with it


def restore(run_dir: Path, target: Path) -> None:
    """Make the journal of a rolled run again, in the directory `target`, which has none.

    Raises:
        JournalError: what was rolled cannot be read, or is nothing that a journal has.
        OSError: there is no room for it.
    """
    from sapflow.history.rolled import stored_rows

    manifest = manifest_of(run_dir)
    if manifest is None:
        raise JournalError(f"{run_dir} is not rolled: there is nothing to make a journal of")
    try:
        with closing(sqlite3.connect(target / JOURNAL_NAME, isolation_level=None)) as connection:
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):  # who is interrupted makes it again
                connection.execute(f"PRAGMA {pragma}").fetchall()
            for statement in ("BEGIN", *CREATE):
                connection.execute(statement)
            connection.executemany(SET_META, manifest.meta.items())
            connection.executemany(INSERT, stored_rows(run_dir / ROLLED_NAME))
            connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise OSError(
            f"the journal of {run_dir} cannot be made again in {target} ({error}): make room there, or name a "
            "directory that has some in TMPDIR"
        ) from error
    except (sqlite3.Error, OverflowError) as error:
        raise JournalError(
            f"{run_dir / ROLLED_NAME} holds what no journal has ({error}): restore it from a copy"
        ) from error
