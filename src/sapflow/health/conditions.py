"""What a rule can look at in the telemetry of a seed, and what it finds there."""

import math
from dataclasses import dataclass
from enum import StrEnum

from sapflow.errors import InputError
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage


class Condition(StrEnum):
    """What a rule looks at in a seed's telemetry of an epoch, or of a window of passes."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    NON_FINITE = "non_finite"  # passes with non-finite gradients, or masked values
    MASKED = "masked"  # non-finite values that were kept from the host
    UNMEASURED = "unmeasured"  # trained, and anything but MEASURED
    DEAD = "dead"  # gradient enters and nothing leaves, or no parameter gets any
    RATIO_BELOW = "ratio_below"
    RATIO_ABOVE = "ratio_above"
    PEAK_ABOVE = "peak_above"  # the largest ratio of a single pass
    LIVENESS_BELOW = "liveness_below"
    ACCURACY_BELOW = "accuracy_below"


class Finding(StrEnum):
    """What a condition comes to: it holds, is over, neither (on the way to its clear level), or nobody knows."""

    HOLDS = "holds"
    BETWEEN = "between"
    OVER = "over"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that a condition compares with its level: how it is called, where levels make sense, and which side."""

    words: str
    lowest: float
    highest: float
    below: bool
    unit: str = ""


MEASURES = {
    Condition.RATIO_BELOW: Measure(words="the ratio", lowest=0.0, highest=math.inf, below=True),
    Condition.RATIO_ABOVE: Measure(words="the ratio", lowest=0.0, highest=math.inf, below=False),
    Condition.PEAK_ABOVE: Measure(
        words="the largest ratio of a single pass", lowest=0.0, highest=math.inf, below=False
    ),
    Condition.LIVENESS_BELOW: Measure(
        words="the share of parameter tensors that get a gradient", lowest=0.0, highest=1.0, below=True
    ),
    Condition.ACCURACY_BELOW: Measure(
        words="what the seed adds to the accuracy", lowest=-100.0, highest=100.0, below=True, unit=" points"
    ),
}
# Accuracy is validated, and masked values are counted over all ranks, at the end of an epoch alone.
ONLY_AT_EPOCH_ENDS = frozenset({Condition.ACCURACY_BELOW, Condition.MASKED})


def check_levels(condition: Condition, level: float | None, clear_level: float | None) -> None:
    """Make sure that the condition has the levels that it needs, and no others.

    Raises:
        InputError: it has not.
    """
    measure = MEASURES.get(condition)
    if measure is None:
        if level is not None or clear_level is not None:
            raise InputError(f"{condition!s} compares nothing: remove level and clear_level")
        return
    if level is None:
        raise InputError(f"{condition!s} needs a level: say what to compare {measure.words} with")
    for key, value in (("level", level), ("clear_level", clear_level)):
        if value is not None and not (math.isfinite(value) and measure.lowest <= value <= measure.highest):
            raise InputError(f"{key} = {value:g} of {condition!s} must be {_allowed(measure)}")
    if clear_level is not None and (clear_level < level if measure.below else clear_level > level):
        side = "below" if measure.below else "above"
        raise InputError(f"clear_level = {clear_level:g} must not be {side} level = {level:g}: it is where all is well")


def find(condition: Condition, seed: SeedTelemetry, level: float | None, clear_level: float | None) -> Finding:
    """What the condition comes to for a seed; levels as `check_levels` wants them, `clear_level` is `level` if None."""
    measure = MEASURES.get(condition)
    if measure is None:
        state = _state(condition, seed)
        return Finding.UNKNOWN if state is None else Finding.HOLDS if state else Finding.OVER
    value = measured(condition, seed)
    if value is None:
        return Finding.UNKNOWN
    assert level is not None
    if (value < level) if measure.below else (value > level):
        return Finding.HOLDS
    clear = level if clear_level is None else clear_level
    return Finding.OVER if (value >= clear if measure.below else value <= clear) else Finding.BETWEEN


def measured(condition: Condition, seed: SeedTelemetry) -> float | None:
    """The number that an alert of this condition is about: what its level is compared with, or else the ratio.

    None where the number that the level is compared with is not known.
    """
    is_measured = seed.measurement is Measurement.MEASURED
    match condition:
        case Condition.RATIO_BELOW | Condition.RATIO_ABOVE:
            return seed.grad_ratio if is_measured else None
        case Condition.PEAK_ABOVE:
            return seed.max_ratio if is_measured else None
        case Condition.LIVENESS_BELOW:
            return seed.parameter_liveness
        case Condition.ACCURACY_BELOW:
            # Of a module that no slot manages, or that the host does not see, nobody knows what it adds.
            seen = seed.stage.seen_by_host and seed.stage is not SeedStage.WATCHED
            weighed = seen and not math.isnan(seed.accuracy_delta)
            return seed.accuracy_delta if weighed else None
        case Condition.MASKED:
            return float(seed.masked_values)
        case _:
            return seed.grad_ratio


def is_non_finite(seed: SeedTelemetry) -> bool:
    """Whether the passes that were not finite are the seed's fault.

    A GradScaler's overflows are its normal business until the policy flags them: a lesser fault tells that it has not,
    and not every policy names one.
    """
    return seed.non_finite_passes > 0 and seed.has_exploding and seed.fault in (Fault.NON_FINITE, None)


def _state(condition: Condition, seed: SeedTelemetry) -> bool | None:
    """Whether it holds; what was not measured is no evidence that it does not."""
    is_measured = seed.measurement is Measurement.MEASURED
    match condition:
        case Condition.UNMEASURED:
            return not is_measured if seed.stage.trained else None
        case Condition.MASKED:
            return seed.masked_values > 0
        case Condition.VANISHING:
            holds = seed.has_vanishing
        case Condition.EXPLODING:
            holds = seed.has_exploding
        case Condition.NON_FINITE:
            holds = is_non_finite(seed) or seed.masked_values > 0
        case _:
            blocked = is_measured and seed.entering_norm > 0 and seed.leaving_norm == 0
            holds = blocked or seed.parameter_liveness == 0
    return True if holds else False if is_measured else None


def _allowed(measure: Measure) -> str:
    if math.isinf(measure.highest):
        return f"a number of at least {measure.lowest:g}"
    return f"a number from {measure.lowest:g} to {measure.highest:g}"
