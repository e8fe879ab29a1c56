"""How a seed looks: pure functions from telemetry to lines of plain spans; the same on every screen."""

from math import ceil, isfinite

from rich.cells import cell_len

from sapflow.sanctum.glyphs import (
    BLOCKS,
    CONDITION_GLYPHS,
    CONDITION_STYLES,
    SKY_BLUE,
    STAGE_GLYPHS,
    STAGE_STYLES,
)
from sapflow.sanctum.numbers import compact, humanised, norm, ratio
from sapflow.sanctum.plots import ratio_plot
from sapflow.sanctum.schema import Condition, SeedState
from sapflow.sanctum.spans import (
    DIM,
    Line,
    Span,
    box,
    clean,
    ends,
    first_that_fits,
    fit,
    line,
    slot_column,
    slot_name,
    width_of,
)
from sapflow.telemetry.events import (
    HISTOGRAM_HIGHEST_OCTAVE,
    HISTOGRAM_LOWEST_OCTAVE,
    GradientHealth,
    SeedTelemetry,
)
from sapflow.telemetry.vocabulary import Measurement, SeedStage

NOTHING: Span = ("--", DIM)
HELD, HELD_GLYPH = "held", "‖"
HELD_STYLE = CONDITION_STYLES[Condition.ALERTED]

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


def seed_card(seed: SeedState, width: int, plot_rows: int = 3, focused: bool = False) -> list[Line]:
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
    style = "bold" if focused else CONDITION_STYLES[condition]
    return box(line((slot_name(seed.slot_id, inner - 6), "bold")), mark, body, width, style, heavy=focused)


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
    held = ((f" {HELD}", HELD_STYLE),) if seed.paused else ()
    stage = line((f"{STAGE_GLYPHS[seed.stage]} {seed.stage}", STAGE_STYLES[seed.stage]), *held)
    epochs = f"{seed.epochs_in_stage} {'epoch' if seed.epochs_in_stage == 1 else 'epochs'}"
    room = width - width_of(stage) - 1
    lasted = first_that_fits(room, [line((f"{epochs} {words}", DIM)) for words in ("in it ", "")])
    return ends(stage, lasted, width)


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
    entering, leaving = (norm(value) if seed.passes else "--" for value in (seed.entering_norm, seed.leaving_norm))
    lost = seed.non_finite_passes
    non_finite = line((f"{lost} NaN/inf ", CONDITION_STYLES[Condition.NON_FINITE])) if lost else ()
    return (
        ends(line((f"entering {entering}", style)), line((f"{seed.passes} passes ", style)), width),
        ends(line((f" leaving {leaving}", style)), non_finite, width),
    )


def extremes_line(seed: GradientHealth) -> Line:
    """The least, the greatest and the last ratio of single passes."""
    if not seed.passes:
        return line(("min --    max --    last --", DIM))
    return line(f"min {compact(seed.min_ratio):<5} max {compact(seed.max_ratio):<5} last {compact(seed.last_ratio)}")


def histogram_line(seed: GradientHealth, width: int) -> Line:
    """How the ratios of single passes are spread, from the lowest octave to the highest that occurs.

    A block is an octave, or several where there is no room for one of each.
    """
    counts = seed.ratio_histogram
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return line(("spread --", DIM))
    first, last = filled[0], filled[-1]
    ends_of_it = (f"{_octave(first)} ", f" {_octave(last + 1)}")
    size = ceil((last + 1 - first) / max(width - 7 - sum(map(len, ends_of_it)), 1))
    shown = [sum(counts[begin : min(begin + size, last + 1)]) for begin in range(first, last + 1, size)]
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
    """A slot on one line: slot, stage, blueprint and blend, and at the right end its gradient flow and the ratio.

    Where there is little room, the blueprint is cut and "held" is its glyph; the blend is always whole.
    """
    condition, stage_style = seed.condition, STAGE_STYLES[seed.stage]
    slot = line(f"{slot_column(seed.slot_id, slot_width)} ", (f"{STAGE_GLYPHS[seed.stage]} ", stage_style))
    blueprint = clean(seed.blueprint_id, 40)
    blend: Line = ((f" {seed.alpha:.0%}", stage_style),) if seed.stage is SeedStage.BLENDING else ()
    end = _row_end(seed, condition)
    room = width - width_of(slot) - width_of(end)
    if seed.paused:
        whole = cell_len(blueprint) + width_of(blend) + len(HELD) + 1 <= room
        blend = (*blend, (f" {HELD if whole else HELD_GLYPH}", HELD_STYLE))
    name = (clean(blueprint, max(room - width_of(blend), 0)), DIM if condition is Condition.RESTING else "")
    return ends(line(*slot, name, *blend), end, width)


def _row_end(seed: SeedState, condition: Condition) -> Line:
    if condition is Condition.RESTING:
        resting = "" if seed.stage is SeedStage.DORMANT else str(seed.stage).lower()
        return line((f" {resting} ", DIM))
    measured = seed.measurement is Measurement.MEASURED
    style = CONDITION_STYLES[condition]
    return line(
        (f" {CONDITION_GLYPHS[condition]} ", style), (f"{ratio(seed.grad_ratio) if measured else '--':>6} ", style)
    )
