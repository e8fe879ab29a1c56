"""Rows for people and for programs: a table, CSV, JSON, Parquet or Arrow; streamed, and a file all or nothing."""

import codecs
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from sapflow.errors import InputError
from sapflow.history.arrow import pa, pa_csv, pc, pq
from sapflow.history.cells import values_of
from sapflow.history.text import aligned
from sapflow.telemetry.placing import place
from sapflow.telemetry.run_directory import owner_of

Format = Literal["table", "csv", "json", "parquet", "arrow"]
BINARY = frozenset({"parquet", "arrow"})
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "table",
}
SHOWN_ROWS = 200
CELL_CHARACTERS = 300


def format_of(path: Path) -> Format:
    """Which format a file's name asks for.

    Raises:
        InputError: none.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} does not say its format: name it .csv, .json, .parquet or .arrow")
    return SUFFIXES[path.suffix]


def write_file(reader: pa.RecordBatchReader, path: Path, how: Format, *, force: bool) -> int:
    """Write all rows into a new file, and say how many there were; what stood there stays until all are written.

    Raises:
        InputError: there is such a file and `force` is not given, or it cannot be written.
    """
    with new_file(path, force=force) as file:
        return write(reader, file, how)


def check_writable(path: Path, *, force: bool) -> None:
    """What is wrong with a file that is to be written, before its rows are made.

    Raises:
        InputError: there is something in its place, or no place for it, or it would be one of a run's own files.
    """
    if (owner := owner_of(path)) is not None:
        raise InputError(f"{path} belongs to the run in {owner}, which --force does not replace: choose another name")
    if path.is_dir():
        raise InputError(f"{path} is a directory: name a file in it")
    if path.exists() and not force:
        raise InputError(f"{path} exists: choose another name, or overwrite it with --force")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file, which nothing may replace: name another")
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent}: make it first")


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """A file that bears its name once the block has written it whole; what stood there stays until then.

    Raises:
        InputError: there is such a file and `force` is not given, or it cannot be written.
    """
    check_writable(path, force=force)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).chmod(0o666 & ~_umask())
        if force:
            Path(name).replace(path)
        else:
            place(Path(name), path)
    except FileExistsError as error:
        raise InputError(f"{path} exists: choose another name, or overwrite it with --force") from error
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Harmless(io.RawIOBase):
    """Text on its way to a terminal, which nothing in it steers: what cannot be seen is written as in Python."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Hand on all of it."""
        lines = (
            line if line.isprintable() else "".join(map(_visible, line))
            for line in self._decode(bytes(data)).split("\n")
        )
        self._file.write("\n".join(lines).encode())
        return len(data)


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def write(reader: pa.RecordBatchReader, file: IO[bytes] | Harmless, how: Format) -> int:
    """Write all rows in that format, and say how many there were; a table shows the first of them."""
    match how:
        case "csv":
            return _write_csv(reader, file)
        case "json":
            return _write_json(reader, file)
        case "parquet":
            with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
                return _write_batches(reader, writer)
        case "arrow":
            with pa.ipc.new_file(file, reader.schema) as writer:
                return _write_batches(reader, writer)
    return _write_table(reader, file)


def _write_batches(reader: pa.RecordBatchReader, writer: Any) -> int:
    count = 0
    for batch in reader:
        writer.write_batch(batch)
        count += batch.num_rows
    return count


def _write_csv(reader: pa.RecordBatchReader, file: IO[bytes] | Harmless) -> int:
    """NaN is `nan`, infinity `inf`, null an empty field; lists and the like are JSON in a field."""
    schema = pa.schema([(field.name, _csv_type(field.type)) for field in reader.schema])
    count = 0
    with io.BytesIO() as lines, pa_csv.CSVWriter(lines, schema) as writer:
        for batch in reader:
            columns = [_csv_column(column) for column in batch.columns]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += batch.num_rows
            _hand_on(lines, file)
        _hand_on(lines, file)
    return count


def _hand_on(lines: io.BytesIO, file: IO[bytes] | Harmless) -> None:
    """From here, and not from within Arrow, which tries a write again that Ctrl-C was to end."""
    file.write(lines.getvalue())
    lines.seek(0)
    lines.truncate()


def _csv_type(kind: pa.DataType) -> pa.DataType:
    flat = pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    return kind if flat or pa.types.is_decimal(kind) else pa.string()


def _csv_column(column: pa.Array) -> pa.Array:
    if column.type == _csv_type(column.type):
        return column
    return pa.array([None if value is None else _field(value) for value in values_of(column)], pa.string())


def _field(value: Any) -> str:
    match value:
        case str():
            return value
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat(sep=" ")
        case date() | time():
            return value.isoformat()
    return _json(value)


def _write_json(reader: pa.RecordBatchReader, file: IO[bytes] | Harmless) -> int:
    """An array with an object a line; NaN and infinities, for which JSON has no numbers, are strings."""
    count = 0
    for batch in reader:
        names = batch.schema.names
        for row in zip(*map(values_of, batch.columns), strict=True):
            file.write(b",\n" if count else b"[\n")
            file.write(_json(dict(zip(names, row, strict=True))).encode())
            count += 1
    file.write(b"\n]\n" if count else b"[\n]\n")
    return count


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case datetime():
            return value.isoformat()
        case bytes():
            return value.hex()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def _write_table(reader: pa.RecordBatchReader, file: IO[bytes] | Harmless) -> int:
    """The first SHOWN_ROWS rows in aligned columns, and how many more there are."""
    kinds = reader.schema.types
    rows: list[list[str]] = []
    count = 0
    for batch in reader:
        shown = batch.slice(0, max(SHOWN_ROWS - count, 0))
        rows += (
            [_cell(value) for value in row]
            for row in zip(*(values_of(_cut(column)) for column in shown.columns), strict=True)
        )
        count += batch.num_rows
    right = [pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in kinds]
    for line in aligned(reader.schema.names, rows, right):
        file.write(line.encode(errors="backslashreplace") + b"\n")
    if count > len(rows):
        file.write(f"({count} rows, of which {len(rows)} are shown: --format csv has all)\n".encode())
    return count


def _cut(column: pa.Array) -> pa.Array:
    """Texts no longer than a cell shows, before anything is done with them."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.utf8_slice_codeunits(column, 0, CELL_CHARACTERS + 1)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pc.binary_slice(column, 0, CELL_CHARACTERS)
    return column


def _cell(value: Any) -> str:
    text = _whole_cell(_bounded(value))
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _bounded(value: Any) -> Any:
    """As much of a list and the like as a cell may show."""
    match value:
        case str() | bytes():
            return value[: CELL_CHARACTERS + 1]
        case list():
            return [_bounded(item) for item in value[:CELL_CHARACTERS]]
        case dict():
            return {key: _bounded(item) for key, item in islice(value.items(), CELL_CHARACTERS)}
    return value


def _whole_cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.isoformat(sep=" ", timespec="milliseconds")
        case str():
            return value
        case dict() | list() | bytes():
            return _json(value)
    return str(value)
