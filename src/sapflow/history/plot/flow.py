"""What leaves a seed against what enters it, an epoch a point."""

import math
from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sapflow.history.arrow import pa
from sapflow.history.plot.chart import Chart, data_of, legend_below, new_chart, say_nothing_to_draw, styled
from sapflow.history.plot.palette import BLUISH_GREEN, INK, MUTED, ORANGE, VERMILLION
from sapflow.history.plot.places import LARGEST_DRAWN, Row, lives_of, not_measured
from sapflow.history.plot.ratio_axis import power_label
from sapflow.history.plot.thinning import thinned
from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import Measurement

COLUMNS = {
    "env": pa.int32(), "slot": pa.string(), "seed": pa.string(), "epoch": pa.int32(), "entering": pa.float64(),
    "leaving": pa.float64(), "verdict": pa.string(),
}  # fmt: skip
NEEDED = ("entering", "leaving", "ratio", "status", "vanishing", "exploding", "non_finite")
LOOKS = {"exploding": (VERMILLION, "^"), "vanishing": (ORANGE, "v"), "not flagged": (BLUISH_GREEN, "o")}
GAINS = ((0.5, (0, (4, 2))), (1.0, "-"), (2.0, (0, (1.5, 1.5))))
MOST_POINTS = 3_000
MANY_DECADES = 300.0
SMALLEST_DRAWN = 1e-100


@styled
def flow(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """Leaving against entering norms on logarithmic axes, with the lines of gain 0.5, 1 and 2.

    Lives longer than 120 epochs are thinned with every extreme kept; of more than 3,000 points every n-th is drawn, and
    those with the smallest and the largest ratio.
    """
    lives = lives_of(run, NEEDED, envs, slots)
    measured = [row for life in lives for row in thinned(life.rows) if row["status"] == Measurement.MEASURED]
    rows = [_judged(row) for row in measured if _has_place(row["entering"]) and _has_place(row["leaving"])]
    nowhere = len(measured) - len(rows)
    unmeasured = sum(not_measured(row) for life in lives for row in life.rows)
    points = _bounded(rows)
    left_out = len(rows) - len(points)
    chart, (axes,) = new_chart("Entering against leaving gradient")
    chart.description = (
        "Norm of the gradient that leaves a seed against the norm of what enters it, a point an epoch and seed, on "
        "logarithmic axes, with the lines of gain 0.5, 1 and 2. Where nothing leaves, the point stands on the rail at "
        f"0. Epochs without a measurement, which have no point: {unmeasured}."
        + (f" Measured epochs with a norm that has no place here, such as infinity: {nowhere}." if nowhere else "")
        + (f" Points left out, evenly, but for the extremes: {left_out}." if left_out else "")
    )
    chart.data = data_of(points, COLUMNS)
    if not points:
        say_nothing_to_draw(axes, "nothing was measured that has a place here" if nowhere else "nothing was measured")
        return chart
    _draw(axes, points)
    return chart


def _has_place(norm: float) -> bool:
    return norm == 0 or SMALLEST_DRAWN <= norm <= LARGEST_DRAWN


def _judged(row: Row) -> Row:
    verdict = "exploding" if row["exploding"] else "vanishing" if row["vanishing"] else "not flagged"
    return {**row, "verdict": verdict}


def _bounded(rows: list[Row]) -> list[Row]:
    """Of too many every n-th, so that the picture stays what it was, and the rows with the extremes."""
    every = -(-len(rows) // MOST_POINTS)
    if every <= 1:
        return rows
    extremes = [min(rows, key=lambda row: row["ratio"]), max(rows, key=lambda row: row["ratio"])]
    return [row for number, row in enumerate(rows) if number % every == 0 or row in extremes]


def _draw(axes: Axes, points: list[Row]) -> None:
    positive = [norm for row in points for norm in (row["entering"], row["leaving"]) if norm > 0] or [1.0]
    low, high = min(positive) / 2, max(positive) * 2
    zero = low / 2
    handles, labels = [], []
    for gain, dash in GAINS:
        (line,) = axes.plot([low, high], [low * gain, high * gain], color=MUTED if gain != 1 else INK,
                            linestyle=dash, linewidth=0.9, zorder=0.8)  # fmt: skip
        handles.append(line)
        labels.append(f"gain {gain:g}")
    for verdict, (colour, marker) in LOOKS.items():
        chosen = [row for row in points if row["verdict"] == verdict]
        if not chosen:
            continue
        (line,) = axes.plot(
            [row["entering"] or zero for row in chosen], [row["leaving"] or zero for row in chosen],
            marker, color=colour, markersize=3.2, alpha=0.75, linewidth=0, label=verdict,
        )  # fmt: skip
        handles.append(line)
        labels.append(verdict)
    axes.set_xscale("log")
    axes.set_yscale("log")
    digits = (1.0,) if high / low > MANY_DECADES else (1.0, 2.0, 5.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=digits, numticks=8))
        axis.set_major_formatter(FuncFormatter(_norm_label))
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    if any(row["leaving"] == 0 for row in points):
        axes.set_ylim(zero / 1.3, high)
        axes.axhline(zero, color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)))
        axes.text(low * 1.1, zero * 1.1, "nothing leaves (0)", color=MUTED, va="bottom", fontsize=7.5)
    axes.set_xlabel("entering ‖∂L/∂y‖")
    axes.set_ylabel("leaving ‖∂L/∂x‖")
    legend_below(axes, handles, labels)


def _norm_label(value: float, _place: int | None = None) -> str:
    exponent = math.log10(value)
    return power_label(10, round(exponent)) if exponent == round(exponent) and abs(exponent) > 2 else f"{value:g}"
