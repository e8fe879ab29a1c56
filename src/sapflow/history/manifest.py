"""What a rolled run says of itself, and which of a run's two forms is the newer; without pyarrow."""

from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Struct

from sapflow.errors import JournalError
from sapflow.history.journal_rows import JournalRows
from sapflow.history.summary import RunSummary, beginning, moment, summarize
from sapflow.telemetry.run_directory import MANIFEST_NAME, ROLLED_NAME, has_journal

FORMAT = 1
MAX_MANIFEST_BYTES = 2**20


class _Format(Struct, frozen=True, kw_only=True):
    format: int


class Manifest(_Format, frozen=True, kw_only=True):
    """What was rolled: the run as it stood, the last event of its journal, and the rows of each table."""

    last_id: int
    journal_version: int
    meta: dict[str, int]
    rows: dict[str, int]
    summary: RunSummary


def manifest_of(run_dir: Path) -> Manifest | None:
    """Of the run, if it is rolled.

    Raises:
        JournalError: it is damaged, or of a newer Sapflow.
    """
    return manifest_in(run_dir / ROLLED_NAME)


def manifest_in(folder: Path) -> Manifest | None:
    """What was rolled into the folder, if anything was. Raises what `manifest_of` does."""
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise JournalError(f"{path} is no manifest of a rolled run: it is too large")
        data = path.read_bytes()
        if msgspec.json.decode(data, type=_Format).format > FORMAT:
            raise JournalError(f"{path} was written by a newer Sapflow: upgrade to read it")
        return msgspec.json.decode(data, type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JournalError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"{path} is damaged ({error}): roll the run again, or restore it from a copy") from error


def is_current(run_dir: Path, manifest: Manifest) -> bool:
    """Whether what was rolled is all that there is: nothing came to the run's journal since, or there is none."""
    if not has_journal(run_dir):
        return True
    with closing(JournalRows(run_dir)) as rows:
        return not continues(rows, manifest) or rows.last_id() == manifest.last_id


def continues(rows: JournalRows, manifest: Manifest) -> bool:
    """Whether the journal is the one that was rolled, with no event less: not a new one, a copy, or another run's."""
    if manifest.last_id == 0:  # nothing was rolled that could be lost
        return True
    start = beginning(rows)
    identity = ("", None) if start is None else (start.run_id, moment(start.time))
    return rows.last_id() >= manifest.last_id and identity == (manifest.summary.run_id, manifest.summary.started)


def preferred(run_dir: Path) -> Manifest | None:
    """Of the run, where it is rolled, and its journal has no more than that.

    Raises:
        JournalError: neither form of it can be read.
    """
    try:
        manifest = manifest_of(run_dir)
        return manifest if manifest is not None and is_current(run_dir, manifest) else None
    except JournalError:
        if not has_journal(run_dir):
            raise
    return None


def summary_of(run_dir: Path) -> RunSummary:
    """The run in one row, without a look at every event: nothing is counted as skipped, unless it was rolled.

    Raises:
        JournalError: there is no run, or it cannot be read.
    """
    if (manifest := preferred(run_dir)) is not None:
        return manifest.summary
    with closing(JournalRows(run_dir)) as rows:
        return summarize(rows.path, rows)
