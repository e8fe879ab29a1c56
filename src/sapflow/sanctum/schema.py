"""What Sanctum knows of a run at one moment: immutable, and shared between snapshots where nothing changed."""

import math
from collections.abc import Iterator, Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Self

import msgspec
from msgspec import Struct

from sapflow.telemetry.events import Alert, GradientHealth, SeedTelemetry
from sapflow.telemetry.source import RunStatus
from sapflow.telemetry.vocabulary import EventType, Measurement, SeedStage, Severity


class Condition(IntEnum):
    """How a slot or an env is doing; the greater, the worse."""

    RESTING = 0
    HEALTHY = 1
    UNMEASURED = 2
    ALERTED = 3
    VANISHING = 4
    EXPLODING = 5
    NON_FINITE = 6
    FAILED = 7


FLAGGED = (Condition.VANISHING, Condition.EXPLODING)


class EnvStatus(StrEnum):
    """Where an env stands; WAITING until its first event."""

    WAITING = "WAITING"
    TRAINING = "TRAINING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class SeedState(SeedTelemetry, frozen=True, kw_only=True):
    """Sanctum's view of a slot: the newest telemetry of its seed, and how its ratio came there.

    `ratio_history` holds the grad_ratio of the seed's last epochs, NaN for an epoch without a measured one.
    `newest_sample` is the epoch and the first pass of the newest sample that went into the values.
    """

    ratio_history: tuple[float, ...] = ()
    newest_sample: tuple[int, int] = (0, -1)

    @classmethod
    def from_telemetry(cls, telemetry: SeedTelemetry, **fields: object) -> Self:
        """The view of `telemetry`, with these fields instead of its own."""
        return cls(**(msgspec.structs.asdict(telemetry) | fields))

    @property
    def condition(self) -> Condition:
        """How the gradient flows; RESTING in a stage in which none is expected to."""
        return condition_of(self.stage, self)


_TRAINED = frozenset(stage for stage in SeedStage if stage.trained)


def condition_of(stage: SeedStage, health: GradientHealth) -> Condition:
    """How the gradient flows through a seed of this stage."""
    if stage not in _TRAINED:
        return Condition.RESTING
    if health.measurement is Measurement.NON_FINITE:
        return Condition.NON_FINITE
    if health.has_exploding:
        return Condition.EXPLODING
    if health.has_vanishing:
        return Condition.VANISHING
    return Condition.HEALTHY if health.measurement is Measurement.MEASURED else Condition.UNMEASURED


class SlotMark(Struct, frozen=True, gc=False):
    """What a few cells show of a slot."""

    stage: SeedStage
    condition: Condition
    held: bool


class SlotFacts(Struct, gc=False):
    """What is known of a slot at one moment: its mark, and all else once somebody looks at it.

    `health` is that of the newest sample, or `telemetry` itself where none came since.
    """

    telemetry: SeedTelemetry
    health: GradientHealth
    mark: SlotMark
    ratio_history: tuple[float, ...]
    newest_sample: tuple[int, int]
    _state: SeedState | None = None

    @property
    def state(self) -> SeedState:
        """The slot as it is shown."""
        if self._state is None:
            newer = () if self.health is self.telemetry else GradientHealth.__struct_fields__
            self._state = SeedState.from_telemetry(
                self.telemetry,
                ratio_history=self.ratio_history,
                newest_sample=self.newest_sample,
                **{name: getattr(self.health, name) for name in newer},
            )
        return self._state


def facts_of(
    telemetry: SeedTelemetry, health: GradientHealth, ratio_history: tuple[float, ...], newest_sample: tuple[int, int]
) -> SlotFacts:
    """What is known of a slot by these."""
    mark = SlotMark(telemetry.stage, condition_of(telemetry.stage, health), telemetry.paused)
    return SlotFacts(telemetry, health, mark, ratio_history, newest_sample)


class Seeds(Mapping[str, SeedState]):
    """The slots of an env at one moment, in the order of its host; `marks` are theirs."""

    __slots__ = ("_facts", "marks")

    def __init__(self, facts: Mapping[str, SlotFacts]) -> None:
        self._facts = facts
        self.marks = tuple([slot.mark for slot in facts.values()])

    def __getitem__(self, slot_id: str) -> SeedState:
        return self._facts[slot_id].state

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __repr__(self) -> str:
        return f"Seeds({dict(self)})"


