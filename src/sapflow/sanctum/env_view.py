"""One env while events come in: cheap to change, and made into an immutable EnvState when it is looked at."""

from collections import deque
from math import inf, nan

from msgspec.structs import replace

from sapflow.sanctum.schema import FLAGGED, Condition, EnvState, EnvStatus, LogLine, Seeds, SeedState, Totals
from sapflow.sanctum.slot_view import HISTORY_LIMIT, SlotView
from sapflow.telemetry.events import Alert, EpochCompleted, GradientSampled
from sapflow.telemetry.vocabulary import Measurement

ENV_LOG_LIMIT = 100
PACE_EPOCHS = 8  # that the passes a second are taken over

MEASURED = Measurement.MEASURED


class EnvView:
    """What is known of an env. `settle` before slots or totals are changed; `state` is what is shown."""

    def __init__(self, env_id: int) -> None:
        self.env_id = env_id
        self.host = ""
        self.host_params = 0
        self.status = EnvStatus.WAITING
        self.error = ""
        self.epoch = self.epochs = 0
        self.accuracy: float | None = None
        self.train_loss: float | None = None
        self.validation_loss: float | None = None
        self.slots: dict[str, SlotView] = {}
        self.open_alerts: tuple[Alert, ...] = ()
        self.totals = Totals()
        self.log: deque[LogLine] = deque(maxlen=ENV_LOG_LIMIT)
        self.last_sequence = -1
        self.last_time = 0.0
        self._concern = Condition.RESTING
        self._octaves_off = 0
        self._accuracies: deque[float] = deque(maxlen=HISTORY_LIMIT)
        self._losses: deque[float] = deque(maxlen=HISTORY_LIMIT)
        self._clock: deque[tuple[float, int]] = deque(maxlen=PACE_EPOCHS + 1)
        self._order: list[SlotView] = []
        self._slot_ids: list[str] = []
        self._newest: EpochCompleted | None = None  # whose histories are taken, and the rest is not

    def end_epoch(self, payload: EpochCompleted, time: float) -> None:
        """Take an epoch: what only the newest is shown of waits until it is looked at."""
        seeds = payload.seeds
        if [seed.slot_id for seed in seeds] != self._slot_ids:
            payload = self._rearranged_for(payload)
            seeds = payload.seeds
        for slot, seed in zip(self._order, seeds, strict=True):
            if slot.seed_id != seed.seed_id:
                slot.begin(seed.seed_id)
            slot.history.append(seed.grad_ratio if seed.measurement is MEASURED else nan)
        if payload.accuracy is not None:
            self._accuracies.append(payload.accuracy)
        if payload.validation_loss is not None:
            self._losses.append(payload.validation_loss)
        self._clock.append((time, payload.total_passes))
        self._newest = payload

    def settle(self) -> None:
        """Be as the newest epoch says, whole."""
        payload = self._newest
        if payload is None:
            return
        self._newest = None
        self._concern, self._octaves_off = Condition.ALERTED if payload.open_alerts else Condition.RESTING, 0
        for slot, seed in zip(self._order, payload.seeds, strict=True):
            condition = slot.end_epoch(seed)
            if condition > self._concern or condition in FLAGGED:
                self.worsen(condition, slot.octaves_off)
        self.status = EnvStatus.TRAINING
        self.epoch, self.epochs = payload.epoch, payload.epochs
        self.accuracy, self.train_loss = payload.accuracy, payload.train_loss
        self.validation_loss = payload.validation_loss
        self.open_alerts = payload.open_alerts
        self.totals = Totals(
            passes=payload.total_passes,
            germinated=payload.total_germinated,
            pruned=payload.total_pruned,
            fossilized=payload.total_fossilized,
            shadows=payload.total_shadows,
            recompiles=payload.total_recompiles,
        )

    def take_sample(self, sample: GradientSampled) -> bool:
        """What is seen of a seed within an epoch; whether it is news."""
        self.settle()
        slot = self.slots.get(sample.slot_id)
        if slot is None or sample.epoch <= self.epoch or not slot.take_sample(sample):
            return False
        self.worsen(slot.facts.mark.condition, slot.octaves_off)
        return True

    def worsen(self, condition: Condition, octaves_off: int = 0) -> None:
        """Raise the concern to this, if it is lower."""
        if condition > self._concern:
            self._concern = condition
        if octaves_off > self._octaves_off:
            self._octaves_off = octaves_off

    def put(self, state: SeedState) -> None:
        """Let a slot be this."""
        slot = self.slots.get(state.slot_id)
        if slot is None:
            slot = SlotView(state)
            self.arrange({**self.slots, state.slot_id: slot})
        else:
            slot.become(state)
        self.worsen(slot.facts.mark.condition, slot.octaves_off)

    def arrange(self, slots: dict[str, SlotView]) -> None:
        """Have these slots, in this order."""
        self.slots = slots
        self._order, self._slot_ids = list(slots.values()), list(slots)

    def forget_pace(self, *, before: float) -> None:
        """Of a run that was cut off and goes on: between the two it was not training."""
        while self._clock and self._clock[0][0] < before:
            self._clock.popleft()

    @property
    def state(self) -> EnvState:
        """The env now."""
        self.settle()
        return EnvState(
            env_id=self.env_id,
            host=self.host,
            host_params=self.host_params,
            status=self.status,
            error=self.error,
            epoch=self.epoch,
            epochs=self.epochs,
            accuracy=self.accuracy,
            train_loss=self.train_loss,
            validation_loss=self.validation_loss,
            accuracy_history=tuple(self._accuracies),
            loss_history=tuple(self._losses),
            seeds=Seeds({slot_id: slot.facts for slot_id, slot in self.slots.items()}),
            open_alerts=self.open_alerts,
            totals=self.totals,
            log=tuple(self.log),
            passes_per_second=self._pace(),
            concern=self._concern,
            octaves_off=self._octaves_off,
            last_sequence=self.last_sequence,
            last_time=self.last_time,
        )

    def _pace(self) -> float:
        """Passes a second over the last epochs."""
        if len(self._clock) < 2:
            return 0.0
        (begun, before), (ended, after) = self._clock[0], self._clock[-1]
        pace = max(after - before, 0) / (ended - begun) if ended > begun else 0.0
        return pace if pace < inf else 0.0

    def _rearranged_for(self, payload: EpochCompleted) -> EpochCompleted:
        """Have the slots of an epoch that has others than before; those that stay keep their seeds and histories."""
        self.settle()
        seeds = {seed.slot_id: seed for seed in payload.seeds}
        self.arrange({
            slot_id: self.slots.get(slot_id) or SlotView(SeedState(slot_id=slot_id)) for slot_id in seeds
        })  # fmt: skip
        return replace(payload, seeds=tuple(seeds.values()))  # of a slot that is there twice, the last
