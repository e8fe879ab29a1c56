"""The catalogue: blueprints that come with Sapflow, people's own by decorator, and those of installed packages."""

import logging
from collections.abc import Callable
from importlib.metadata import entry_points

from sapflow.errors import BlueprintError
from sapflow.growth.blueprints.definition import Blueprint, Build
from sapflow.growth.blueprints.maps import MAP_BLUEPRINTS
from sapflow.growth.blueprints.pointwise import POINTWISE_BLUEPRINTS
from sapflow.growth.blueprints.sequences import SEQUENCE_BLUEPRINTS

ENTRY_POINTS = "sapflow.blueprints"

log = logging.getLogger("sapflow.growth")


class Catalogue:
    """Blueprints by name and dimensions; a name may stand once for each number of dimensions.

    Packages bring theirs by an entry point of the group `sapflow.blueprints` that names a module in which the decorator
    `blueprint` is used. They are looked for when the first blueprint is asked for, not before.
    """

    def __init__(self) -> None:
        built_in = (*POINTWISE_BLUEPRINTS, *SEQUENCE_BLUEPRINTS, *MAP_BLUEPRINTS)
        self._built_in = {(one.blueprint_id, one.dimensions): one for one in built_in}
        self._own: dict[tuple[str, int], Blueprint] = {}
        self._discovered = False

    def add(self, blueprint: Blueprint) -> None:
        """Take in a blueprint of somebody's own. The same function may come again, as from a notebook's cell.

        Raises:
            BlueprintError: the name is taken, or is none.
        """
        name = blueprint.blueprint_id
        if not name.isprintable() or not name.strip() or ":" in name or blueprint.dimensions < 1:
            raise BlueprintError(
                f"blueprint {name!r} of {blueprint.dimensions} dimensions: it needs a printable name without a colon, "
                "and at least 1 dimension"
            )
        key = (name, blueprint.dimensions)
        holder = self._built_in.get(key) or self._own.get(key)
        if holder is not None and (key in self._built_in or _name_of(holder.build) != _name_of(blueprint.build)):
            raise BlueprintError(
                f"blueprint {name!r} of {_name_of(blueprint.build)}: for {blueprint.dimensions} "
                f"dimensions the name is taken by {_name_of(holder.build)}; choose another"
            )
        self._own[key] = blueprint

    def fitting(self, shape: tuple[int, ...]) -> list[Blueprint]:
        """All for slots of as many dimensions: those that come with Sapflow first, then people's own by name.

        Raises:
            BlueprintError: two packages claim one name.
        """
        self._discover()
        own = [self._own[key] for key in sorted(self._own)]
        return [one for one in (*self._built_in.values(), *own) if one.dimensions == len(shape)]

    def _discover(self) -> None:
        if self._discovered:
            return
        for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda one: (one.name, one.value)):
            before = dict(self._own)
            try:
                entry_point.load()
            except BlueprintError:
                raise
            except Exception as error:  # a stranger's module may fail in any way
                self._own = before
                log.warning(
                    "the blueprints of %s (entry point %s) are left out: %s: %s",
                    entry_point.value, entry_point.name, type(error).__name__, error,
                )  # fmt: skip
        self._discovered = True


_catalogue = Catalogue()


def blueprint(
    blueprint_id: str, *, dimensions: int, calibrated: bool = True, pathological: bool = False
) -> Callable[[Build], Build]:
    """Register a function that builds a seed: `@blueprint("mine", dimensions=1)`; see `Blueprint` for what it owes.

    Raises:
        BlueprintError: the name is taken.
    """

    def register(build: Build) -> Build:
        _catalogue.add(Blueprint(blueprint_id, dimensions, build, calibrated, pathological))
        return build

    return register


def blueprints_for(shape: tuple[int, ...]) -> list[Blueprint]:
    """The healthy blueprints for a slot of this shape, always in the same order.

    Raises:
        BlueprintError: there is none, or two packages claim one name.
    """
    healthy = [one for one in _catalogue.fitting(shape) if not one.pathological]
    if not healthy:
        raise BlueprintError(
            f"no blueprint grows in a slot of shape {shape}: register one with @blueprint(…, dimensions={len(shape)})"
        )
    return healthy


def blueprint_for(blueprint_id: str, shape: tuple[int, ...]) -> Blueprint:
    """The blueprint of this name for a slot of this shape.

    Raises:
        BlueprintError: there is none, and the message names those that there are; or two packages claim one name.
    """
    fitting = {one.blueprint_id: one for one in _catalogue.fitting(shape)}
    if blueprint_id not in fitting:
        known = ", ".join(sorted(fitting)) or f"one of your own, of {len(shape)} dimensions"
        raise BlueprintError(f"no blueprint {blueprint_id!r} fits a slot of shape {shape}: choose one of {known}")
    return fitting[blueprint_id]


def _name_of(build: Build) -> str:
    """Where a function stands, `package.module.function`; what is none has no place but its own."""
    return f"{build.__module__}.{build.__qualname__}" if hasattr(build, "__qualname__") else repr(build)