class LogLine(Struct, frozen=True, kw_only=True, gc=False):
    """An entry of the events log. `parts` are the journal's own texts: clean them before they are shown."""

    time: float
    env_id: int | None
    sequence: int
    kind: EventType
    parts: tuple[str, ...]
    slot_id: str = ""
    seed_id: str = ""
    blueprint_id: str = ""
    severity: Severity | None = None

    @property
    def order(self) -> tuple[float, int, int]:
        """Sorts the lines of several envs by time, the same in whatever order they arrived."""
        return (self.time, -1 if self.env_id is None else self.env_id, self.sequence)


class Totals(Struct, frozen=True, kw_only=True, gc=False):
    """Counts from the env's start on."""

    passes: int = 0
    germinated: int = 0
    pruned: int = 0
    fossilized: int = 0
    shadows: int = 0
    recompiles: int = 0


class EnvState(Struct, frozen=True, kw_only=True, gc=False):
    """One host. `epoch` is the last completed one; `seeds` is in the order of the host's slots.

    Accuracies in percent on the validation split, losses in the task's unit, both None before the first epoch.
    `concern` and, among equals, `octaves_off` order the overview: the worst condition, and how far from 1 the gain of a
    flagged seed is. They rise at once and fall only when an epoch ends, so that cards keep their places.
    `passes_per_second` is taken over the last epochs, 0.0 while unknown.
    """

    env_id: int
    host: str = ""
    host_params: int = 0
    status: EnvStatus = EnvStatus.WAITING
    error: str = ""
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    accuracy_history: tuple[float, ...] = ()
    loss_history: tuple[float, ...] = ()
    seeds: Seeds = Seeds({})
    open_alerts: tuple[Alert, ...] = ()
    totals: Totals = Totals()
    log: tuple[LogLine, ...] = ()
    passes_per_second: float = 0.0
    concern: Condition = Condition.RESTING
    octaves_off: int = 0
    last_sequence: int = -1
    last_time: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether it trains no more, for good."""
        return self.status in (EnvStatus.COMPLETED, EnvStatus.FAILED)

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts the env that needs a look most before the others."""
        return (-self.concern, -self.octaves_off)

    @property
    def condition(self) -> Condition:
        """The worst of the env now."""
        if self.status is EnvStatus.FAILED:
            return Condition.FAILED
        alerted = Condition.ALERTED if self.open_alerts else Condition.RESTING
        return max([alerted, *(mark.condition for mark in self.seeds.marks)])


def octaves_off(ratio: float) -> int:
    """Whole octaves between a ratio and 1; a dead or an infinite one is farther than all others."""
    return round(abs(math.log2(ratio))) if 0 < ratio < math.inf else 1_100


class SanctumSnapshot(Struct, frozen=True, kw_only=True):
    """The run at one moment; `started_at` in Unix seconds, None before the run said that it began.

    `resumed_at` and `resumed_from` are when it last went on after it had been cut off, and behind which epoch; where it
    never was, its start.
    `expected_envs` and `expected_epochs` are what was asked for, 0 while unknown. `gaps` counts the places where events
    are missing, `duplicates` the events that came again, `left_out` those that say what cannot be. `passes_per_second`
    sums the envs that train; `read_until` is the time of the newest event that went in.
    """

    run_id: str = ""
    task: str = ""
    started_at: float | None = None
    resumed_at: float | None = None
    resumed_from: int = 0
    expected_envs: int = 0
    expected_epochs: int = 0
    envs: Mapping[int, EnvState] = MappingProxyType({})
    log: tuple[LogLine, ...] = ()
    status: RunStatus | None = None
    duplicates: int = 0
    gaps: int = 0
    left_out: int = 0
    passes_per_second: float = 0.0
    read_until: float | None = None

    @property
    def lag(self) -> float:
        """Seconds between the newest event that went in and the newest in the journal; 0.0 where none is unread."""
        status = self.status
        if status is None or not status.unread or status.last_event_time is None or self.read_until is None:
            return 0.0
        return max(status.last_event_time - self.read_until, 0.0)

    def worst_first(self) -> tuple[int, ...]:
        """The ids of the envs, the one most in need of a look first; equals in the order of their ids."""
        return tuple(sorted(self.envs, key=lambda env_id: (*self.envs[env_id].urgency, env_id)))
