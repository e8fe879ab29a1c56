"""How a seed looks: pure functions from telemetry to lines of plain spans; the same on every screen."""

import time
from collections.abc import Sequence
from math import ceil, copysign, inf, isfinite, isnan, log2

from sapflow.sanctum.glyphs import (
    BLOCKS,
    BLUISH_GREEN,
    CONDITION_GLYPHS,
    CONDITION_STYLES,
    SKY_BLUE,
    STAGE_GLYPHS,
    STAGE_STYLES,
)
from sapflow.sanctum.schema import Condition, SeedState
from sapflow.sanctum.spans import DIM, Line, Span, box, clean, ends, fit, line, padded
from sapflow.telemetry.events import (
    HISTOGRAM_HIGHEST_OCTAVE,
    HISTOGRAM_LOWEST_OCTAVE,
    GradientHealth,
    SeedTelemetry,
)
from sapflow.telemetry.vocabulary import Measurement, SeedStage

NOTHING: Span = ("--", DIM)

_ROW_LABELS = {3: "64×", 2: "16×", 1: "4×", 0: "1×", -1: "¼×", -2: "1/16×", -3: "1/64×"}
_MEASUREMENT_WORDS = {
    Measurement.UNMEASURED: "no backward pass yet",
    Measurement.NO_GRADIENT: "no gradient entered",
    Measurement.INPUT_DETACHED: "the leaving gradient cannot be known",
    Measurement.NON_FINITE: "no pass had finite gradients",
    Measurement.PROBE_LOST: "it ran forward and its probe never fired",
}


def gradient_line(seed: GradientHealth) -> Line:
    """The line of TELE-557, to the letter: exploding before vanishing before the ratio before OK."""
    if seed.has_exploding:
        return line("Grad: ", ("▲ EXPLODING", "bold red"))
    if seed.has_vanishing:
        return line("Grad: ", ("▼ VANISHING", "bold yellow"))
    if seed.grad_ratio > 0:
        return line("Grad: ", (f"ratio={seed.grad_ratio:.2f}", "green"))
    return line("Grad: ", ("OK", "green"))


def measurement_line(seed: GradientHealth) -> Line:
    """What is known of the measurement, where it is not simply MEASURED: the state and its reason, dim."""
    if seed.measurement is Measurement.MEASURED:
        return ()
    reason = clean(seed.measurement_reason, 200) or _MEASUREMENT_WORDS[seed.measurement]
    return line((f"{seed.measurement} {reason}", DIM))


def seed_card(seed: SeedState, width: int, plot_rows: int = 3) -> list[Line]:
    """The whole card of a slot, `width` cells wide and card_height(plot_rows) lines high, whatever the seed's state."""
    condition = seed.condition
    mark: Line = ((CONDITION_GLYPHS[condition], CONDITION_STYLES[condition]),) if condition else ()
    inner = width - 3
    body = [
        stage_line(seed, inner),
        blueprint_line(seed, inner),
        params_line(seed, inner),
        alpha_line(seed),
        accuracy_delta_line(seed),
        gradient_line(seed),
        fit(measurement_line(seed), inner),
        *flow_lines(seed, inner),
        extremes_line(seed),
        histogram_line(seed, inner),
        vitals_line(seed),
        *ratio_plot(seed.ratio_history, inner, plot_rows),
        fit(evidence_line(seed), inner),
    ]
    return box(line((clean(seed.slot_id, inner - 6), "bold")), mark, body, width, CONDITION_STYLES[condition])


def evidence_line(seed: SeedTelemetry) -> Line:
    """What is wrong, in a word, and what the verdict rests on."""
    evidence = (clean(seed.evidence, 200), DIM)
    word = seed.fault.lower().replace("_", "-") if seed.fault else ""
    return line((f"{word}: ", "bold"), evidence) if word else line(evidence)


def card_height(plot_rows: int) -> int:
    """The lines of a seed_card."""
    return plot_rows + 15


