"""What a blueprint is, and how one is found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from sapflow.errors import BlueprintError


@dataclass(frozen=True)
class Blueprint:
    """A kind of seed: how to build one for a slot of a given shape.

    `build` takes the shape of one sample, (features,) or (channels, height, width) as `dimensions` says, and returns a
    module that keeps the shape. A calibrated one is scaled to unit gain at germination and must end in a layer with a
    weight. A pathological one is for planting only: nothing grows it by itself.
    """

    blueprint_id: str
    dimensions: int
    build: Callable[[tuple[int, ...]], nn.Module]
    calibrated: bool = True
    pathological: bool = False


def blueprints_for(shape: tuple[int, ...], catalogue: Iterable[Blueprint]) -> list[Blueprint]:
    """The healthy blueprints that fit a slot of this shape, in the catalogue's order."""
    return [blueprint for blueprint in catalogue if blueprint.dimensions == len(shape) and not blueprint.pathological]


def blueprint_for(blueprint_id: str, shape: tuple[int, ...], catalogue: Iterable[Blueprint]) -> Blueprint:
    """The blueprint of this name that fits a slot of this shape.

    Raises:
        BlueprintError: there is none; the message names those that there are.
    """
    fitting = {blueprint.blueprint_id: blueprint for blueprint in catalogue if blueprint.dimensions == len(shape)}
    if blueprint_id not in fitting:
        known = ", ".join(sorted(fitting))
        raise BlueprintError(f"no blueprint {blueprint_id!r} fits a slot of shape {shape}: choose one of {known}")
    return fitting[blueprint_id]
