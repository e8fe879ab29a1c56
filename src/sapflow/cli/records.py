"""`sapflow records`: what each field of a seed's telemetry means, and whether its wires hold."""

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from sapflow.cli.console import console
from sapflow.cli.extras import needs
from sapflow.errors import MissingExtraError
from sapflow.telemetry.record_page import render
from sapflow.telemetry.records import all_records, record


def list_records() -> None:
    """List all records."""
    table = Table(title="telemetry records", title_justify="left")
    for heading in ("id", "field", "type", "question"):
        table.add_column(heading, no_wrap=heading == "id")
    for entry in all_records():
        table.add_row(*map(Text, (entry.id, entry.field, entry.data.type, entry.purpose.question)))
    console.print(table)


def show(record_id: str, /) -> None:
    """Print a record's page; its Tested box is computed by following the value through the whole house."""
    entry = record(record_id)
    try:
        with needs("the verification", "all"):
            from sapflow.verification import is_tested
    except MissingExtraError:  # a viewer without torch: the page says how the box is computed
        tested = None
    else:
        tested = is_tested(entry.id)
    console.out(render(entry, tested), end="", highlight=False)


def verify(record_id: Annotated[str | None, Parameter(help="One record; by default all.")] = None, /) -> int:
    """Drive a real network through a backward pass and follow values, station by station, to the card."""
    wanted = all_records() if record_id is None else (record(record_id),)
    with needs("the verification", "all"):
        from sapflow.verification import verify as follow

    traces = follow([entry.id for entry in wanted])
    for trace in traces:
        outcome, style = ("BROKEN", "bold red") if trace.broken else ("holds", "bold")
        _print(f"{trace.record_id}  {trace.field}: {outcome}", style)
        for station in trace.stations:
            mark, style = ("✓", "") if station.holds else ("✗", "red")
            _print(f"  {mark} {station.name:<16} {station.value}", style)
    broken = sum(trace.broken for trace in traces)
    _print(f"{len(traces)} followed, {broken} broken", "bold")
    return 1 if broken else 0


def _print(text: str, style: str) -> None:
    console.print(Text(text, style=style), no_wrap=True, overflow="ellipsis", crop=True)
