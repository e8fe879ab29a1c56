"""The catalogue of what can grow: blueprints by name and by the kind of slot they fit."""

from sapflow.growth.blueprints.catalogue import blueprint, blueprint_for, blueprints_for
from sapflow.growth.blueprints.definition import Blueprint
from sapflow.growth.blueprints.fit import check_fit

__all__ = ["Blueprint", "blueprint", "blueprint_for", "blueprints_for", "check_fit"]
