"""Rolling: the journal of a finished run into Parquet, all or nothing, and read back before the journal may go."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from sapflow.errors import InputError, JournalError
from sapflow.history.arrow import pa, pq
from sapflow.history.comparing import same_rows
from sapflow.history.epochs import event_batch, payloads_of
from sapflow.history.gradients import EVENT, WITH_EVENT, gradient_batches
from sapflow.history.journal_rows import JournalRows, Row
from sapflow.history.manifest import FORMAT, Manifest, continues, is_current, manifest_in, manifest_of
from sapflow.history.rolled import (
    STORED_EVENTS,
    RolledTables,
    passes_as_written,
    stored_rows,
    table_path,
)
from sapflow.history.run import JournalTables
from sapflow.history.schemas import EVENTS, TABLES
from sapflow.history.selection import Selection
from sapflow.history.summary import RunSummary, summarize
from sapflow.telemetry.events import GradientSampled, Payload
from sapflow.telemetry.journal_layout import JOURNAL_VERSION, SELECT_META
from sapflow.telemetry.run_directory import (
    CHECKPOINTS_NAME,
    MANIFEST_NAME,
    ROLLED_NAME,
    TrainerLock,
    has_journal,
    wal_of,
)
from sapflow.telemetry.source import RunState

UNFINISHED: Final = ".rolling-"
COMPRESSION: Final = "zstd"
COMPRESSION_LEVEL: Final = 9

# Norms are random in their low bytes, and alike in their high ones; the rest repeats.
_HOW: Final[dict[str, dict[str, Any]]] = {
    "gradients": {
    "use_dictionary": ["env", "slot", "seed", "blueprint", "stage", "epoch", "vanishing", "exploding", "status"],
    "column_encoding": {
        "pass": "DELTA_BINARY_PACKED", EVENT: "DELTA_BINARY_PACKED",
        "ratio": "BYTE_STREAM_SPLIT", "entering": "BYTE_STREAM_SPLIT", "leaving": "BYTE_STREAM_SPLIT",
    },
    },
    "events": {
        "use_dictionary": ["env", "sequence", "epoch", "type", "slot", "text", "cut"],
        "column_encoding": {"id": "DELTA_BINARY_PACKED", "seconds": "BYTE_STREAM_SPLIT"},
    },
}  # fmt: skip


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: the rows of each table, the bytes in Parquet and in the journal, and whether that is gone."""

    rows: dict[str, int]
    parquet_bytes: int
    journal_bytes: int
    removed: bool


def roll(run_dir: Path, *, remove_journal: bool = False) -> Rolled:
    """Write the run into RUN/parquet, read it back, and, if asked to, remove the journal that it then has whole.

    Whatever goes wrong, the run is as it was before. A run that is rolled already is read back again.

    Raises:
        InputError: there is no run, it is live, its journal is needed to resume it, or has less than what was rolled.
        JournalError: what was read back is not what the journal has.
        OSError: the disk.
    """
    if (done := _without_journal(run_dir)) is not None:
        return done
    with closing(JournalRows(run_dir)) as rows:
        run_dir, last_id = rows.run_dir, rows.last_id()
        _refuse_odd_name(run_dir)
        summary = summarize(run_dir, rows)
        if summary.state is RunState.LIVE:
            raise InputError(f"{run_dir} is live: roll it when its training is over")
        if remove_journal and summary.state is RunState.ENDED and (run_dir / CHECKPOINTS_NAME).exists():
            raise InputError(f"{run_dir} was cut off, and its journal is needed to resume it: roll it without removing")
        with TrainerLock(run_dir):
            if (done := _without_journal(run_dir)) is not None:  # somebody else has rolled it meanwhile
                return done
            if rows.last_id() != last_id:
                raise InputError(f"{run_dir} went on meanwhile: roll it when its training is over")
            for left in run_dir.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)
            _refuse_to_lose(rows, run_dir)
            manifest = _sound(rows, run_dir) or _write(rows, run_dir, summary)
            journal_bytes = rows.path.stat().st_size
            if remove_journal:
                _remove(rows.path)
    return Rolled(
        rows=manifest.rows,
        parquet_bytes=_size(run_dir / ROLLED_NAME),
        journal_bytes=journal_bytes,
        removed=remove_journal,
    )


def _without_journal(run_dir: Path) -> Rolled | None:
    """What came of it earlier, where the journal is gone already."""
    if not run_dir.is_dir() or has_journal(run_dir) or (manifest := manifest_of(run_dir)) is None:
        return None
    return Rolled(rows=manifest.rows, parquet_bytes=_size(run_dir / ROLLED_NAME), journal_bytes=0, removed=True)


def _refuse_odd_name(run_dir: Path) -> None:
    """Raises InputError where pyarrow could open no file in the directory."""
    try:
        str(run_dir).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{run_dir} is no text in UTF-8, as names of Parquet files are: rename it first") from error


def _refuse_to_lose(rows: JournalRows, run_dir: Path) -> None:
    """What was rolled already gives way only to a journal that has it all.

    Raises:
        InputError: the journal is of another run, or has less.
    """
    rolled = run_dir / ROLLED_NAME
    try:
        manifest = manifest_of(run_dir)
        whole = rows.last_id() > 0 if manifest is None else continues(rows, manifest)
    except JournalError:  # nobody knows what it had; a journal with events is the run's, as far as anybody can tell
        whole = rows.last_id() > 0
    if rolled.exists() and not whole:
        raise InputError(f"{rolled} holds events that {rows.path} does not: move one of them out of {run_dir}")


