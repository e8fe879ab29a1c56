"""SQL over runs: DuckDB in memory, which can read nothing but the tables of these runs, and write nothing at all."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from msgspec.structs import asdict

from sapflow.errors import InputError, MissingExtraError
from sapflow.history.arrow import pa, pc
from sapflow.history.manifest import summary_of
from sapflow.history.run import Run
from sapflow.history.scannable import Scannable
from sapflow.history.schemas import TABLES, TIME
from sapflow.history.summary import RunSummary

try:
    import duckdb
except ModuleNotFoundError as missing:
    raise MissingExtraError("SQL over runs", "history") from missing

BATCH_ROWS = 10_000
MEMORY = "2GB"
MOST_THREADS = 4
INTERVAL = re.compile(r'(?<!")\bINTERVAL\b(?!")')  # the type, and no field of that name
ENGINE_ERRORS = (duckdb.Error, pa.ArrowException, OSError)
PARTS = "parts"  # the schema in which each run's tables lie, where SHOW TABLES does not look
PLAN = ["explain_key", "explain_value"]

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
    names in `runs`. Nothing is made that the question does not ask for: no other columns and, as far as its conditions
    tell, no other env and no other epochs.

    Raises:
        InputError: it is no question, cannot be answered, would touch files or the network, or takes too much memory.
        JournalError: a run cannot be read.
    """
    with duckdb.connect(":memory:", config=_confined()) as connection:
        connection.execute("SET TimeZone = 'UTC'")  # which it knows only now
        with _explained(runs):
            answer = _answer(connection, runs, sql)
        with _explained(runs, (duckdb.Error, pa.ArrowException)):  # that a disk is full is no fault of the question
            yield answer


def _answer(connection: duckdb.DuckDBPyConnection, runs: Mapping[str, Run], sql: str) -> pa.RecordBatchReader:
    _refuse_more_than_a_question(connection, sql)
    _make_views(connection, runs)
    connection.execute("SET lock_configuration = true")
    relation = connection.sql(sql)
    _refuse_twins(relation.columns)
    if relation.columns == PLAN:
        return _lines(relation.fetchall())
    answer = _with_intervals_as_text(relation).to_arrow_reader(BATCH_ROWS)
    return pa.RecordBatchReader.from_batches(answer.schema, _batches(answer, runs))


def _confined() -> dict[str, str | bool | int | float | list[str]]:
    """The settings of an engine that reads and writes nothing, and stays within its memory."""
    return {
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,  # else it would take variables of ours for tables
        "temp_directory": "",
        "memory_limit": MEMORY,
        "threads": min(os.cpu_count() or 1, MOST_THREADS),
    }


def _refuse_more_than_a_question(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a query is text in UTF-8, not {sql.strip()!r}: leave out what is not") from error
    statements = connection.extract_statements(sql)
    kinds = duckdb.StatementType
    if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN):
        raise InputError(f"a query is one SELECT, not {sql.strip()!r}: see docs/history.md for the tables")


def _refuse_twins(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two columns of the answer are called {name!r}: tell them apart with AS")


def _make_views(connection: duckdb.DuckDBPyConnection, runs: Mapping[str, Run]) -> None:
    """The tables of one run, or of all of them with their names, and that of the runs.

    All runs of a table are joined in one statement: relations are bound anew at each of their steps.
    """
    connection.execute(f"CREATE SCHEMA {PARTS}")
    connection.execute(f"SET schema = {PARTS}")
    for table in TABLES:
        for number, run in enumerate(runs.values()):
            connection.from_arrow(run.scannable(table)).create_view(f"{table}_{number}")
    connection.execute("SET schema = main")
    for table, schema in TABLES.items():
        columns = ", ".join(map(_name, schema.names))
        parts = (
            f"SELECT {f'{_text(name)} AS run, ' if len(runs) > 1 else ''}{columns} FROM {PARTS}.{table}_{number}"
            for number, name in enumerate(runs)
        )
        connection.execute(f"CREATE VIEW {table} AS {' UNION ALL '.join(parts)}")
    connection.from_arrow(Scannable(RUNS, partial(_runs, runs))).create_view("runs")


def _with_intervals_as_text(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Neither Parquet nor Python has a span of so many months, days and microseconds."""
    types = [str(kind) for kind in relation.types]
    if not any(map(INTERVAL.search, types)):
        return relation
    return relation.project(
        ", ".join(
            f"CAST({_name(name)} AS {INTERVAL.sub('VARCHAR', kind)}) AS {_name(name)}"
            if INTERVAL.search(kind)
            else _name(name)
            for name, kind in zip(relation.columns, types, strict=True)
        )
    )


def _lines(plans: list[tuple[str, str]]) -> pa.RecordBatchReader:
    """What EXPLAIN answers, a row a line, since it is a drawing."""
    lines = [line for _, plan in plans for line in plan.splitlines()]
    return pa.table({"plan": lines}).to_reader()


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _runs(runs: Mapping[str, Run], columns: tuple[str, ...], _: pc.Expression | None) -> pa.RecordBatchReader:
    """The table of the runs themselves; only what `skipped` counts takes every event."""
    counted = "skipped" in columns
    rows = [_row(name, run.summary if counted else summary_of(run.path)) for name, run in runs.items()]
    return pa.Table.from_pylist(rows, RUNS).to_reader()


def _row(name: str, summary: RunSummary) -> dict[str, object]:
    values = asdict(summary)
    skipped, versions = sum(summary.skipped.values()), list(summary.versions.items())
    return {**values, "run": name, "state": summary.state.value, "skipped": skipped, "versions": versions}


def _batches(answer: pa.RecordBatchReader, runs: Mapping[str, Run]) -> Iterator[pa.RecordBatch]:
    with _explained(runs):
        yield from answer


@contextmanager
def _explained(runs: Mapping[str, Run], errors: tuple[type[Exception], ...] = ENGINE_ERRORS) -> Iterator[None]:
    """What the engine says, as one line; of Ctrl-C and of a run that cannot be read, what we say."""
    try:
        yield
    except errors as error:
        if "interrupt" in str(error).lower():
            raise KeyboardInterrupt from error
        for failure in filter(None, (run.failure for run in runs.values())):
            raise failure from error
        if "Out of Memory" in str(error):
            raise InputError(f"this takes more than {MEMORY} of memory: ask for less, or for sums of it") from error
        raise InputError(" ".join(str(error).partition("\n\nLINE ")[0].split())) from error
    except RuntimeError as error:
        if "interrupt" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
