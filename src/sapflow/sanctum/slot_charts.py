"""How a slot's history looks: its ratio, its norms, its life and its turns, all on one axis of epochs."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, inf, isfinite, log2

from sapflow.sanctum.chart import Axis, Curve, Frame, Guide, Point, chart, decades, epoch_axis, margin_of, octaves
from sapflow.sanctum.glyphs import (
    BLUISH_GREEN,
    CONDITION_GLYPHS,
    CONDITION_STYLES,
    EVENT_MARKS,
    ORANGE,
    SKY_BLUE,
    STAGE_GLYPHS,
    STAGE_STYLES,
)
from sapflow.sanctum.numbers import healthy_band, humanised
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.slot_history import SlotHistory
from sapflow.sanctum.spans import DIM, Line, Span, clean, fit, line, merged
from sapflow.telemetry.events import HISTOGRAM_LOWEST_OCTAVE, SeedGerminated, SeedStageChanged, SeedTelemetry
from sapflow.telemetry.vocabulary import EventType, Measurement, SeedStage

RIGHT_MARGIN = 1
LEAVING_MARK = "×"
LEAST_MARGIN = 7  # what "epoch" takes
MARKED = {
    EventType.ALERT_RAISED: 3,
    EventType.NON_FINITE_FOUND: 4,
    EventType.ACTION_TAKEN: 2,
    EventType.REQUEST_ANSWERED: 2,
    EventType.ALERT_CLEARED: 1,
}  # where several fall on one cell, the greatest is shown


def frame_of(history: SlotHistory, width: int, rows: int) -> Frame:
    """Where the charts of a slot stand at `width` cells, so that they share their x axis."""
    margin = max(margin_of((_ratio_axis(history), decades(_norms(history))), rows), LEAST_MARGIN)
    return Frame(history.first - 1, history.last, max(width - margin - RIGHT_MARGIN, 1), margin)


def ratio_chart(history: SlotHistory, frame: Frame, rows: int) -> list[Line]:
    """The ratio of each pass as a dot and of each epoch as a line, over octaves; the band's ends are drawn through."""
    passes = Curve([(each.at, each.ratio) for each in history.passes], state_style)
    epochs = Curve(_measured(history, lambda seed: seed.grad_ratio), lambda ratio: f"bold {state_style(ratio)}", True)
    return chart((passes, epochs), band_guides(), _ratio_axis(history), frame, rows)


def band_guides() -> list[Guide]:
    """The healthy band's ends and its middle, on an axis of octaves."""
    band = healthy_band()
    return [
        Guide(0.0, DIM, "┈"),
        Guide(log2(band.lower), BLUISH_GREEN),
        Guide(log2(band.upper), BLUISH_GREEN),
    ]


def norm_chart(history: SlotHistory, frame: Frame, rows: int) -> list[Line]:
    """The norms that enter and that leave, of each pass where it is known, else of each epoch's passes in the mean."""
    if history.passes:
        entering: Sequence[Point] = [(each.at, each.entering) for each in history.passes]
        leaving: Sequence[Point] = [(each.at, each.leaving) for each in history.passes]
    else:
        entering = _measured(history, lambda seed: seed.entering_norm / max(seed.passes, 1) ** 0.5)
        leaving = _measured(history, lambda seed: seed.leaving_norm / max(seed.passes, 1) ** 0.5)
    joined = not history.passes
    curves = (
        Curve(entering, lambda _: SKY_BLUE, joined),
        Curve(leaving, lambda _: ORANGE, joined, dashed=joined, mark="" if joined else LEAVING_MARK),
    )
    return chart(curves, (), decades(_norms(history)), frame, rows)


def norm_legend(history: SlotHistory) -> Line:
    """Which of the norms is which, by colour and by shape."""
    dots, marks = ("···", LEAVING_MARK * 3) if history.passes else ("───", "─ ─")
    return line((f"{dots} entering", SKY_BLUE), ("  ", ""), (f"{marks} leaving", ORANGE), ("  norms of passes", DIM))


def state_style(ratio: float) -> str:
    """The colour of a ratio by itself: healthy, vanishing or exploding."""
    band = healthy_band()
    if ratio > band.upper:
        return CONDITION_STYLES[Condition.EXPLODING].removeprefix("bold ")
    return CONDITION_STYLES[Condition.VANISHING].removeprefix("bold ") if ratio < band.lower else BLUISH_GREEN


def life_lines(history: SlotHistory, frame: Frame) -> list[Line]:
    """Three lines below a chart: the stages of the slot's seeds, what happened to them, and the epochs."""
    return [_stages(history, frame), _marks(history, frame), epoch_axis(frame)]


def _stages(history: SlotHistory, frame: Frame) -> Line:
    changes = [turn.payload for turn in history.turns if isinstance(turn.payload, SeedGerminated | SeedStageChanged)]
    seen = {epoch: seed.stage for epoch, seed in history.epochs}
    if changes:  # an epoch's own record may be of before or of after a change at its end
        seen[changes[0].epoch] = _stage_before(changes[0])
    cells: list[Span] = []
    stage, at = SeedStage.DORMANT, 0
    for column in range(frame.columns):
        until = frame.x_at(column) + (frame.last - frame.first) / frame.columns / 2
        before, at_before = stage, at
        while at < len(changes) and changes[at].epoch < until:
            stage, at = _stage_after(changes[at]), at + 1
        if not at:  # before the first change that is known; modules that are watched have none
            stage = seen.get(ceil(frame.x_at(column)), stage)
        changed = at > at_before or stage is not before
        idle = "·" if stage is SeedStage.DORMANT else "─"
        cells.append((STAGE_GLYPHS[stage] if changed else idle, STAGE_STYLES[stage]))
    return (_margin("stage", frame), *merged(cells))


