"""`sapflow query`: a question in SQL to one run or to many; `sapflow export`: a whole table."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sapflow.cli.answers import Format, Output, check, put
from sapflow.cli.extras import needs
from sapflow.errors import InputError
from sapflow.telemetry.run_directory import JOURNAL_NAME


def query(
    runs_and_sql: tuple[str, ...] = (),
    /,
    *,
    how: Annotated[Format | None, Parameter(name="--format")] = None,
    output: Output = None,
    force: bool = False,
) -> None:
    """Ask runs in SQL: `sapflow query RUN… "SELECT …"`.

    The tables are gradients, epochs, seeds, alerts, events and runs; over several runs each has a column `run`.
    Nothing but these can be read, and nothing written.

    Parameters
    ----------
    runs_and_sql:
        Run directories, and then one SELECT in DuckDB's SQL.
    how:
        table, csv, json, parquet or arrow; by default what the file's name says, or a table.
    output:
        A file for the answer, in place of the terminal.
    force:
        Overwrite that file.
    """
    if len(runs_and_sql) < 2:
        raise InputError('name a run and ask: sapflow query RUN "SELECT …"')
    with needs("SQL over runs", "history"):
        from sapflow.history.query import asked
        from sapflow.history.run import open_run

    *paths, sql = runs_and_sql
    meant = check(output, how, force=force)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(open_run(path)) for name, path in _named(paths).items()}
        put(stack.enter_context(asked(runs, sql)), output, meant, force=force)


def export(
    run_dir: Path,
    table: str,
    /,
    *,
    output: Output = None,
    how: Annotated[Format | None, Parameter(name="--format")] = None,
    force: bool = False,
) -> None:
    """Write a whole table of a run into a file.

    Parameters
    ----------
    run_dir:
        A run directory.
    table:
        gradients, epochs, seeds, alerts or events.
    output:
        The file, whose name says the format: .csv, .json, .parquet or .arrow; without it, the terminal.
    how:
        The format, where the name does not say it.
    force:
        Overwrite that file.
    """
    with needs("exporting", "history"):
        from sapflow.history.run import open_run

    meant = check(output, how, force=force)
    with open_run(run_dir) as run:
        put(run.batches(table), output, meant, force=force)


def _run_of(place: Path) -> Path:
    """The directory of a run, which may be named by its journal."""
    return place.parent if place.name == JOURNAL_NAME else place


def _named(paths: list[str]) -> dict[str, str]:
    """The runs by their directories' names, or by their paths where names are the same.

    Raises:
        InputError: one of them is named twice.
    """
    places = [_run_of(Path(path).resolve()) for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path} is named more than once: a run counts once")
    names = [place.name for place in places]
    unique = len(set(names)) == len(names)
    return dict(zip(map(_text, names if unique else paths), paths, strict=True))


def _text(name: str) -> str:
    """Bytes that are no text are written as in Python."""
    return os.fsencode(name).decode(errors="backslashreplace")
