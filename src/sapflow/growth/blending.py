"""Blending schedules: how a seed's weight α rises from its first blended step to 1."""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["linear", "cosine", "sigmoid"]

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "sigmoid": lambda t: (_logistic(12 * t - 6) - _logistic(-6)) / (_logistic(6) - _logistic(-6)),
}


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def blend_weight(schedule: Schedule, step: int, steps: int) -> float:
    """α in (0, 1] of blended step `step`, counted from 0, of `steps`: never 0, so the seed has feedback throughout."""
    return _SHAPES[schedule](min(step + 1, steps) / steps)
