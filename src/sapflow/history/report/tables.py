"""A chart's or a run's values as rows of text, for a table in the page."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sapflow.history.arrow import pa
from sapflow.history.plot.palette import shown

LONGEST_TEXT = 160
NOTHING = "–"
HEADINGS = {
    "min_ratio": "smallest", "max_ratio": "largest", "non_finite": "not finite", "from_epoch": "from epoch",
    "to_epoch": "to epoch", "died_of": "died of", "since_epoch": "since", "raised_epoch": "raised",
    "cleared_epoch": "cleared", "cleared_reason": "because", "accuracy_delta": "accuracy Δ",
}  # fmt: skip


@dataclass(frozen=True)
class HtmlTable:
    """What a table of the page says; `caption` has the columns in which every row is the same."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(data: pa.Table, name: str) -> HtmlTable:
    """An Arrow table as text; columns that are the same in every row are said once, in the caption."""
    columns = {column: [cell(value) for value in data[column].to_pylist()] for column in data.column_names}
    same = {column: values[0] for column, values in columns.items() if len(values) > 1 and len(set(values)) == 1}
    rest = {column: values for column, values in columns.items() if column not in same}
    said = "".join(f"; {heading(column)}: {value}" for column, value in same.items() if value != NOTHING)
    return HtmlTable(
        caption=f"{name}{said}",
        headings=tuple(heading(column) for column in rest),
        rows=tuple(zip(*rest.values(), strict=True)),
    )


def pairs(name: str, headings: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> HtmlTable:
    """Rows of the same keys as a table."""
    return HtmlTable(
        name, tuple(map(heading, headings)), tuple(tuple(cell(row[key]) for key in headings) for row in rows)
    )


def heading(column: str) -> str:
    """What people call a column."""
    return HEADINGS.get(column, column)


def cell(value: Any) -> str:
    """A value as text of bounded length: numbers with four digits, NaN and infinity as what they are."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, list | tuple):
        return shown(", ".join(map(str, value)), LONGEST_TEXT) or NOTHING
    return shown(str(value), LONGEST_TEXT)


def number(value: float) -> str:
    """A number with four digits."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.4g}".replace("inf", "∞").replace("-", "−")
