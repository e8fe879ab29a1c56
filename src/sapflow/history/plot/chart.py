"""A chart: a Matplotlib figure that says in words what it shows, and brings the values that it draws."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from io import BytesIO, StringIO
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from sapflow.history.arrow import pa
from sapflow.history.plot.palette import GRID, INK, MUTED, PAPER

Parameters = ParamSpec("Parameters")

PANEL_INCHES = (4.2, 2.9)
PANELS_A_ROW = 3
LEGEND_INCHES_BELOW = -0.42

# Everything that a user's own matplotlibrc could change is set: a report looks the same wherever it is made.
STYLE: tuple[str | dict[str, Any], ...] = (
    "default",
    {
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.4,
        "lines.markersize": 3.5,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,  # a name with two dollar signs is no formula
        "svg.fonttype": "none",
        "svg.hashsalt": "sapflow",  # the same data give the same file
    },
)


class Chart(Figure):
    """A figure with a title, a description for who cannot see it, and its data.

    Attributes:
        title: what it is, in a few words.
        description: what is drawn how, and what is left out.
        data: the values that are drawn, an Arrow table with a row a mark.
    """

    title: str
    description: str
    data: pa.Table

    def draw(self, renderer: RendererBase) -> None:
        """Draw it, in its own style and not in that of whoever asks."""
        with _styled():
            super().draw(renderer)

    def to_svg(self) -> str:
        """The figure as SVG with text as text; the same bytes for the same data."""
        buffer = StringIO()
        with _styled():
            self.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """What a notebook shows, whether or not pyplot was imported."""
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def styled(function: Callable[Parameters, Chart]) -> Callable[Parameters, Chart]:
    """Let a function that makes a chart work in the charts' style."""

    @wraps(function)
    def inner(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Chart:
        with _styled():
            return function(*args, **kwargs)

    return inner


@contextmanager
def _styled() -> Iterator[None]:
    """In the charts' style; a name in a script that the font lacks is worth no warning: viewers have other fonts."""
    with warnings.catch_warnings(), style.context(list(STYLE)):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_chart(title: str, panels: int = 1, size: tuple[float, float] = PANEL_INCHES) -> tuple[Chart, list[Axes]]:
    """A chart with `panels` axes of `size` inches each, at most three a row."""
    columns = min(panels, PANELS_A_ROW) or 1
    rows = -(-panels // columns) or 1
    chart = Chart(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    chart.title, chart.description, chart.data = title, "", pa.table({})
    axes = [chart.add_subplot(rows, columns, number + 1) for number in range(panels or 1)]
    for each in axes:
        each.grid(axis="y", linewidth=0.6)
        each.set_axisbelow(True)
    axes[0].set_title(title)
    return chart, axes


def say_nothing_to_draw(axes: Axes, why: str) -> None:
    """An empty picture says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=MUTED, wrap=True, transform=axes.transAxes)


def data_of(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The drawn values as a table with these columns."""
    schema = pa.schema(list(columns.items()))
    return pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema=schema)


def by_epoch(axes: Axes) -> None:
    """Epochs are whole numbers, even where there is only one."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_below(axes: Axes, handles: list[Any], labels: list[str]) -> None:
    """A legend under the axes, whose labels may begin with anything."""
    if handles:
        columns = 1 if max(map(len, labels)) > 26 else 2
        figure = axes.get_figure(root=True)
        assert figure is not None
        below = axes.transAxes + ScaledTranslation(-0.3, LEGEND_INCHES_BELOW, figure.dpi_scale_trans)
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=columns,
            borderaxespad=0, handlelength=2.6, columnspacing=1.2,
        )  # fmt: skip
