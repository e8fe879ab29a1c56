"""A run as data: `sapflow.open_run(path)`, live, finished or rolled into Parquet."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from sapflow.errors import JournalError
from sapflow.history.arrow import pa
from sapflow.history.epochs import epoch_batches, event_batches
from sapflow.history.gradients import gradient_batches
from sapflow.history.journal_rows import JournalRows
from sapflow.history.lives import alert_batches, seed_batches
from sapflow.history.manifest import preferred
from sapflow.history.rolled import RolledTables
from sapflow.history.scannable import Scannable, of_journal
from sapflow.history.selection import Selection
from sapflow.history.summary import RunSummary, summarize
from sapflow.telemetry.run_directory import ROLLED_NAME


def open_run(path: str | Path) -> "Run":
    """The run in a directory (or the journal in one), as Arrow tables; nothing is read before it is asked for.

    Raises:
        JournalError: there is no run, it is damaged, or a newer Sapflow wrote it.
        MissingExtraError: pyarrow is not installed.
    """
    return Run(Path(path))


class Run:
    """What a run left, as tables; a context manager, or closed with `close`.

    Every table is a method that gives a `pyarrow.Table`, and takes the same four things, which are pushed down to
    where the data lie:

    Args of the tables:
        columns: their names; None: all.
        env: only of this env.
        slot: only of this slot.
        epochs: only of these, (first, last), both included. A seed or an alert is of every epoch that it lived in.

    All times are in UTC. NaN and infinity are data: of ratios, NaN says that there was none, and `status` why. A live
    run is read as it stands at each call. For what does not fit into memory there is `batches`.

    Attributes:
        path: the run directory.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tables = _tables_of(path)
        except JournalError:  # perhaps it was rolled, and its journal removed, between two looks
            self._tables = _tables_of(path)
        self.path = self._tables.run_dir

    @property
    def summary(self) -> RunSummary:
        """Who it is, how far it came, and what of it is missing; reads all that is new since the last time."""
        return self._tables.summary()

    def gradients(
        self,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.Table:
        """A row for each pass of each seed: ratio = leaving / entering, ‖∂L/∂x‖₂ and ‖∂L/∂y‖₂ of that one pass.

        `vanishing`, `exploding` and `status` are those of the epoch so far. Raises InputError for what is not there.
        """
        return self.batches("gradients", columns, env, slot, epochs).read_all()

    def epochs(
        self,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.Table:
        """A row for each slot and completed epoch: the gain of all its passes taken as one batch, and the verdict.

        Accuracies are in percent, losses in the task's unit. Raises InputError for what is not there.
        """
        return self.batches("epochs", columns, env, slot, epochs).read_all()

    def seeds(
        self,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.Table:
        """A row for each life: from birth, through its stages, to what it died of; null is what has not come.

        `last_ratio` is that of the last epoch in which one was measured. Raises InputError for what is not there.
        """
        return self.batches("seeds", columns, env, slot, epochs).read_all()

    def alerts(
        self,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.Table:
        """A row for each alert, with its evidence and what it asked for; `cleared_epoch` is null while it is open.

        Raises InputError for what is not there.
        """
        return self.batches("alerts", columns, env, slot, epochs).read_all()

    def events(
        self,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.Table:
        """A row for each event in the order they were written, with the words of the log; null where unreadable.

        Raises InputError for what is not there.
        """
        return self.batches("events", columns, env, slot, epochs).read_all()

    def batches(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        env: int | None = None,
        slot: str | None = None,
        epochs: tuple[int, int] | None = None,
    ) -> pa.RecordBatchReader:
        """The table of that name as a stream that takes bounded memory, however large the run is.

        Raises:
            InputError: there is no such table or column.
            JournalError: the run cannot be read; also from the stream, if that shows only later.
        """
        asked = None if columns is None else tuple(columns)
        return self._tables.batches(Selection(table=table, columns=asked, env=env, slot=slot, epochs=epochs))

    def scannable(self, table: str) -> Any:
        """The table as a pyarrow dataset, for an engine such as DuckDB, which pushes down into it what it wants of it.

        It may do so as often as it likes: what is not rolled is made anew each time.
        """
        return self._tables.scannable(table)

    @property
    def failure(self) -> JournalError | None:
        """What last went wrong within a stream: an engine that read it may tell of it in words of its own."""
        return self._tables.failure

    def close(self) -> None:
        """Let go of the files."""
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _tables_of(path: Path) -> "Tables":
    """Those in Parquet, unless the journal has more, or it is the journal that is asked for."""
    if path.is_dir():
        run_dir = path.resolve()
        if (manifest := preferred(run_dir)) is not None:
            return RolledTables(run_dir / ROLLED_NAME, manifest)
    return JournalTables(path)


class Tables(Protocol):
    """Where the tables of a run come from."""

    run_dir: Path
    failure: JournalError | None

    def summary(self) -> RunSummary:
        """Of the run as it stands."""

    def batches(self, selection: Selection) -> pa.RecordBatchReader:
        """What is selected, as a stream."""

    def scannable(self, table: str) -> Any:
        """What an engine takes that takes Arrow."""

    def close(self) -> None:
        """Let go of the files."""


class JournalTables:
    """The tables of a run whose journal is there, made when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.rows = JournalRows(path)
        self.failure: JournalError | None = None
        self.run_dir = self.rows.run_dir
        self._skipped: Counter[str] = Counter()
        self._seen = 0

    def summary(self) -> RunSummary:
        """Of the run as it stands."""
        newest = self.rows.last_id()
        self._skipped += self.rows.unreadable(self._seen)
        self._seen = newest
        try:
            return summarize(self.rows.path, self.rows, self._skipped)
        except JournalError:
            if (manifest := preferred(self.run_dir)) is None:
                raise
            return manifest.summary  # it was rolled meanwhile, and its journal removed

    def batches(self, selection: Selection) -> pa.RecordBatchReader:
        """What is selected, as a stream."""
        return pa.RecordBatchReader.from_batches(selection.schema, self._batches(selection))

    def scannable(self, table: str) -> Scannable:
        """What an engine takes that takes Arrow."""
        return of_journal(table, self.batches)

    def close(self) -> None:
        """Let go of the journal."""
        self.rows.close()

    def _batches(self, selection: Selection) -> Iterator[pa.RecordBatch]:
        rows, wanted = self.rows, selection.needed
        try:
            match selection.table:
                case "gradients":
                    batches = gradient_batches(rows, selection, wanted)
                case "epochs":
                    batches = epoch_batches(rows, selection, wanted)
                case "seeds":
                    batches = seed_batches(rows, selection.env, wanted)
                case "alerts":
                    batches = alert_batches(rows, selection.env, wanted)
                case _:
                    batches = event_batches(rows, selection, wanted)
            for batch in batches:
                yield selection.of(batch)
        except JournalError as error:
            self.failure = error
            raise
        except (OverflowError, pa.ArrowInvalid) as error:
            raise JournalError(
                f"{rows.path} holds numbers that no run has ({error}): restore it from a copy"
            ) from error
