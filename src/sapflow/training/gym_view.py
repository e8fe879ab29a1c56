"""What an agent sees of a host and its slots: finite numbers in [-1, 1]."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sapflow.control.controller import EpochOutcome
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.vocabulary import Measurement, SeedStage

STAGES = tuple(stage for stage in SeedStage if stage is not SeedStage.WATCHED)
HOST_FEATURES = ("epoch", "accuracy", "accuracy change", "train loss", "validation loss", "grown parameters")
SLOT_FEATURES = (
    "epochs in stage", "alpha", "paused", "measured", "log2 ratio", "vanishing", "exploding", "non-finite passes",
    "masked", "accuracy delta", "parameters",
)  # fmt: skip
MOST_OCTAVES = 16.0  # of a ratio, up and down


def feature_names(slot_ids: Sequence[str], blueprint_ids: Sequence[str]) -> list[str]:
    """Of each number in an observation, in order."""
    own = [*STAGES, *SLOT_FEATURES, *blueprint_ids]
    return [*HOST_FEATURES, *(f"{slot_id}: {name}" for slot_id in slot_ids for name in own)]


def observation(
    outcome: EpochOutcome,
    accuracy_before: float,
    host_params: int,
    slots: Sequence[SeedSlot],
    blueprint_ids: Sequence[str],
) -> NDArray[np.float32]:
    """What an agent sees, float32 of the shape (len(feature_names),).

    Percentages are divided by 100, the ratio's logarithm by MOST_OCTAVES, losses x become x / (1 + x), flags 0 or 1;
    parameters are shares of the host's, epochs of the episode's. What is beyond 1 is 1.
    """
    accuracy = outcome.accuracy or 0.0
    host = [
        outcome.epoch / outcome.epochs,
        accuracy / 100,
        (accuracy - accuracy_before) / 100,
        _squashed(outcome.train_loss),
        _squashed(outcome.validation_loss),
        grown_parameters(slots) / host_params,
    ]
    of_slots = [value for slot in slots for value in _of_slot(slot, outcome.epochs, host_params, blueprint_ids)]
    return np.clip(np.array([*host, *of_slots], dtype=np.float32), -1, 1)


def grown_parameters(slots: Iterable[SeedSlot]) -> int:
    """Of all seeds that the host sees."""
    return sum(slot.state.seed_params for slot in slots if slot.host_sees)


def _of_slot(slot: SeedSlot, epochs: int, host_params: int, blueprint_ids: Sequence[str]) -> list[float]:
    state = slot.state
    health = state.health
    return [
        *(float(state.stage is stage) for stage in STAGES),
        state.epochs_in_stage / epochs,
        state.alpha,
        float(state.paused),
        float(health.measurement is Measurement.MEASURED),
        _octaves(health.grad_ratio) / MOST_OCTAVES if health.measurement is Measurement.MEASURED else 0.0,
        float(health.has_vanishing),
        float(health.has_exploding),
        health.non_finite_passes / max(1, health.passes),
        float(state.masked_values > 0),
        state.accuracy_delta / 100,
        state.seed_params / host_params,
        *(float(state.blueprint_id == name) for name in blueprint_ids),
    ]


def _octaves(ratio: float) -> float:
    """log2, within MOST_OCTAVES; a dead module is as far down as can be told."""
    return max(-MOST_OCTAVES, min(MOST_OCTAVES, math.log2(ratio))) if ratio > 0 else -MOST_OCTAVES


def _squashed(loss: float | None) -> float:
    """[0, ∞] to [0, 1]; what is no number is as bad as can be told."""
    if loss is None:
        return 0.0
    return loss / (1 + loss) if math.isfinite(loss) and loss >= 0 else 1.0