def _sound(rows: JournalRows, run_dir: Path) -> Manifest | None:
    """Of the run if it is rolled already, and all that its journal has is there."""
    try:
        manifest = manifest_of(run_dir)
        if manifest is None or not is_current(run_dir, manifest):
            return None
        _verify(rows, run_dir / ROLLED_NAME, manifest)
    except JournalError:  # the journal has it all
        return None
    return manifest


def _remove(journal: Path) -> None:
    """The journal goes first: without what is beside it, it would be an older one."""
    for path in (journal, wal_of(journal), journal.with_name(f"{journal.name}-shm")):
        path.unlink(missing_ok=True)
    _synchronise(journal.parent)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _write(rows: JournalRows, run_dir: Path, summary: RunSummary) -> Manifest:
    """Make RUN/parquet: aside, verified, durable, and then in one step."""
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=run_dir))
    try:
        folder.chmod(run_dir.stat().st_mode & 0o777)
        skipped: Counter[str] = Counter()
        manifest = Manifest(
            format=FORMAT,
            last_id=rows.last_id(),
            journal_version=JOURNAL_VERSION,
            meta=dict(rows.rows(SELECT_META)),
            rows=_write_tables(rows, folder, skipped),
            summary=replace(summary, skipped=dict(skipped)),
        )
        (folder / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        _verify(rows, folder, manifest)
        for file in folder.iterdir():
            _synchronise(file)
        journal = rows.path.stat()
        os.utime(folder, ns=(journal.st_atime_ns, journal.st_mtime_ns))  # an old run is no newer for being rolled
        _synchronise(folder)
        _put_in_place(folder, run_dir / ROLLED_NAME)
        _synchronise(run_dir)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, UnicodeEncodeError) as error:
        raise JournalError(f"{rows.path} holds values that no run has ({error}): it cannot be rolled") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _put_in_place(folder: Path, place: Path) -> None:
    """What was rolled before a resumed run went on makes room."""
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=place.parent))
        place.rename(old)
        folder.rename(place)
        shutil.rmtree(old)
    else:
        folder.rename(place)


def _write_tables(rows: JournalRows, folder: Path, skipped: Counter[str]) -> dict[str, int]:
    tables = JournalTables(rows.path)
    try:
        batches = {
            "gradients": gradient_batches(rows, Selection(table="gradients"), set(WITH_EVENT.names)),
            "events": (_stored_events(page, skipped) for page in rows.pages()),
            **{name: tables.batches(Selection(table=name)) for name in ("epochs", "seeds", "alerts")},
        }
        schemas = {**TABLES, "gradients": WITH_EVENT, "events": STORED_EVENTS}
        return {name: _write_table(table_path(folder, name), schemas[name], batches[name]) for name in TABLES}
    finally:
        tables.close()


def _write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches as row groups, each batch one or more of them, and say how many rows there were."""
    count = 0
    how = _HOW.get(path.stem, {})
    with pq.ParquetWriter(path, schema, compression=COMPRESSION, compression_level=COMPRESSION_LEVEL, **how) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]))
            count += batch.num_rows
    return count


def _stored_events(page: Sequence[Row], skipped: Counter[str]) -> pa.RecordBatch:
    """Rows of the journal with their bodies, those of samples without the passes that gradients.parquet has."""
    payloads = payloads_of(page, skipped)
    bodies, cuts = zip(*map(_cut, page, payloads), strict=True)
    public = event_batch(page, payloads, set(EVENTS.names))
    seconds = pa.array([row.time for row in page], pa.float64())
    private = [seconds, pa.array(bodies, pa.binary()), pa.array(cuts, pa.int32())]
    return pa.record_batch([*public.columns, *private], schema=STORED_EVENTS)


def _cut(row: Row, payload: Payload | None) -> tuple[bytes, int | None]:
    """The body and where its passes were cut out; whole, with None, where they do not lie in it as we write them."""
    body = row.body
    if body is None:
        raise JournalError(f"event {row.id} has no bytes that could be kept ({row.size}): the run cannot be rolled")
    if row.type != GradientSampled.type or not isinstance(payload, GradientSampled) or not payload.pass_index:
        return body, None
    passes = passes_as_written(payload.pass_index, payload.entering, payload.leaving)
    place = body.find(passes)
    return (body, None) if place < 0 else (body[:place] + body[place + len(passes) :], place)


def _verify(rows: JournalRows, folder: Path, manifest: Manifest) -> None:
    """Compare what lies in the folder with the journal: its rows, bodies included, and every row of every table.

    So that the run can be opened without its journal, the manifest is read back, too.

    Raises:
        JournalError: something is not the same.
    """
    kept = stored_rows(folder)
    for row in rows.select():
        if next(kept, None) != (*row[:6], row.body):
            raise JournalError(f"event {row.id} of {rows.path} does not come back from Parquet: the journal stays")
    if not _comes_back(manifest, folder):
        raise JournalError(f"what {rows.path} says of its run does not come back from Parquet: the journal stays")
    tables, rolled = JournalTables(rows.path), RolledTables(folder, manifest)
    with closing(tables):
        for name in TABLES:
            selection = Selection(table=name)
            if not same_rows(tables.batches(selection), rolled.batches(selection)):
                raise JournalError(f"the {name} of {rows.path} do not come back from Parquet: the journal stays")


def _comes_back(manifest: Manifest, folder: Path) -> bool:
    try:
        return manifest_in(folder) == manifest
    except JournalError:  # it is too large, or not of its types
        return False


def _synchronise(path: Path) -> None:
    """Make it durable: a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
