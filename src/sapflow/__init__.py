"""Sapflow: is this module's gradient flow healthy? Measured on every backward pass, said, shown, acted on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sapflow.control.grow import Growth as Growth
    from sapflow.control.grow import grow as grow
    from sapflow.gradients.gradient_monitor import GradientMonitor as GradientMonitor
    from sapflow.gradients.watch import Watcher as Watcher
    from sapflow.gradients.watch import watch as watch
    from sapflow.growth.blueprints import blueprint as blueprint
    from sapflow.growth.seed_trainer import SeedTraining as SeedTraining
    from sapflow.health.calibrated import CalibratedPolicy as CalibratedPolicy
    from sapflow.health.policy import HealthPolicy as HealthPolicy
    from sapflow.history import plot as plot
    from sapflow.history.run import Run as Run
    from sapflow.history.run import open_run as open_run
    from sapflow.telemetry.events import SeedTelemetry as SeedTelemetry

# Public names are imported when they are first used: `import sapflow` costs neither torch nor textual.
_HOMES = {
    "CalibratedPolicy": "sapflow.health.calibrated",
    "GradientMonitor": "sapflow.gradients.gradient_monitor",
    "Growth": "sapflow.control.grow",
    "HealthPolicy": "sapflow.health.policy",
    "Run": "sapflow.history.run",
    "SeedTelemetry": "sapflow.telemetry.events",
    "SeedTraining": "sapflow.growth.seed_trainer",
    "Watcher": "sapflow.gradients.watch",
    "blueprint": "sapflow.growth.blueprints",
    "grow": "sapflow.control.grow",
    "open_run": "sapflow.history.run",
    "watch": "sapflow.gradients.watch",
}
_MODULES = {"plot": "sapflow.history.plot"}

__all__ = [
    "CalibratedPolicy",
    "GradientMonitor",
    "Growth",
    "HealthPolicy",
    "Run",
    "SeedTelemetry",
    "SeedTraining",
    "Watcher",
    "__version__",
    "blueprint",
    "grow",
    "open_run",
    "plot",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'sapflow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
