"""`sapflow report`: what happened in a run, or in several, as one HTML page."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sapflow.cli.console import console, say
from sapflow.cli.extras import needs
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
    with needs("a report", "report"):
        from sapflow.history.output import check_writable, new_file
    if output != STDOUT:
        check_writable(output, force=force)
    with needs("a report", "report"):
        from sapflow.history.report.comparing import comparison_page
        from sapflow.history.report.page import run_page
        from sapflow.history.run import Run

    with ExitStack() as stack:
        opened = {name: [stack.enter_context(Run(path)) for path in paths] for name, paths in groups.items()}
        members = [run for each in opened.values() for run in each]
        page = run_page(members[0]) if len(members) == 1 else comparison_page(opened)
    content = page.encode()
    if output == STDOUT:
        _print(content)
        return
    with new_file(output, force=force) as file:
        file.write(content)
    say(f"{output}: {len(content) / 1e6:.1f} MB")


def _print(content: bytes) -> None:
    """As it is, whatever encoding the terminal has; a reader that leaves early (`| head`) is no error."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        console.on_broken_pipe()
