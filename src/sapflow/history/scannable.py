"""Tables for engines: made anew for each look at one, and no more of it than is looked at."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final

from sapflow.history.arrow import ds, pa, pa_fs, pc
from sapflow.history.schemas import TABLES
from sapflow.history.selection import Selection

INT32: Final = range(-(2**31), 2**31)
EVERYTHING: Final = (INT32.start, INT32.stop)
NO_FILE: Final = ds.ParquetFileFormat()

Make = Callable[[tuple[str, ...], pc.Expression | None], pa.RecordBatchReader]


class Scannable(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """A table of which no more is made than is looked at. Engines ask its schema, and a scanner of what they want.

    Args:
        schema: of the whole table.
        make: gives these columns, or more, of the rows that meet the filter, or more.
    """

    def __init__(self, schema: pa.Schema, make: Make) -> None:
        self._schema, self._make = schema, make

    @property
    def schema(self) -> pa.Schema:
        """Of the whole table."""
        return self._schema

    def scanner(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **_: Any
    ) -> ds.Scanner:
        """What reads the columns (None: all) of the rows that meet the filter."""
        wanted = self.schema.names if columns is None else list(columns)
        condition = str(filter)  # which names the columns that it looks at, and at most some more in its texts
        looked_at = tuple(name for name in self.schema.names if name in wanted or name in condition)
        made = self._make(looked_at, filter)
        return ds.Scanner.from_batches(made, columns=wanted, filter=filter, batch_readahead=1, use_threads=False)


def of_journal(table: str, batches: Callable[[Selection], pa.RecordBatchReader]) -> Scannable:
    """The table of that name, of which `batches` gives what is selected."""
    schema = TABLES[table]

    def make(looked_at: tuple[str, ...], condition: pc.Expression | None) -> pa.RecordBatchReader:
        first_env, last_env = bounds(condition, "env", schema)
        epochs = bounds(condition, "epoch", schema)
        selection = Selection(
            table=table,
            columns=looked_at,
            env=first_env if first_env == last_env else None,
            epochs=None if epochs == EVERYTHING else epochs,
        )
        return batches(selection)

    return Scannable(schema, make)


def bounds(condition: pc.Expression | None, column: str, schema: pa.Schema) -> tuple[int, int]:
    """Between which numbers the column lies, both included, wherever the condition is met; EVERYTHING where it may be
    anything, or null, and where there is no such column.
    """
    if column not in schema.names or column not in str(condition):
        return EVERYTHING

    def possible(known: pc.Expression) -> bool:
        """What Arrow asks of each partition of a data set, whose expression it knows."""
        partition = NO_FILE.make_fragment("none", filesystem=pa_fs.LocalFileSystem(), partition_expression=known)
        return any(True for _ in ds.FileSystemDataset([partition], schema, NO_FILE).get_fragments(condition))

    field = pc.field(column)
    first = bisect_left(INT32, True, key=lambda value: possible(field <= value))
    last = bisect_left(INT32, True, key=lambda value: not possible(field > value))
    if first > last or possible(field.is_null()):
        return EVERYTHING
    return INT32.start + first, INT32.start + last
