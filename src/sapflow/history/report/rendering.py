"""Words, charts and tables become one HTML file: everything is in it, everything that is data is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import sapflow
from sapflow.errors import MissingExtraError
from sapflow.history.plot.chart import Chart
from sapflow.history.report.story import Line
from sapflow.history.report.svg import inline_svg
from sapflow.history.report.tables import HtmlTable, table_of

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
except ModuleNotFoundError as error:
    raise MissingExtraError("a report", "report") from error


@dataclass(frozen=True)
class Card:
    """A chart as it stands in the page."""

    svg: Markup
    title: str
    description: str
    table: HtmlTable


@dataclass(frozen=True)
class Section:
    """A part of the page below a heading."""

    key: str
    heading: str
    cards: Sequence[Card] = ()
    note: str = ""
    tables: Sequence[HtmlTable] = ()
    bullets: Sequence[str] = ()

    @property
    def description(self) -> str:
        """What several charts alike have in common: it stands above them, once."""
        said = {card.description for card in self.cards}
        return said.pop() if len(self.cards) > 1 and len(said) == 1 else ""


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    subtitle: str
    lines: Sequence[Line]
    sections: Sequence[Section]
    version: str = field(default=sapflow.__version__)


def card(chart: Chart, key: str) -> Card:
    """A chart with its table, under ids that begin with `key`."""
    # The only text that is not escaped by the template: it was written by an XML serializer, from escaped names.
    return Card(Markup(inline_svg(chart, key)), chart.title, chart.description, table_of(chart.data, chart.title))


def render(page: Page) -> str:
    """The page as HTML."""
    return _environment().get_template("page.html.j2").render(page=page)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
