"""What a blueprint is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Build = Callable[[tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Blueprint:
    """A kind of seed: how to build one for a slot of a given shape.

    `build` takes the shape of one sample, as many numbers as `dimensions` says: (features,), (tokens, width), of which
    tokens may differ from call to call, or (channels, height, width). It returns a module that keeps the shape, with
    parameters of its own, and draws from torch's generator of the CPU alone: where growth is resumed, it is called with
    that as it stood. A calibrated one is scaled to unit gain at germination and must end in a layer with a weight. A
    pathological one is for planting only: nothing grows it by itself.
    """

    blueprint_id: str
    dimensions: int
    build: Build
    calibrated: bool = True
    pathological: bool = False
