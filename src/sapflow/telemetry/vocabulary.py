"""The words that everyone shares: stages of a seed, states of a measurement, types of events, severities."""

from enum import StrEnum


class SeedStage(StrEnum):
    """Where a seed stands in its life; WATCHED is a module that Sapflow measures and no slot manages."""

    DORMANT = "DORMANT"
    GERMINATED = "GERMINATED"
    TRAINING = "TRAINING"
    BLENDING = "BLENDING"
    HOLDING = "HOLDING"
    FOSSILIZED = "FOSSILIZED"
    PRUNED = "PRUNED"
    EMBARGOED = "EMBARGOED"
    WATCHED = "WATCHED"

    @property
    def alive(self) -> bool:
        """A module stands there."""
        return self in _ALIVE

    @property
    def seen_by_host(self) -> bool:
        """The host's own forward goes through the module."""
        return self in _SEEN_BY_HOST

    @property
    def trained(self) -> bool:
        """A backward pass is expected to reach the module."""
        return self.alive and self is not SeedStage.GERMINATED


_SEEN_BY_HOST = frozenset({SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED, SeedStage.WATCHED})
_ALIVE = _SEEN_BY_HOST | {SeedStage.GERMINATED, SeedStage.TRAINING}


class Measurement(StrEnum):
    """What is known of a module's gradient flow; only MEASURED may be read as a ratio."""

    UNMEASURED = "UNMEASURED"  # no backward pass yet
    MEASURED = "MEASURED"
    NO_GRADIENT = "NO_GRADIENT"  # nothing entered
    INPUT_DETACHED = "INPUT_DETACHED"  # the leaving gradient cannot be known
    NON_FINITE = "NON_FINITE"  # no pass had finite gradients
    PROBE_LOST = "PROBE_LOST"  # the module ran forward and its probe never fired


class Fault(StrEnum):
    """What is wrong with a module's gradient flow; where several hold, the first of them."""

    NON_FINITE = "NON_FINITE"  # NaN or infinity in a backward pass
    DIVERGED = "DIVERGED"  # it amplifies, and did not when it was born
    EXPLODING = "EXPLODING"  # it amplifies, from birth or for all that is known
    SATURATED = "SATURATED"  # it amplifies the gradient far more than the signal: a few steep units carry it
    DEAD = "DEAD"  # no gradient gets through, or most of its parameters get none
    COLLAPSED = "COLLAPSED"  # it loses what enters, and did not when it was born
    VANISHING = "VANISHING"  # it loses what enters, from birth or for all that is known


class Severity(StrEnum):
    """How much an alert asks of the person who reads it."""

    WARNING = "warning"
    CRITICAL = "critical"


class EventType(StrEnum):
    """The types of events that this version writes; a reader meets unknown ones and skips them."""

    RUN_STARTED = "RUN_STARTED"
    RUN_RESUMED = "RUN_RESUMED"
    ENV_STARTED = "ENV_STARTED"
    SEED_GERMINATED = "SEED_GERMINATED"
    SEED_STAGE_CHANGED = "SEED_STAGE_CHANGED"
    SEED_PRUNED = "SEED_PRUNED"
    SEED_FOSSILIZED = "SEED_FOSSILIZED"
    GRADIENT_SAMPLED = "GRADIENT_SAMPLED"
    NON_FINITE_FOUND = "NON_FINITE_FOUND"
    EPOCH_COMPLETED = "EPOCH_COMPLETED"
    ALERT_RAISED = "ALERT_RAISED"
    ALERT_CLEARED = "ALERT_CLEARED"
    ACTION_TAKEN = "ACTION_TAKEN"
    REQUEST_ANSWERED = "REQUEST_ANSWERED"
    ENV_COMPLETED = "ENV_COMPLETED"
    ENV_FAILED = "ENV_FAILED"
    RUN_COMPLETED = "RUN_COMPLETED"
