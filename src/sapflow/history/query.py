"""SQL over runs: DuckDB in memory, which can read nothing but the tables of these runs, and write nothing at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from msgspec.structs import asdict

from sapflow.errors import InputError, MissingExtraError
from sapflow.history.arrow import pa
from sapflow.history.run import Run
from sapflow.history.schemas import TABLES, TIME
from sapflow.history.summary import RunSummary

try:
    import duckdb
except ModuleNotFoundError as missing:
    raise MissingExtraError("SQL over runs", "history") from missing

BATCH_ROWS = 10_000
MEMORY = "2GB"
MOST_THREADS = 4

RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("run_id", pa.string()),
        ("task", pa.string()),
        ("state", pa.string()),
        ("started", TIME),
        ("ended", TIME),
        ("envs", pa.int64()),
        ("epochs", pa.int64()),
        ("rng_seed", pa.int64()),
        ("versions", pa.map_(pa.string(), pa.string())),
        ("grown", pa.int64()),
        ("pruned", pa.int64()),
        ("fossilized", pa.int64()),
        ("alerts", pa.int64()),
        ("dropped_events", pa.int64()),
        ("dropped_samples", pa.int64()),
        ("skipped", pa.int64()),
    ]
)


@contextmanager
def asked(runs: Mapping[str, Run], sql: str) -> Iterator[pa.RecordBatchReader]:
    """The answer to one question in SQL, as a stream; inside the context.

    The tables are those of a run, and `runs`, a row a run. Over several runs each table begins with a column `run`, the
    names in `runs`. Nothing is read that the question does not ask for.

    Raises:
        InputError: it is no question, cannot be answered, would touch files or the network, or takes too much memory.
        JournalError: a run cannot be read.
    """
    with duckdb.connect(":memory:", config=_confined()) as connection, _explained(runs):
        _refuse_more_than_a_question(connection, sql)
        for name, scannable in _relations(runs):
            connection.register(name, scannable)
        for table, columns in TABLES.items():
            connection.execute(f"CREATE VIEW {table} AS {_view(table, columns.names, list(runs))}")
        answer = connection.sql(sql).to_arrow_reader(BATCH_ROWS)
        _refuse_twins(answer.schema.names)
        yield pa.RecordBatchReader.from_batches(answer.schema, _batches(answer, runs))


def _confined() -> dict[str, str | bool | int | float | list[str]]:
    """The settings of an engine that stays within its memory, and that no SQL can change."""
    return {
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,  # else it would take variables of ours for tables
        "temp_directory": "",
        "memory_limit": MEMORY,
        "threads": min(os.cpu_count() or 1, MOST_THREADS),
        "lock_configuration": True,
    }


def _refuse_more_than_a_question(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    kinds = duckdb.StatementType
    if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN):
        raise InputError(f"a query is one SELECT, not {sql.strip()!r}: see docs/history.md for the tables")


def _refuse_twins(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two columns of the answer are called {name!r}: tell them apart with AS")


def _relations(runs: Mapping[str, Run]) -> Iterator[tuple[str, object]]:
    """What the views are made of, by name."""
    for number, run in enumerate(runs.values()):
        for table in TABLES:
            yield f"_{table}_{number}", run.scannable(table)
    yield "runs", _Runs(runs)


def _view(table: str, columns: list[str], runs: list[str]) -> str:
    """The table of one run, or of all of them with their names."""
    names = ", ".join(f'"{name}"' for name in columns)
    if len(runs) == 1:
        return f"SELECT {names} FROM _{table}_0"
    return " UNION ALL ".join(
        f"SELECT {_text(run)} AS run, {names} FROM _{table}_{number}" for number, run in enumerate(runs)
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


class _Runs:
    """The table of the runs themselves, made when it is asked for."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self._runs = runs

    def __arrow_c_schema__(self) -> object:
        return RUNS.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        rows = [_row(name, run.summary) for name, run in self._runs.items()]
        return pa.Table.from_pylist(rows, RUNS).__arrow_c_stream__(requested_schema)


def _row(name: str, summary: RunSummary) -> dict[str, object]:
    values = asdict(summary)
    skipped, versions = sum(summary.skipped.values()), list(summary.versions.items())
    return {**values, "run": name, "state": summary.state.value, "skipped": skipped, "versions": versions}


def _batches(answer: pa.RecordBatchReader, runs: Mapping[str, Run]) -> Iterator[pa.RecordBatch]:
    with _explained(runs):
        yield from answer


@contextmanager
def _explained(runs: Mapping[str, Run]) -> Iterator[None]:
    """What the engine says, as one line; of Ctrl-C and of a run that cannot be read, what we say."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if "interrupt" in str(error).lower():
            raise KeyboardInterrupt from error
        for failure in filter(None, (run.failure for run in runs.values())):
            raise failure from error
        raise InputError(" ".join(str(error).partition("\n\nLINE ")[0].split())) from error
    except RuntimeError as error:
        if "interrupt" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
