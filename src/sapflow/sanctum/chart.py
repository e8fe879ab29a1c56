"""Charts in braille dots, eight to a cell, on a linear or a logarithmic axis: lines of plain spans.

A plotting library would bring numpy to every viewer, and nothing for terminals without Unicode.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from math import ceil, floor, inf, isfinite, isnan, log2

from msgspec import Struct

from sapflow.sanctum.numbers import compact
from sapflow.sanctum.spans import DIM, Line, Span, merged

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bit of each dot of a cell: two columns, four rows
BRAILLE = 0x2800
OCTAVES = 60  # what lies farther from 1 is drawn at the edge

Point = tuple[float, float]


class Scale(StrEnum):
    """How an axis counts: in the value itself, in factors of 2, or in powers of 10."""

    LINEAR = "linear"
    OCTAVES = "octaves"
    DECADES = "decades"


class Axis(Struct, frozen=True):
    """From `low` at the bottom to `high` at the top, both levels: on a logarithmic scale the log2 of the values."""

    low: float
    high: float
    scale: Scale = Scale.LINEAR

    def place(self, value: float) -> float | None:
        """Where the value stands between 0 and 1, what is beyond at the edge; None for NaN."""
        if isnan(value):
            return None
        if self.scale is not Scale.LINEAR:
            value = -inf if value <= 0 else log2(value)
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def label(self, level: float) -> str:
        """The name of a level, such as 0.31, 4×, 1/8× or 1e-03."""
        if self.scale is Scale.LINEAR:
            return compact(level)
        if self.scale is Scale.DECADES:
            return f"{2**level:.0e}"
        return f"{2**level:g}×" if level > -0.5 or level % 1 else f"1/{2**-level:g}×"

    def levels(self, rows: int) -> list[float]:
        """The levels that get a label: not more than one in three rows."""
        if self.scale is Scale.LINEAR:
            return [self.low, self.high] if rows < 7 else [self.low, (self.low + self.high) / 2, self.high]
        unit = 1.0 if self.scale is Scale.OCTAVES else log2(10)
        step = unit * max(ceil((self.high - self.low) * 3 / max(rows, 1) / unit), 1)
        return [step * n for n in range(ceil(self.low / step), floor(self.high / step) + 1)]


def octaves(values: Iterable[float], least: float = 2.5) -> Axis:
    """A logarithmic axis around 1 that has room for the values, and `least` octaves to each side at least."""
    known = [log2(value) for value in values if 0 < value < inf]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return Axis(max(min(low - 0.5, -least), -OCTAVES), min(max(high + 0.5, least), OCTAVES), Scale.OCTAVES)


def decades(values: Iterable[float]) -> Axis:
    """A logarithmic axis from the least to the greatest of the values, a decade at least."""
    known = [log2(value) for value in values if 0 < value < inf]
    low, high = min(known, default=0.0), max(known, default=0.0)
    missing = max(log2(10) * 1.1 - (high - low), 0.5) / 2
    return Axis(low - missing, high + missing, Scale.DECADES)


def linear(values: Iterable[float]) -> Axis:
    """An axis from the least to the greatest of the values."""
    known = [value for value in values if isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return Axis(low, high) if 0 < high - low < inf else Axis(low - 0.5 if abs(low) < 1e15 else 0.0, low + 0.5)


class Curve(Struct, frozen=True):
    """Points by ascending x, and how each looks by its y; `joined` by a line, but for gaps at NaN.

    A `dashed` curve leaves out two of four columns of dots, and one with a `mark` has that in the place of dots, in a
    cell each: they are told from others without colour.
    """

    points: Sequence[Point]
    style: Callable[[float], str]
    joined: bool = False
    dashed: bool = False
    mark: str = ""


class Guide(Struct, frozen=True):
    """A level line across the chart, behind all curves, at a level of the axis, with its label."""

    level: float
    style: str
    glyph: str = "─"


class Frame(Struct, frozen=True):
    """Where a chart stands: `columns` cells for x from `first` to `last`, behind a margin for the labels."""

    first: float
    last: float
    columns: int
    margin: int

    def column(self, x: float) -> int | None:
        """The cell above which x stands; None where it is not in the chart."""
        dot = self.dot(x)
        return None if dot is None else dot // 2

    def dot(self, x: float) -> int | None:
        """The column of dots at x; None where it is not in the chart."""
        if not self.first <= x <= self.last:
            return None
        dots = 2 * self.columns
        return min(int(dots * (x - self.first) / (self.last - self.first)), dots - 1)

    def x_at(self, column: int) -> float:
        """The middle of a cell."""
        return self.first + (column + 0.5) * (self.last - self.first) / self.columns


def chart(curves: Iterable[Curve], guides: Iterable[Guide], axis: Axis, frame: Frame, rows: int) -> list[Line]:
    """`rows` lines of frame.margin + frame.columns cells; later curves are drawn over earlier ones."""
    cells: dict[tuple[int, int], Span] = {}
    for curve in curves:
        _draw(curve, axis, frame, rows, cells)
    ground = {row_of(axis, guide.level, rows): guide for guide in guides if axis.low <= guide.level <= axis.high}
    labels = {row_of(axis, level, rows): level for level in axis.levels(rows)}
    labels |= {row: guide.level for row, guide in ground.items()}
    lines = []
    for row in range(rows):
        guide = ground.get(row)
        blank: Span = (guide.glyph, guide.style) if guide else (" ", "")
        label = axis.label(labels[row]) if row in labels else ""
        drawn = (cells.get((row, column), blank) for column in range(frame.columns))
        lines.append(merged([(f"{label:>{frame.margin - 1}} ", guide.style if guide else DIM), *drawn]))
    return lines


def row_of(axis: Axis, level: float, rows: int) -> int:
    """The row, counted from the top, in which a level of the axis stands."""
    return min(int((1 - (level - axis.low) / (axis.high - axis.low)) * rows), rows - 1)


def margin_of(axes: Iterable[Axis], rows: int) -> int:
    """The cells that the labels of the axes take, so that charts below each other stand on one x axis."""
    return 1 + max((len(axis.label(level)) for axis in axes for level in axis.levels(rows)), default=0)


def epoch_axis(frame: Frame) -> Line:
    """The numbers of the epochs below a chart in which epoch n takes the room from n - 1 to n."""
    first, last = floor(frame.first) + 1, max(ceil(frame.last), 1)
    every = max(ceil((last - first + 1) * (len(str(last)) + 3) / frame.columns), 1)
    cells = [" "] * frame.columns
    for epoch in (first, *range(first + every - (first - 1) % every, last + 1, every)):
        column = frame.column(epoch - 0.5)
        label = str(epoch)
        if column is None:
            continue
        place = cells[max(column - 1, 0) : column + len(label) + 1]
        if column + len(label) <= frame.columns and not "".join(place).strip():
            cells[column : column + len(label)] = label
    return ((" " * (frame.margin - 6) + "epoch ", DIM), ("".join(cells), DIM))


def _draw(curve: Curve, axis: Axis, frame: Frame, rows: int, cells: dict[tuple[int, int], Span]) -> None:
    before: tuple[int, int] | None = None
    for x, y in curve.points:
        place, column = axis.place(y), frame.dot(x)
        if place is None or column is None:
            before = None
            continue
        dot = (column, min(int((1 - place) * 4 * rows), 4 * rows - 1))
        for at in _between(before, dot) if curve.joined and before else (dot,):
            if not (curve.dashed and at[0] % 4 > 1):
                _set(cells, at, curve.style(y), curve.mark)
        before = dot


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """The dots of the line behind `start` up to `end`."""
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return ((round(x0 + (x1 - x0) * n / steps), round(y0 + (y1 - y0) * n / steps)) for n in range(1, steps + 1))


def _set(cells: dict[tuple[int, int], Span], dot: tuple[int, int], style: str, mark: str) -> None:
    x, y = dot
    cell = (y // 4, x // 2)
    before = ord(cells[cell][0]) if cell in cells else 0
    dots = before if before > BRAILLE else BRAILLE
    cells[cell] = (mark or chr(dots | DOTS[x % 2][y % 4]), style)
