"""Rows into Arrow: what is common to all tables of a run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sapflow.history.arrow import pa

BATCH_ROWS = 65_536

Item = TypeVar("Item")


def batch_of(schema: pa.Schema, columns: Mapping[str, Callable[[], Any]], wanted: Iterable[str]) -> pa.RecordBatch:
    """A batch of the wanted columns, in the order of the schema; only these are made."""
    wanted = set(wanted)
    part = pa.schema([field for field in schema if field.name in wanted])
    arrays = [_array(columns[field.name](), field.type) for field in part]
    return pa.record_batch(arrays, schema=part)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def in_batches(items: Iterable[Item], size: int = BATCH_ROWS) -> Iterator[Sequence[Item]]:
    """The items, `size` at a time."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def microseconds(seconds: float) -> int:
    """Unix seconds as a timestamp has them."""
    return round(seconds * 1_000_000)
