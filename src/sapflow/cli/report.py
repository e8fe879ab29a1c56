"""`sapflow report`: what happened in a run, or in several, as one HTML page."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sapflow.cli.console import say
from sapflow.cli.extras import needs
from sapflow.errors import InputError
from sapflow.history.report.groups import groups_of
from sapflow.telemetry import run_directory

STDOUT = Path("-")


def report(
    runs: tuple[Path, ...] = (),
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), allow_leading_hyphen=True)] = Path("report.html"),
    group: Annotated[tuple[str, ...], Parameter(help="NAME=RUN,RUN… to compare, may be repeated.")] = (),
    force: bool = False,
) -> None:
    """Write what happened in a run as one HTML page, which opens offline; several runs are compared.

    Parameters
    ----------
    runs:
        Run directories, by default the newest under runs/. Those in one directory, with names that differ in a number
        behind them, are a group.
    output:
        The file to write; "-" prints the page.
    group:
        NAME=RUN,RUN… to compare, may be repeated.
    force:
        Replace the file if it exists.
    """
    if not runs and not group:
        runs = (run_directory.newest(run_directory.RUNS),)
    groups = groups_of(runs, group)  # first what is wrong with the question, then what is wrong here
    if output != STDOUT:
        _check(output, force=force)
    with needs("reports", "report"):
        from sapflow.history.report.comparing import comparison_page
        from sapflow.history.report.page import run_page
        from sapflow.history.run import Run

    with ExitStack() as stack:
        opened = {name: [stack.enter_context(Run(path)) for path in paths] for name, paths in groups.items()}
        members = [run for each in opened.values() for run in each]
        page = run_page(members[0]) if len(members) == 1 else comparison_page(opened)
    if output == STDOUT:
        sys.stdout.write(page)
        return
    _write(output, page, force=force)
    say(f"{output}: {len(page.encode()) / 1e6:.1f} MB")


def _check(output: Path, *, force: bool) -> None:
    """What would keep the page from being written is said before it is made.

    Raises:
        InputError: and what to do about it.
    """
    if output.is_dir():
        raise InputError(f"{output} is a directory: name a file, as in -o {output / 'report.html'}")
    if output.exists() and not force:
        raise InputError(f"{output} exists: choose another name, or replace it with --force")
    if output.exists() and not output.is_file():
        raise InputError(f"{output} is no plain file: choose another name, or -o - to print")
    if not output.parent.is_dir():
        raise InputError(f"there is no directory {output.parent}: make it first")


def _write(output: Path, page: str, *, force: bool) -> None:
    """The whole page or nothing; a page that is to be replaced stays until the new one is whole.

    Raises:
        InputError: somebody made the file in the meantime, or it cannot be written.
    """
    place = output.with_name(f".{output.name}.unfinished") if force else output
    try:
        with place.open("w" if force else "x", encoding="utf-8") as file:
            file.write(page)
        if force:
            place.replace(output)
    except FileExistsError as error:
        raise InputError(f"{output} exists: choose another name, or replace it with --force") from error
    except OSError as error:
        place.unlink(missing_ok=True)
        raise InputError(f"{output} cannot be written ({error.strerror}): choose another place") from error
