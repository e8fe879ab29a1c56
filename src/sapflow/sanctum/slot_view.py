"""One slot while events come in: takes epochs and samples cheaply."""

from collections import deque
from collections.abc import Iterable

from sapflow.sanctum.schema import FLAGGED, Condition, SeedState, facts_of, octaves_off
from sapflow.telemetry.events import GradientHealth, GradientSampled, SeedTelemetry

HISTORY_LIMIT = 64  # epochs


class SlotView:
    """What is known of a slot: its telemetry of the last epoch, samples since, and the ratios of its seed's epochs.

    Attributes:
        facts: the slot now; the same object until something changes.
    """

    __slots__ = ("facts", "history", "newest_sample", "seed_id")

    def __init__(self, state: SeedState) -> None:
        self.become(state)

    def become(self, state: SeedState) -> None:
        """Be this, with its history."""
        self.seed_id = state.seed_id
        self.history = deque(state.ratio_history, HISTORY_LIMIT)
        self.newest_sample = state.newest_sample
        self._know(state, state)

    def begin(self, seed_id: str, history: Iterable[float] = ()) -> None:
        """Another seed grows here from now on."""
        self.seed_id = seed_id
        self.history = deque(history, HISTORY_LIMIT)

    def end_epoch(self, telemetry: SeedTelemetry) -> Condition:
        """What an epoch says of the seed, whose ratio is in the history already; how the gradient flows."""
        self.newest_sample = (0, -1)
        return self._know(telemetry, telemetry)

    def take_sample(self, sample: GradientSampled) -> bool:
        """What is seen of the seed within an epoch; whether it is news."""
        if sample.seed_id != self.seed_id or not sample.pass_index:
            return False
        place = (sample.epoch, sample.pass_index[0])
        if place <= self.newest_sample:
            return False
        self.newest_sample = place
        self._know(self.facts.telemetry, sample.health)
        return True

    @property
    def octaves_off(self) -> int:
        """Whole octaves between the ratio and 1, where it is flagged."""
        return octaves_off(self.facts.health.grad_ratio) if self.facts.mark.condition in FLAGGED else 0

    def _know(self, telemetry: SeedTelemetry, health: GradientHealth) -> Condition:
        self.facts = facts_of(telemetry, health, tuple(self.history), self.newest_sample)
        return self.facts.mark.condition
