"""Two envs side by side, of one run or of two: what each was at the end of its epochs, on one axis."""

from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import NamedTuple

from msgspec import Struct

from sapflow.sanctum.chart import (
    Axis,
    Curve,
    Frame,
    Guide,
    Point,
    chart,
    decades,
    epoch_axis,
    linear,
    margin_of,
    octaves,
)
from sapflow.sanctum.glyphs import ORANGE, SKY_BLUE
from sapflow.sanctum.numbers import compact
from sapflow.sanctum.slot_charts import band_guides
from sapflow.sanctum.slot_history import epochs_of
from sapflow.sanctum.spans import DIM, Line, clean, fit, line, slot_name, spaced
from sapflow.telemetry.events import EpochCompleted, SeedTelemetry
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import Measurement

COLUMNS = 200  # epochs that are read of a long run
MARGIN = 8  # at least
SLOT_LIMIT = 64  # charts of slots
STYLES = SKY_BLUE, ORANGE
NAMES = "A", "B"

Value = Callable[[EpochCompleted], float | None]


class Side(Struct, frozen=True, kw_only=True):
    """One of the two: an env of a run, and its epochs, oldest first, all of them or some where there are too many."""

    run: str
    env_id: int
    epochs: tuple[EpochCompleted, ...] = ()

    @property
    def last(self) -> int:
        """Its last epoch."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def known(self) -> set[int]:
        """The numbers of its epochs."""
        return {payload.epoch for payload in self.epochs}

    def points(self, value: Value) -> list[Point]:
        """The value at the end of each epoch; NaN where there is none."""
        values = ((payload.epoch, value(payload)) for payload in self.epochs)
        return [(float(epoch), nan if found is None else found) for epoch, found in values]


def last_epoch_of(source: Source, env_id: int, until: int | None) -> int:
    """The last epoch that the env has completed, at or before `until`.

    Raises:
        JournalError: the journal cannot be read.
    """
    moment = source.moment(env_id, until)
    return (moment.epoch or 0) if moment is not None else 0


def read_side(source: Source, env_id: int, last: int, common: int) -> Side:
    """The env up to epoch `last`, by index; with epoch `common`, to which the other one came too.

    Raises:
        JournalError: the journal cannot be read.
    """
    events = epochs_of(source, env_id, 1, last, COLUMNS)
    met = source.moment(env_id, common)
    found = [event.payload for event in (*events, *((met,) if met is not None else ()))]
    by_epoch = {payload.epoch: payload for payload in found if isinstance(payload, EpochCompleted)}
    return Side(run=source.run_dir.name, env_id=env_id, epochs=tuple(by_epoch[epoch] for epoch in sorted(by_epoch)))


def side_line(which: int, side: Side, two_runs: bool, width: int) -> Line:
    """Which env it is, how it is drawn, and where it stands."""
    run = f"{clean(side.run, 40)}  " if two_runs else ""
    how = "───" if which == 0 else "─ ─"
    return fit(
        spaced(
            (
                line((f"{NAMES[which]} {how} ", f"bold {STYLES[which]}"), (f"{run}env {side.env_id:02}", "bold")),
                line((f"epoch {side.last}", "")),
            )
        ),
        width,
    )


class _Measure(NamedTuple):
    """What one chart draws: the points of both sides, on an axis that has room for them."""

    title: str
    points: tuple[Sequence[Point], Sequence[Point]]
    axis: Axis
    guides: Sequence[Guide]


def comparison_lines(a: Side, b: Side, width: int, rows: int) -> list[Line]:
    """A chart for the accuracy, the loss and each slot's ratio, below each other, each of `rows` lines in all."""
    measures = [
        _measure("accuracy, %", a, b, lambda epoch: epoch.accuracy, linear),
        _measure("validation loss", a, b, lambda epoch: epoch.validation_loss, decades),
        *(
            _measure(f"ratio in {slot_name(slot_id, 30)}", a, b, _ratio_in(slot_id), octaves, band_guides())
            for slot_id in _slots(a, b)
        ),
    ]
    margin = max(margin_of((measure.axis for measure in measures), rows - 1), MARGIN)
    frame = Frame(0.5, max(a.last, b.last, 1) + 0.5, max(width - margin - 1, 1), margin)
    return [*(part for measure in measures for part in _chart(measure, a, b, frame, rows)), _axis_line(frame)]


def _measure(
    title: str,
    a: Side,
    b: Side,
    value: Value,
    make_axis: Callable[[Sequence[float]], Axis],
    guides: Sequence[Guide] = (),
) -> _Measure:
    points = a.points(value), b.points(value)
    return _Measure(title, points, make_axis([y for side in points for _, y in side]), guides)


def _axis_line(frame: Frame) -> Line:
    """The epochs; here an epoch's end is a point, not a stretch."""
    return epoch_axis(Frame(frame.first - 0.5, frame.last - 0.5, frame.columns, frame.margin))


def _slots(a: Side, b: Side) -> Sequence[str]:
    latest = (seed.slot_id for side in (a, b) for payload in side.epochs[-1:] for seed in payload.seeds)
    return list(dict.fromkeys(latest))[:SLOT_LIMIT]


def _ratio_in(slot_id: str) -> Value:
    def value(payload: EpochCompleted) -> float | None:
        return next((_measured(seed) for seed in payload.seeds if seed.slot_id == slot_id), None)

    return value


def _measured(seed: SeedTelemetry) -> float | None:
    return seed.grad_ratio if seed.measurement is Measurement.MEASURED else None


def _chart(measure: _Measure, a: Side, b: Side, frame: Frame, rows: int) -> list[Line]:
    title, points, axis, guides = measure
    curves = (
        Curve(points[0], lambda _: STYLES[0], joined=True),
        Curve(points[1], lambda _: STYLES[1], joined=True, dashed=True),
    )
    head = [line(("─ ", DIM), (title, "bold"), ("  ", ""))]
    head += [
        line((f"{name} {_number(side)}  ", style)) for name, side, style in zip(NAMES, points, STYLES, strict=True)
    ]
    head.append(line((_difference(a, b, points), DIM)))
    title_line = fit(line(*(span for part in head for span in part)), frame.margin + frame.columns)
    return [title_line, *chart(curves, guides, axis, frame, rows - 1)]


def _difference(a: Side, b: Side, points: tuple[Sequence[Point], Sequence[Point]]) -> str:
    """How far apart the two are at the last epoch that both have."""
    common = max(a.known & b.known, default=None)
    if common is None:
        return "A − B --"
    at = float(common)  # as points are kept: the whole numbers beyond 2**53 are not all told apart
    difference = dict(points[0])[at] - dict(points[1])[at]
    return f"A − B {f'{difference:+.3g}' if isfinite(difference) else '--'} at epoch {common}"


def _newest(points: Sequence[Point]) -> float:
    return points[-1][1] if points else nan


def _number(points: Sequence[Point]) -> str:
    newest = _newest(points)
    return "--" if newest != newest else compact(newest)
