"""How one event changes one env: pure functions from an EnvState and a payload to the next EnvState."""

from collections.abc import Iterable, Mapping
from functools import singledispatch
from math import nan
from types import MappingProxyType
from typing import TypeVar

from msgspec.structs import replace

from sapflow.sanctum.schema import EnvState, EnvStatus, SeedState, Totals
from sapflow.telemetry.events import (
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    Payload,
    SeedFossilized,
    SeedGerminated,
    SeedPayload,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
)
from sapflow.telemetry.vocabulary import Measurement, SeedStage

HISTORY_LIMIT = 64  # epochs

Item = TypeVar("Item")


@singledispatch
def reduce(payload: Payload, env: EnvState) -> EnvState:
    """The env after `payload`; the same object where the payload changes nothing."""
    return env


@reduce.register
def _(payload: EnvStarted, env: EnvState) -> EnvState:
    return replace(
        env,
        status=EnvStatus.TRAINING,
        host=payload.host,
        host_params=payload.host_params,
        epochs=payload.epochs,
        seeds=_by_slot(env.seeds.get(slot_id, SeedState(slot_id=slot_id)) for slot_id in payload.slot_ids),
    )


@reduce.register
def _(payload: SeedGerminated, env: EnvState) -> EnvState:
    seed = replace(_newborn(payload), stage=SeedStage.GERMINATED, seed_params=payload.seed_params)
    return replace(_with_seed(env, seed), totals=replace(env.totals, germinated=env.totals.germinated + 1))


@reduce.register
def _(payload: SeedStageChanged, env: EnvState) -> EnvState:
    if payload.to_stage is SeedStage.DORMANT:  # the slot is free again
        return _with_seed(env, SeedState(slot_id=payload.slot_id))
    return _with_seed(env, replace(_seed_of(payload, env), stage=payload.to_stage, epochs_in_stage=0))


@reduce.register
def _(payload: SeedPruned, env: EnvState) -> EnvState:
    seed = _seed_of(payload, env)
    seed = replace(seed, stage=SeedStage.PRUNED, epochs_in_stage=0, evidence=payload.evidence or seed.evidence)
    return replace(_with_seed(env, seed), totals=replace(env.totals, pruned=env.totals.pruned + 1))


@reduce.register
def _(payload: SeedFossilized, env: EnvState) -> EnvState:
    seed = replace(
        _seed_of(payload, env),
        stage=SeedStage.FOSSILIZED,
        epochs_in_stage=0,
        seed_params=payload.seed_params,
        accuracy_delta=payload.accuracy_delta,
    )
    return replace(_with_seed(env, seed), totals=replace(env.totals, fossilized=env.totals.fossilized + 1))


@reduce.register
def _(payload: GradientSampled, env: EnvState) -> EnvState:
    seed = env.seeds.get(payload.slot_id)
    if seed is None or seed.seed_id != payload.seed_id or payload.epoch <= env.epoch or not payload.pass_index:
        return env
    sample = (payload.epoch, payload.pass_index[0])
    if sample <= seed.newest_sample:
        return env
    live = {field: getattr(payload.health, field) for field in GradientHealth.__struct_fields__}
    return _with_seed(env, replace(seed, **live, newest_sample=sample))


@reduce.register
def _(payload: EpochCompleted, env: EnvState) -> EnvState:
    return replace(
        env,
        status=EnvStatus.TRAINING,
        epoch=payload.epoch,
        epochs=payload.epochs,
        accuracy=payload.accuracy,
        train_loss=payload.train_loss,
        validation_loss=payload.validation_loss,
        accuracy_history=_remember(env.accuracy_history, payload.accuracy),
        loss_history=_remember(env.loss_history, payload.validation_loss),
        seeds=_by_slot(_grown(seed, env.seeds.get(seed.slot_id)) for seed in payload.seeds),
        open_alerts=payload.open_alerts,
        totals=Totals(
            passes=payload.total_passes,
            germinated=payload.total_germinated,
            pruned=payload.total_pruned,
            fossilized=payload.total_fossilized,
            alerts=payload.total_alerts,
            shadows=payload.total_shadows,
            recompiles=payload.total_recompiles,
        ),
    )


@reduce.register
def _(payload: AlertRaised, env: EnvState) -> EnvState:
    return replace(
        env,
        open_alerts=(*_others(env.open_alerts, payload.alert), payload.alert),
        totals=replace(env.totals, alerts=env.totals.alerts + 1),
    )


@reduce.register
def _(payload: AlertCleared, env: EnvState) -> EnvState:
    return replace(env, open_alerts=_others(env.open_alerts, payload.alert))


@reduce.register
def _(payload: EnvCompleted, env: EnvState) -> EnvState:
    accuracy = env.accuracy if payload.accuracy is None else payload.accuracy
    return replace(env, status=EnvStatus.COMPLETED, accuracy=accuracy)


@reduce.register
def _(payload: EnvFailed, env: EnvState) -> EnvState:
    return replace(env, status=EnvStatus.FAILED, error=payload.error)


def _newborn(payload: SeedPayload) -> SeedState:
    return SeedState(slot_id=payload.slot_id, seed_id=payload.seed_id, blueprint_id=payload.blueprint_id)


def _seed_of(payload: SeedPayload, env: EnvState) -> SeedState:
    """The seed that the payload is about; a fresh view of it where its germination was missed."""
    seed = env.seeds.get(payload.slot_id)
    return seed if seed is not None and seed.seed_id == payload.seed_id else _newborn(payload)


def _grown(telemetry: SeedTelemetry, before: SeedState | None) -> SeedState:
    """The view of a slot after an epoch; a new seed begins a new history."""
    ratio = telemetry.grad_ratio if telemetry.measurement is Measurement.MEASURED else nan
    history = before.ratio_history if before is not None and before.seed_id == telemetry.seed_id else ()
    return SeedState.from_telemetry(telemetry, ratio_history=_remember(history, ratio))


def _with_seed(env: EnvState, seed: SeedState) -> EnvState:
    return replace(env, seeds=MappingProxyType({**env.seeds, seed.slot_id: seed}))


def _by_slot(seeds: Iterable[SeedState]) -> Mapping[str, SeedState]:
    return MappingProxyType({seed.slot_id: seed for seed in seeds})


def _remember(history: tuple[Item, ...], item: Item | None) -> tuple[Item, ...]:
    return history if item is None else (*history, item)[-HISTORY_LIMIT:]


def _others(alerts: tuple[Alert, ...], alert: Alert) -> tuple[Alert, ...]:
    key = (alert.rule, alert.slot_id, alert.seed_id)
    return tuple(other for other in alerts if (other.rule, other.slot_id, other.seed_id) != key)
