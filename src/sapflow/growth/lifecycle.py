"""The life of a seed: which stage may follow which, and the gates between them."""

from enum import StrEnum

from sapflow.errors import IllegalTransitionError
from sapflow.telemetry.events import GradientHealth
from sapflow.telemetry.vocabulary import Measurement, SeedStage

_NEXT: dict[SeedStage, frozenset[SeedStage]] = {
    SeedStage.DORMANT: frozenset({SeedStage.GERMINATED}),
    SeedStage.GERMINATED: frozenset({SeedStage.TRAINING, SeedStage.PRUNED}),
    SeedStage.TRAINING: frozenset({SeedStage.BLENDING, SeedStage.PRUNED}),
    SeedStage.BLENDING: frozenset({SeedStage.HOLDING, SeedStage.PRUNED}),
    SeedStage.HOLDING: frozenset({SeedStage.FOSSILIZED, SeedStage.PRUNED}),
    SeedStage.FOSSILIZED: frozenset(),
    SeedStage.PRUNED: frozenset({SeedStage.EMBARGOED}),
    SeedStage.EMBARGOED: frozenset({SeedStage.DORMANT}),
    SeedStage.WATCHED: frozenset(),
}

# Out of TRAINING leads only measured gradient flow within these levels, for this many epochs in a row. They are wider
# than the record's band, which healthy seeds leave while they learn (docs/prune-levels.md).
SOUND_RATIOS = (0.1, 10.0)
SOUND_EPOCHS_TO_BLEND = 2
# The gate to FOSSILIZED lets a seed pass that costs the host no more accuracy than this, in percentage points: on some
# hundreds of validation samples, less is noise.
TOLERATED_COST = 1.0


class Gate(StrEnum):
    """A gate that a controller may leave open; that to HOLDING, α = 1, always stands."""

    SOUND_FLOW = "sound_flow"  # to BLENDING
    NO_COST = "no_cost"  # to FOSSILIZED


ALL_GATES = frozenset(Gate)


def is_sound(health: GradientHealth) -> bool:
    """Whether an epoch's gradient flow was measured, finite throughout, and within SOUND_RATIOS."""
    lowest, highest = SOUND_RATIOS
    measured = health.measurement is Measurement.MEASURED and not health.non_finite_passes
    return measured and lowest <= health.grad_ratio <= highest


def check_transition(stage: SeedStage, target: SeedStage) -> None:
    """Pass in silence if `target` may follow `stage`.

    Raises:
        IllegalTransitionError: it may not; the message names what may.
    """
    if target not in _NEXT[stage]:
        allowed = ", ".join(sorted(_NEXT[stage])) or "nothing"
        raise IllegalTransitionError(f"a seed cannot go from {stage} to {target}: after {stage} comes {allowed}")
