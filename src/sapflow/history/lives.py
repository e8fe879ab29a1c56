"""The tables `seeds`, a row for each life, and `alerts`, a row for each alert: folded from events."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isnan, nan

from sapflow.history.arrow import pa
from sapflow.history.columns import batch_of
from sapflow.history.epochs import measured
from sapflow.history.gradients import STAGE_EVENTS, stage_after
from sapflow.history.journal_rows import JournalRows
from sapflow.history.schemas import ALERTS, SEEDS
from sapflow.telemetry.events import (
    Alert,
    AlertCleared,
    AlertRaised,
    EpochCompleted,
    SeedFossilized,
    SeedGerminated,
    SeedPayload,
    SeedPruned,
    SeedTelemetry,
)
from sapflow.telemetry.vocabulary import EventType, SeedStage


@dataclass(kw_only=True)
class _Life:
    env: int
    slot: str
    seed: str
    blueprint: str
    planted: bool = False
    born_epoch: int | None = None
    birth_gain: float | None = None
    params: int = 0
    stages: list[tuple[str, int]] = field(default_factory=list)
    died_epoch: int | None = None
    died_of: str | None = None
    last_ratio: float = nan
    last_stage: str = ""
    accuracy_delta: float = 0.0

    def enter(self, stage: SeedStage, epoch: int) -> None:
        """A stage that is said twice (as pruned and fossilised are) is entered once."""
        if stage.value != self.last_stage:
            self.stages.append((stage.value, epoch))
            self.last_stage = stage.value


class _Lives:
    """Takes what is said of seeds in its order. A watched module is born when watching begins."""

    def __init__(self) -> None:
        self.all: list[_Life] = []
        self._by_seed: dict[tuple[int, str, str], _Life] = {}

    def hear(self, env: int, payload: SeedPayload) -> None:
        stage = stage_after(payload)
        if not stage.alive and stage is not SeedStage.PRUNED:  # a stage of the empty slot
            return
        life = self._life_of(env, payload.slot_id, payload.seed_id, payload.blueprint_id)
        if isinstance(payload, SeedGerminated):
            life.born_epoch, life.birth_gain = payload.epoch, payload.birth_gain
            life.params, life.planted = payload.seed_params, payload.planted
        elif stage is SeedStage.WATCHED:
            life.born_epoch = payload.epoch if life.born_epoch is None else life.born_epoch
        elif isinstance(payload, SeedFossilized):
            life.params, life.accuracy_delta = payload.seed_params, payload.accuracy_delta
        elif isinstance(payload, SeedPruned):
            life.died_epoch, life.died_of = payload.epoch, payload.rule
        life.enter(stage, payload.epoch)

    def see(self, env: int, epoch: int, seed: SeedTelemetry) -> None:
        if not seed.stage.alive:
            return
        life = self._life_of(env, seed.slot_id, seed.seed_id, seed.blueprint_id)
        life.enter(seed.stage, epoch)
        life.params, life.accuracy_delta = seed.seed_params, seed.accuracy_delta
        ratio = measured(seed, seed.grad_ratio)
        life.last_ratio = life.last_ratio if isnan(ratio) else ratio

    def _life_of(self, env: int, slot: str, seed: str, blueprint: str) -> _Life:
        life = self._by_seed.get((env, slot, seed))
        if life is None:
            life = _Life(env=env, slot=slot, seed=seed, blueprint=blueprint)
            self._by_seed[env, slot, seed] = life
            self.all.append(life)
        return life


def seed_batches(rows: JournalRows, env: int | None, wanted: set[str]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of all lives, in the order in which they began."""
    lives = _Lives()
    for _, event in rows.readable((*STAGE_EVENTS, EventType.EPOCH_COMPLETED), env):
        payload = event.payload
        if event.env_id is None:
            continue
        if isinstance(payload, EpochCompleted):
            for seed in payload.seeds:
                lives.see(event.env_id, payload.epoch, seed)
        elif isinstance(payload, SeedPayload):
            lives.hear(event.env_id, payload)
    stages = [[{"stage": stage, "epoch": epoch} for stage, epoch in life.stages] for life in lives.all]
    yield batch_of(SEEDS, {**_attributes(lives.all, SEEDS), "stages": lambda: stages}, wanted)


@dataclass(kw_only=True)
class _AlertRow:
    env: int
    alert: Alert
    raised_epoch: int
    cleared_epoch: int | None = None
    cleared_reason: str | None = None


def alert_batches(rows: JournalRows, env: int | None, wanted: set[str]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of all alerts, in the order in which they were raised."""
    alerts: list[_AlertRow] = []
    still_open: dict[tuple[int, str, str, str], _AlertRow] = {}
    for _, event in rows.readable((EventType.ALERT_RAISED, EventType.ALERT_CLEARED), env):
        payload = event.payload
        if event.env_id is None or not isinstance(payload, AlertRaised | AlertCleared):
            continue
        alert = payload.alert
        key = (event.env_id, alert.rule, alert.slot_id, alert.seed_id)
        if isinstance(payload, AlertRaised):
            still_open[key] = _AlertRow(env=event.env_id, alert=alert, raised_epoch=payload.epoch)
            alerts.append(still_open[key])
        elif row := still_open.pop(key, None):
            row.cleared_epoch, row.cleared_reason = payload.epoch, payload.reason
    columns = {
        **_attributes(alerts, ALERTS),
        "slot": lambda: [row.alert.slot_id for row in alerts],
        "seed": lambda: [row.alert.seed_id for row in alerts],
        "blueprint": lambda: [row.alert.blueprint_id for row in alerts],
        "severity": lambda: [row.alert.severity.value for row in alerts],
        **{
            name: _attributes([row.alert for row in alerts], ALERTS)[name]
            for name in ("rule", "value", "evidence", "since_epoch", "actions")
        },
    }
    yield batch_of(ALERTS, columns, wanted)


def _attributes(items: Sequence[object], schema: pa.Schema) -> dict[str, Callable[[], list[object]]]:
    """For each column of the schema the attribute of that name, of all items."""

    def values(name: str) -> list[object]:
        return [getattr(item, name) for item in items]

    return {name: partial(values, name) for name in schema.names}
