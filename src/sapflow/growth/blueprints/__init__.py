"""The catalogue of what can grow: blueprints by name and by the kind of slot they fit."""

from sapflow.growth.blueprints.blueprint import Blueprint, blueprint_for, blueprints_for
from sapflow.growth.blueprints.features import FEATURE_BLUEPRINTS
from sapflow.growth.blueprints.images import IMAGE_BLUEPRINTS

CATALOGUE = (*FEATURE_BLUEPRINTS, *IMAGE_BLUEPRINTS)

__all__ = ["CATALOGUE", "Blueprint", "blueprint_for", "blueprints_for"]