def stage_line(seed: SeedTelemetry, width: int) -> Line:
    """Glyph and name of the stage, whether the seed is held there, and for how many epochs at the right end."""
    paused = ((" paused", CONDITION_STYLES[Condition.ALERTED]),) if seed.paused else ()
    stage = line((f"{STAGE_GLYPHS[seed.stage]} {seed.stage}", STAGE_STYLES[seed.stage]), *paused)
    epochs = "epoch" if seed.epochs_in_stage == 1 else "epochs"
    return ends(stage, line((f"{seed.epochs_in_stage} {epochs} in it ", DIM)), width)


def blueprint_line(seed: SeedTelemetry, width: int) -> Line:
    """What kind of seed grows here, and at the right end which one."""
    blueprint: Span = (clean(seed.blueprint_id, 60), "bold") if seed.blueprint_id else NOTHING
    return ends(line("Blueprint: ", blueprint), line((f" {clean(seed.seed_id, 24)} ", DIM)), width)


def params_line(seed: SeedTelemetry, width: int) -> Line:
    """The seed's size, and at the right end how many non-finite values of it were kept from the host."""
    params = line("Params: ", humanised(seed.seed_params) if seed.seed_params else NOTHING)
    masked = seed.masked_values
    style = CONDITION_STYLES[Condition.NON_FINITE] if masked else DIM
    return ends(params, line((f"{humanised(masked)} masked ", style)), width)


def alpha_line(seed: SeedTelemetry) -> Line:
    """The blend weight with a bar of ten cells, while the host sees the seed."""
    if not seed.stage.seen_by_host:
        return line("Alpha: ", NOTHING)
    filled = round(10 * min(max(seed.alpha, 0.0), 1.0)) if isfinite(seed.alpha) else 0
    return line(
        f"Alpha: {compact(seed.alpha)} ", ("█" * filled, STAGE_STYLES[SeedStage.BLENDING]), ("░" * (10 - filled), DIM)
    )


def accuracy_delta_line(seed: SeedTelemetry) -> Line:
    """What the seed is worth to the host, in percentage points; nothing to say before the host sees it."""
    if seed.stage.seen_by_host and seed.stage is not SeedStage.WATCHED:  # nobody validates a loop that is not ours
        sign = "-" if seed.accuracy_delta < 0 else "+"
        return line(f"Acc Δ: {sign}{compact(abs(seed.accuracy_delta))} %")
    if seed.stage in (SeedStage.GERMINATED, SeedStage.TRAINING):
        return line("Acc Δ: 0.0 (learning)")
    return line("Acc Δ: ", NOTHING)


def flow_lines(seed: GradientHealth, width: int) -> tuple[Line, Line]:
    """The norms of the entering and the leaving gradient, and beside them the passes that they were summed over."""
    style = "" if seed.passes else DIM
    lost = seed.non_finite_passes
    non_finite = line((f"{lost} NaN/inf ", CONDITION_STYLES[Condition.NON_FINITE])) if lost else ()
    return (
        ends(line((f"entering {norm(seed.entering_norm)}", style)), line((f"{seed.passes} passes ", style)), width),
        ends(line((f" leaving {norm(seed.leaving_norm)}", style)), non_finite, width),
    )


def extremes_line(seed: GradientHealth) -> Line:
    """The least, the greatest and the last ratio of single passes."""
    if not seed.passes:
        return line(("min --    max --    last --", DIM))
    return line(f"min {compact(seed.min_ratio):<5} max {compact(seed.max_ratio):<5} last {compact(seed.last_ratio)}")


def histogram_line(seed: GradientHealth, width: int) -> Line:
    """How the ratios of single passes are spread: a block an octave, from the lowest to the highest that occurs."""
    counts = seed.ratio_histogram
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return line(("spread --", DIM))
    first, last = filled[0], filled[-1]
    ends_of_it = (f"{_octave(first)} ", f" {_octave(last + 1)}")
    shown = counts[first : last + 1][: max(width - 7 - sum(map(len, ends_of_it)), 1)]
    highest = max(shown)
    blocks = "".join(BLOCKS[ceil(7 * count / highest)] if count else " " for count in shown)
    return line("spread ", (ends_of_it[0], DIM), (blocks, SKY_BLUE), (ends_of_it[1], DIM))


