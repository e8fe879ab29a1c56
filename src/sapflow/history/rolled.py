"""A rolled run: how it lies in RUN/parquet, and the tables and rows that are read from there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from sapflow.errors import JournalError
from sapflow.history.arrow import ds, pa, pq
from sapflow.history.gradients import EVENT
from sapflow.history.manifest import Manifest
from sapflow.history.schemas import EVENTS
from sapflow.history.selection import Selection
from sapflow.history.summary import RunSummary

# What events.parquet has beyond the public table, so that the journal can be made again, byte by byte. Where a sample's
# passes lie in gradients.parquet they are cut out of its body at `cut`; it is null where the body is whole.
PRIVATE = [("seconds", pa.float64()), ("body", pa.binary()), ("cut", pa.int32())]
STORED_EVENTS: pa.Schema = pa.schema([*EVENTS, *PRIVATE])

_encode = msgspec.msgpack.Encoder().encode
_KEYS = [_encode(key) for key in ("pass_index", "entering", "leaving")]

StoredRow = tuple[int, int | None, int | None, int | None, str, float, bytes]
"""id, env, sequence, epoch, type, time and body: a row of the journal."""


class RolledTables:
    """The tables of a rolled run."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.run_dir = folder.parent
        self._folder = folder
        self.failure: JournalError | None = None
        self._summary = manifest.summary

    def summary(self) -> RunSummary:
        """Of the run as it was rolled."""
        return self._summary

    def scannable(self, table: str) -> ds.Dataset:
        """A table for an engine that pushes down what it wants of it; it may have private columns, too."""
        path = table_path(self._folder, table)
        with _explained(path):
            return ds.dataset(path, format="parquet")

    def batches(self, selection: Selection) -> pa.RecordBatchReader:
        """What is selected, as a stream."""
        with _explained(table_path(self._folder, selection.table)):
            scanner = self.scannable(selection.table).scanner(
                columns=selection.schema.names, filter=selection.condition, batch_size=65_536, batch_readahead=4
            )
        return pa.RecordBatchReader.from_batches(selection.schema, self._read(selection, scanner))

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, selection: Selection, scanner: ds.Scanner) -> Iterator[pa.RecordBatch]:
        with _explained(table_path(self._folder, selection.table)):
            for batch in scanner.to_reader():
                yield batch.cast(selection.schema)


def table_path(folder: Path, table: str) -> Path:
    """The Parquet file of a table in the folder of a rolled run."""
    return folder / f"{table}.parquet"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What is wrong with a file, as one line: it may be damaged, or a stranger's with other columns."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        line = " ".join(str(error).split())
        raise JournalError(f"{path} cannot be read ({line}): restore it from a copy") from error


def passes_as_written(passes: Sequence[int], entering: Sequence[float], leaving: Sequence[float]) -> bytes:
    """How a sample's passes lie in the body of its event: three keys, each with its array."""
    return b"".join(
        part for key, values in zip(_KEYS, (passes, entering, leaving), strict=True) for part in (key, _encode(values))
    )


def stored_rows(folder: Path) -> Iterator[StoredRow]:
    """The rows of the journal that was rolled into the folder, as they were, in their order.

    Raises:
        JournalError: a file is damaged.
    """
    path, passes = table_path(folder, "events"), _passes_by_event(folder)
    with _explained(path):
        for *place, body, cut in _rows_of(path, ["id", "env", "sequence", "epoch", "type", "seconds", "body", "cut"]):
            whole = body if cut is None else body[:cut] + _passes_of(place[0], passes) + body[cut:]
            yield (*place, whole)


def _passes_of(event_id: int, passes: Iterator[tuple[int, bytes]]) -> bytes:
    for found, written in passes:
        if found == event_id:
            return written
    raise pa.ArrowInvalid(f"the passes of event {event_id} are missing")


def _passes_by_event(folder: Path) -> Iterator[tuple[int, bytes]]:
    """The passes of each event as they are written in its body, in the order of events."""
    rows = _rows_of(table_path(folder, "gradients"), [EVENT, "pass", "entering", "leaving"])
    for event_id, group in groupby(rows, key=itemgetter(0)):
        _, passes, entering, leaving = zip(*group, strict=True)
        yield event_id, passes_as_written(passes, entering, leaving)


def _rows_of(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    with _explained(path), pq.ParquetFile(path) as file:
        if missing := set(columns) - set(file.schema_arrow.names):
            raise pa.ArrowInvalid(f"it lacks columns: {', '.join(sorted(missing))}")
        for group in range(file.num_row_groups):  # a batch over several takes the memory of all of them
            for batch in file.iter_batches(5_000, [group], columns):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