def _stage_before(payload: SeedGerminated | SeedStageChanged) -> SeedStage:
    return payload.from_stage if isinstance(payload, SeedStageChanged) else SeedStage.DORMANT


def _stage_after(payload: SeedGerminated | SeedStageChanged) -> SeedStage:
    return payload.to_stage if isinstance(payload, SeedStageChanged) else SeedStage.GERMINATED


def _marks(history: SlotHistory, frame: Frame) -> Line:
    """Alerts, actions and the births of NaN where they happened; passes without a finite ratio as what they are."""
    cells: dict[int, tuple[int, Span]] = {}
    for each in history.passes:
        column = frame.column(each.at)
        if column is not None and not (isfinite(each.entering) and isfinite(each.leaving)):
            cells[column] = (0, (CONDITION_GLYPHS[Condition.NON_FINITE], CONDITION_STYLES[Condition.NON_FINITE]))
    for turn in history.turns:
        column, rank = frame.column(float(turn.epoch or 0)), MARKED.get(turn.type, 0)
        if column is not None and rank > cells.get(column, (0,))[0]:
            cells[column] = (rank, EVENT_MARKS[turn.type])
    drawn = merged([cells[column][1] if column in cells else (" ", "") for column in range(frame.columns)])
    return (_margin("marks", frame), *drawn)


def _margin(label: str, frame: Frame) -> Span:
    return (f"{label:>{frame.margin - 1}} ", DIM)


def spread_lines(seeds: Iterable[SeedTelemetry], width: int, rows: int) -> list[Line]:
    """How the ratios of single passes are spread, from the lowest octave to the highest that occurs.

    A row with a bar and a count is an octave, or several where there are not enough rows for one of each.
    """
    counts: dict[int, int] = {}
    for seed in seeds:
        for index, count in enumerate(seed.ratio_histogram):
            counts[index] = counts.get(index, 0) + count
    filled = [index for index, count in counts.items() if count > 0]
    if not filled:
        return [line(("no pass with a finite ratio", DIM))]
    lowest, highest = min(filled), max(filled)
    size = ceil((highest - lowest + 1) / max(rows, 1))
    parts = [range(max(last - size + 1, lowest), last + 1) for last in range(highest, lowest - 1, -size)]
    sums = [sum(counts.get(index, 0) for index in part) for part in parts]
    labels = [f"{_power(_octave(part[0]))} – {_power(_octave(part[-1]) + 1)}×" for part in parts]
    margin = max(map(len, labels))
    return [
        _bar(f"{label:>{margin}}", (_octave(part[0]) + _octave(part[-1]) + 1) / 2, count, max(sums), width)
        for part, label, count in zip(parts, labels, sums, strict=True)
    ]


def _octave(index: int) -> int:
    """The lower end of a bin of the histogram, as a power of 2."""
    return index - 1 + HISTOGRAM_LOWEST_OCTAVE


def _bar(label: str, middle: float, count: int, most: int, width: int) -> Line:
    room = width - len(label) - 8
    bar = "█" * (ceil(room * count / most) if count else 0) if room > 0 else ""
    style = state_style(2.0**middle)
    return line((f"{label} ", DIM), *fit(line((bar, style)), max(room, 0)), f" {humanised(count):>6}")


def _power(exponent: int) -> str:
    if abs(exponent) > -HISTOGRAM_LOWEST_OCTAVE:
        return "0" if exponent < 0 else "∞"
    return str(2**exponent) if exponent >= 0 else f"1/{2**-exponent}"


def _measured(history: SlotHistory, value: Callable[[SeedTelemetry], float]) -> list[Point]:
    """The value at the end of each epoch, in its middle on the axis; NaN where it was not measured."""
    nothing = float("nan")
    return [
        (epoch - 0.5, value(seed) if seed.measurement is Measurement.MEASURED else nothing)
        for epoch, seed in history.epochs
    ]


def _ratio_axis(history: SlotHistory) -> Axis:
    ratios = [each.ratio for each in history.passes] + [
        ratio for _, ratio in _measured(history, lambda s: s.grad_ratio)
    ]
    return octaves(ratios)


def _norms(history: SlotHistory) -> Iterable[float]:
    if history.passes:
        return [norm for each in history.passes for norm in (each.entering, each.leaving) if 0 < norm < inf]
    per_epoch = (seed for _, seed in history.epochs)
    return [n / max(s.passes, 1) ** 0.5 for s in per_epoch for n in (s.entering_norm, s.leaving_norm) if 0 < n < inf]


def seed_names(history: SlotHistory, frame: Frame) -> Line:
    """Which seed stood in the slot when, above its stages."""
    cells = [" "] * frame.columns
    for turn in history.turns:
        if isinstance(turn.payload, SeedGerminated):
            column = frame.column(float(turn.payload.epoch)) or 0
            label = clean(f"{turn.payload.blueprint_id} {turn.payload.seed_id}", 24)
            if len(label) + column <= frame.columns and not "".join(cells[column : column + len(label) + 1]).strip():
                cells[column : column + len(label)] = label
    return (_margin("seed", frame), ("".join(cells), DIM))
