"""One slot while events come in: takes epochs and samples cheaply, and becomes a SeedState when it is looked at."""

from collections import deque
from collections.abc import Iterable

from msgspec.structs import replace

from sapflow.sanctum.schema import Condition, SeedState, condition_of, octaves_off
from sapflow.telemetry.events import GradientHealth, GradientSampled, SeedTelemetry

HISTORY_LIMIT = 64  # epochs
HEALTH_FIELDS = GradientHealth.__struct_fields__


class SlotView:
    """What is known of a slot: its telemetry of the last epoch, samples since, and the ratios of its seed's epochs."""

    __slots__ = ("_health", "_state", "history", "newest_sample", "seed_id", "telemetry")

    def __init__(self, state: SeedState) -> None:
        self.become(state)

    def become(self, state: SeedState) -> None:
        """Be this, with its history."""
        self.telemetry: SeedTelemetry = state
        self.seed_id = state.seed_id
        self.history = deque(state.ratio_history, HISTORY_LIMIT)
        self.newest_sample = state.newest_sample
        self._health: GradientHealth = state
        self._state: SeedState | None = state

    def begin(self, seed_id: str, history: Iterable[float] = ()) -> None:
        """Another seed grows here from now on."""
        self.seed_id = seed_id
        self.history = deque(history, HISTORY_LIMIT)

    def end_epoch(self, telemetry: SeedTelemetry) -> None:
        """What an epoch says of the seed, whose ratio is in the history already."""
        self.telemetry = self._health = telemetry
        self.newest_sample = (0, -1)
        self._state = None

    def take_sample(self, sample: GradientSampled) -> bool:
        """What is seen of the seed within an epoch; whether it is news."""
        if sample.seed_id != self.seed_id or not sample.pass_index:
            return False
        place = (sample.epoch, sample.pass_index[0])
        if place <= self.newest_sample:
            return False
        self.newest_sample = place
        self._health = sample.health
        self._state = None
        return True

    @property
    def condition(self) -> Condition:
        """How the gradient flows now."""
        return condition_of(self.telemetry.stage, self._health)

    @property
    def octaves_off(self) -> int:
        """Whole octaves between the ratio and 1, where it is flagged."""
        flagged = self._health.has_vanishing or self._health.has_exploding
        if not flagged or self.condition not in (Condition.VANISHING, Condition.EXPLODING):
            return 0
        return octaves_off(self._health.grad_ratio)

    @property
    def state(self) -> SeedState:
        """The slot as it is shown; the same object until something changes."""
        if self._state is None:
            telemetry, history = self.telemetry, tuple(self.history)
            if self._health is telemetry and type(telemetry) is SeedTelemetry:  # an epoch, and no sample since
                self._state = SeedState.from_telemetry(telemetry, ratio_history=history)
                return self._state
            state = telemetry if isinstance(telemetry, SeedState) else SeedState.from_telemetry(telemetry)
            live = {} if self._health is telemetry else {name: getattr(self._health, name) for name in HEALTH_FIELDS}
            self._state = replace(state, ratio_history=history, newest_sample=self.newest_sample, **live)
        return self._state