def vitals_line(seed: GradientHealth) -> Line:
    """How the module scales what runs forward through it, and how many of its parameter tensors get a gradient."""
    rms, live = seed.output_input_rms, seed.parameter_liveness
    return line(
        (f"out/in {'--' if rms is None else compact(rms):<6} ", DIM if rms is None else ""),
        (f"alive {'--' if live is None else f'{live:.0%}'.replace('%', ' %')}", DIM if live is None else ""),
    )


def _octave(index: int) -> str:
    """The lower end of a bin of the histogram, such as 1/8× or 4×; the outermost bins are open."""
    exponent = index - 1 + HISTOGRAM_LOWEST_OCTAVE
    if index <= 0:
        return "0×"
    if exponent > HISTOGRAM_HIGHEST_OCTAVE + 1:
        return "∞×"
    return f"{2**exponent}×" if exponent >= 0 else f"1/{2**-exponent}×"


def seed_row(seed: SeedState, width: int, slot_width: int) -> Line:
    """A slot on one line: slot, stage, blueprint, and at the right end the glyph of its gradient flow and the ratio."""
    stage_style = STAGE_STYLES[seed.stage]
    condition = seed.condition
    left = line(
        f"{padded(seed.slot_id, slot_width)} ",
        (f"{STAGE_GLYPHS[seed.stage]} ", stage_style),
        (clean(seed.blueprint_id, 40), DIM if condition is Condition.RESTING else ""),
    )
    return ends(left, _row_end(seed, condition), width)


def _row_end(seed: SeedState, condition: Condition) -> Line:
    if condition is Condition.RESTING:
        resting = "" if seed.stage is SeedStage.DORMANT else str(seed.stage).lower()
        return line((f" {resting} ", DIM))
    measured = seed.measurement is Measurement.MEASURED
    style = CONDITION_STYLES[condition]
    return line(
        (f" {CONDITION_GLYPHS[condition]} ", style), (f"{compact(seed.grad_ratio) if measured else '--':>6} ", style)
    )


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
        lines.append(line((f"{label:>{margin}}", BLUISH_GREEN if row == 0 else DIM), *_merged(cells)))
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


def _merged(cells: Sequence[Span]) -> Line:
    """Neighbours of one style as one span."""
    merged: list[Span] = []
    for text, style in cells:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        else:
            merged.append((text, style))
    return tuple(merged)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks between the least and the greatest of them, right-aligned in `width` cells."""
    shown = values[-width:] if width > 0 else ()
    finite = [value for value in shown if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low

    def bar(value: float) -> str:
        if not isfinite(value):
            return " "
        return BLOCKS[int(7 * ((value - low) / span))] if 0 < span < inf else BLOCKS[3]

    return "".join(map(bar, shown)).rjust(width)


def compact(value: float) -> str:
    """A number in at most six cells: two decimals where they say something, else 1e+05 or 3e-04."""
    size = abs(value)
    if not isfinite(value):
        return str(value)
    if size and (size < 0.005 or size >= 99_999.5):
        return f"{value:.0e}"
    return f"{value:.2f}" if size < 99.995 else f"{value:.0f}"


def norm(value: float) -> str:
    """A norm with two digits, such as 3.1e-02."""
    return f"{value:.1e}"


def humanised(count: int) -> str:
    """A count in at most six cells, such as 950, 18.4K or 3.2M."""
    if count < 1000:
        return str(count)
    size = float(count)
    for unit in "KMG":
        size /= 1000
        if size < 999.95:
            return f"{size:.1f}{unit}"
    return f"{size:.0e}G"


def duration(seconds: float) -> str:
    """A time span such as 0:42 or 3:05:09; --:-- where there is none."""
    if not 0 <= seconds < 1e8:
        return "--:--"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def clock(moment: float | None) -> str:
    """Unix seconds as local time of day."""
    if moment is None or not 0 <= moment < 2e11:
        return "--:--:--"
    return time.strftime("%H:%M:%S", time.localtime(moment))
