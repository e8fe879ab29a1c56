"""What of a table is asked for: columns, an env, a slot, epochs; checked once, pushed down as far as it goes."""

from dataclasses import dataclass
from functools import reduce
from operator import and_

from sapflow.errors import InputError
from sapflow.history.arrow import pa, pc
from sapflow.history.journal_rows import MAX_INT64
from sapflow.history.schemas import SPANS, TABLES, within


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Of the table named `table` these columns (None: all) of the rows that meet every condition.

    Raises:
        InputError: there is no such table or column, no epoch lies between the bounds, or a number has over 64 bits.
    """

    table: str
    columns: tuple[str, ...] | None = None
    env: int | None = None
    slot: str | None = None
    epochs: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise InputError(f"there is no table {self.table!r}: there are {', '.join(TABLES)}")
        known = TABLES[self.table].names
        for name in self.columns or ():
            if name not in known:
                raise InputError(f"there is no column {name!r} in {self.table}: it has {', '.join(known)}")
        if self.epochs is not None and (len(self.epochs) != 2 or self.epochs[0] > self.epochs[1]):
            raise InputError(f"epochs are (first, last), both included, not {self.epochs}")
        for number in (self.env, *(self.epochs or ())):
            if isinstance(number, int) and abs(number) > MAX_INT64:
                raise InputError(f"{number} is beyond every env and epoch: no number there has more than 64 bits")

    @property
    def schema(self) -> pa.Schema:
        """Of what is asked for."""
        whole = TABLES[self.table]
        return whole if self.columns is None else pa.schema([whole.field(name) for name in self.columns])

    @property
    def needed(self) -> set[str]:
        """The columns that are asked for, and those that the conditions look at."""
        looked_at = set(SPANS.get(self.table, ("epoch", "epoch"))) if self.epochs is not None else set[str]()
        if self.env is not None:
            looked_at.add("env")
        if self.slot is not None:
            looked_at.add("slot")
        return looked_at | set(self.schema.names)

    @property
    def condition(self) -> pc.Expression | None:
        """What a row has to meet; None where every row does."""
        terms = []
        if self.env is not None:
            terms.append(pc.field("env") == self.env)
        if self.slot is not None:
            terms.append(pc.field("slot") == self.slot)
        if self.epochs is not None:
            terms.append(within(self.table, self.epochs))
        return reduce(and_, terms) if terms else None

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What is asked for, of a batch that has at least the columns that are needed."""
        kept = batch if self.condition is None else batch.filter(self.condition)
        return kept.select(self.schema.names)
