"""The numbers that go to tools for metrics: what each is called, what it means, and where it is found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sapflow.health.conditions import is_non_finite
from sapflow.telemetry.events import EpochCompleted, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Series(Generic[T]):
    """One number of a `T`.

    Attributes:
        name: lower case, its parts joined by dots: sapflow.NAME for OpenTelemetry.
        help: what it is, for a person.
        value: of a `T`; None where it is not known, and then nothing is exported: unmeasured is never healthy.
        unit: "ratio" for a share or a quotient, "" for a count or what has no unit.
        percent: the value is in percent, or percentage points; tools whose convention is base units get a ratio.
    """

    name: str
    help: str
    value: Callable[[T], float | None]
    unit: str = ""
    percent: bool = False

    def base(self, source: T) -> float | None:
        """The value in base units: a ratio instead of percent."""
        value = self.value(source)
        return value / 100 if self.percent and value is not None else value


def _if_measured(field: str) -> Callable[[SeedTelemetry], float | None]:
    def value(seed: SeedTelemetry) -> float | None:
        return float(getattr(seed, field)) if seed.measurement is Measurement.MEASURED else None

    return value


def _number(field: str) -> Callable[[SeedTelemetry], float | None]:
    return lambda seed: float(getattr(seed, field))


def _accuracy_delta(seed: SeedTelemetry) -> float | None:
    """Of a module that no slot manages, or that the host does not see, nobody knows what it adds."""
    weighed = seed.stage.seen_by_host and seed.stage is not SeedStage.WATCHED
    return seed.accuracy_delta if weighed else None


GAIN = Series[SeedTelemetry](
    name="gradient.gain",
    unit="ratio",
    help="Leaving over entering gradient norm of the epoch so far (TELE-557).",
    value=_if_measured("grad_ratio"),
)

# Of a living seed. What an epoch is still to bring (accuracy, masked values) stands until the next one ends.
SEED_SERIES: tuple[Series[SeedTelemetry], ...] = (
    GAIN,
    Series(
        name="gradient.gain_min", unit="ratio", help="Smallest gain of a single pass of the epoch.",
        value=_if_measured("min_ratio"),
    ),
    Series(
        name="gradient.gain_max", unit="ratio", help="Largest gain of a single pass of the epoch.",
        value=_if_measured("max_ratio"),
    ),
    Series(
        name="gradient.entering_norm", help="Gradient norm at the output, over the finite passes of the epoch.",
        value=_if_measured("entering_norm"),
    ),
    Series(
        name="gradient.leaving_norm", help="Gradient norm at the input, over the finite passes of the epoch.",
        value=_if_measured("leaving_norm"),
    ),
    Series(
        name="gradient.measured", help="1 where the gain is known; 0 is no sign of health.",
        value=lambda seed: float(seed.measurement is Measurement.MEASURED),
    ),
    Series(
        name="gradient.vanishing", help="1 where the policy's flag is set.", value=_number("has_vanishing")
    ),
    Series(
        name="gradient.exploding", help="1 where the policy's flag is set.", value=_number("has_exploding")
    ),
    Series(
        name="gradient.non_finite", help="1 where NaN or infinity is a fault, and no overflow of a GradScaler.",
        value=lambda seed: float(is_non_finite(seed)),
    ),
    Series(
        name="gradient.passes", help="Finite backward passes of the epoch so far.", value=_number("passes")
    ),
    Series(
        name="gradient.non_finite_passes", help="Backward passes of the epoch so far with NaN or infinity.",
        value=_number("non_finite_passes"),
    ),
    Series(
        name="seed.liveness", unit="ratio", help="Share of the parameter tensors that get a gradient.",
        value=lambda seed: seed.parameter_liveness,
    ),
    Series(name="seed.parameters", help="Parameters of the seed.", value=_number("seed_params")),
    Series(
        name="seed.blend", unit="ratio", help="How much of the seed the host sees.", value=lambda seed: seed.alpha
    ),
    Series(
        name="seed.accuracy_delta", unit="ratio", percent=True,
        help="Validation accuracy with the seed minus that with its slot bypassed.", value=_accuracy_delta,
    ),
    Series(
        name="seed.masked_values", help="Non-finite values kept from the host in the last epoch.",
        value=_number("masked_values"),
    ),
)  # fmt: skip

# Of an env, at the end of an epoch.
ENV_GAUGES: tuple[Series[EpochCompleted], ...] = (
    Series(name="epoch", help="The last epoch that is complete.", value=lambda done: float(done.epoch)),
    Series(
        name="epochs_planned", help="How many epochs there will be; absent where nobody knows.",
        value=lambda done: float(done.epochs) if done.epochs else None,
    ),
    Series(
        name="accuracy", unit="ratio", percent=True, help="Accuracy on the validation split.",
        value=lambda done: done.accuracy,
    ),
    Series(name="train_loss", help="Training loss of the epoch.", value=lambda done: done.train_loss),
    Series(name="validation_loss", help="Validation loss.", value=lambda done: done.validation_loss),
)  # fmt: skip

# Of an env, since it began.
ENV_COUNTERS: tuple[Series[EpochCompleted], ...] = (
    Series(name="passes", help="Backward passes.", value=lambda done: float(done.total_passes)),
    Series(name="seeds.germinated", help="Seeds that were born.", value=lambda done: float(done.total_germinated)),
    Series(name="seeds.pruned", help="Seeds that were cut out.", value=lambda done: float(done.total_pruned)),
    Series(
        name="seeds.fossilized", help="Seeds that became a part of their host.",
        value=lambda done: float(done.total_fossilized),
    ),
    Series(name="alerts", help="Alerts that were raised.", value=lambda done: float(done.total_alerts)),
    Series(name="shadows", help="Shadow forwards.", value=lambda done: float(done.total_shadows)),
    Series(
        name="recompiles", help="Graphs that TorchDynamo compiled in the process of the run.",
        value=lambda done: float(done.total_recompiles),
    ),
)  # fmt: skip
