"""Curves as lines of plain spans: the ratio's history on a card, and sparklines."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, copysign, inf, isfinite, isnan, log2, nan

from sapflow.sanctum.glyphs import BLOCKS, BLUISH_GREEN, CONDITION_STYLES
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.spans import DIM, Line, line, merged

ACCURACY_SPAN = 5.0  # percentage points: a trend of less is not drawn over the whole height
LOSS_SHARE = 0.2  # of the loss, likewise

_ROW_LABELS = {3: "64×", 2: "16×", 1: "4×", 0: "1×", -1: "¼×", -2: "1/16×", -3: "1/64×"}


def ratio_plot(history: Sequence[float], width: int, rows: int) -> list[Line]:
    """The ratio per epoch, the newest at the right: a row for each two octaves, the middle one is the healthy band.

    `rows` is odd. What lies beyond the rows is drawn at their edge; epochs without a measured ratio stay empty.
    """
    outermost = rows // 2
    labels = [_ROW_LABELS[row] for row in range(outermost, -outermost - 1, -1)]
    margin = max(map(len, labels))
    columns = width - margin - 1
    points = [_place(ratio, outermost) for ratio in history[-columns:]]
    lines = []
    for row, label in zip(range(outermost, -outermost - 1, -1), labels, strict=True):
        ground = ("─", BLUISH_GREEN) if row == 0 else ("┈", DIM)
        cells = [ground] * (columns - len(points)) + [
            (BLOCKS[point[1]], _plot_style(row)) if point and point[0] == row else ground for point in points
        ]
        lines.append(line((f"{label:>{margin}}", BLUISH_GREEN if row == 0 else DIM), *merged(cells)))
    return lines


def _place(ratio: float, outermost: int) -> tuple[int, int] | None:
    """The row of the plot and the height (0 to 7) in it; None where there is nothing to draw."""
    if isnan(ratio):
        return None
    if ratio <= 0:
        return (-outermost, 0)
    if ratio == inf:
        return (outermost, 7)
    double_octaves = log2(ratio) / 2
    row = int(copysign(ceil(abs(double_octaves) - 0.5), double_octaves))  # both ends of the band belong to it
    if abs(row) > outermost:
        return (outermost, 7) if row > 0 else (-outermost, 0)
    return (row, min(int((double_octaves - row + 0.5) * 8), 7))


def _plot_style(row: int) -> str:
    if row == 0:
        return f"bold {BLUISH_GREEN}"
    return CONDITION_STYLES[Condition.EXPLODING if row > 0 else Condition.VANISHING]


def accuracy_trend(values: Sequence[float], width: int) -> str:
    """The accuracies of epochs, in percent."""
    return sparkline(values, width, least_span=ACCURACY_SPAN)


def loss_trend(values: Sequence[float], width: int) -> str:
    """The losses of epochs."""
    return sparkline(values, width, least_share=LOSS_SHARE)


def sparkline(values: Sequence[float], width: int, least_span: float = 0.0, least_share: float = 0.0) -> str:
    """All the values as blocks, right-aligned in `width` cells; of more values each is the mean of its share.

    From the least to the greatest, but over `least_span` at least, and over `least_share` of the greatest size: what
    hardly moves is drawn as hardly moving.
    """
    shown = _resampled(values, width)
    finite = [value for value in shown if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low
    wanted = max(least_span, least_share * max(abs(low), abs(high)))
    if span < wanted:
        low, span = low - (wanted - span) / 2, wanted

    def bar(value: float) -> str:
        if not isfinite(value):
            return " "
        return BLOCKS[int(7 * ((value - low) / span))] if 0 < span < inf else BLOCKS[3]

    return "".join(map(bar, shown)).rjust(width)


def _resampled(values: Sequence[float], width: int) -> Sequence[float]:
    """At most `width` values: the means of equal parts, NaN where nothing in a part is finite."""
    if len(values) <= width:
        return values
    bounds = [len(values) * n // width for n in range(width + 1)] if width > 0 else []
    return [_mean(values[first:last]) for first, last in pairwise(bounds)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else nan
