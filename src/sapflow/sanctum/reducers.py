"""How one event changes the view of one env."""

from functools import singledispatch

from msgspec.structs import replace

from sapflow.sanctum.env_view import EnvView
from sapflow.sanctum.schema import Condition, EnvStatus, SeedState
from sapflow.sanctum.slot_view import SlotView
from sapflow.telemetry.events import (
    ActionTaken,
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    Payload,
    RequestAnswered,
    SeedFossilized,
    SeedGerminated,
    SeedPayload,
    SeedPruned,
    SeedStageChanged,
)
from sapflow.telemetry.vocabulary import SeedStage


@singledispatch
def reduce(payload: Payload, env: EnvView) -> bool:
    """Bring a settled view up to `payload`, which is neither an epoch nor a sample; whether that changes it."""
    return False


@reduce.register
def _(payload: EnvStarted, env: EnvView) -> bool:
    env.status = EnvStatus.TRAINING
    env.host, env.host_params, env.epochs = payload.host, payload.host_params, payload.epochs
    before = env.slots
    env.arrange({name: before.get(name) or SlotView(SeedState(slot_id=name)) for name in payload.slot_ids})
    return True


@reduce.register
def _(payload: SeedGerminated, env: EnvView) -> bool:
    env.put(replace(_newborn(payload), stage=SeedStage.GERMINATED, seed_params=payload.seed_params))
    return _count(env, germinated=env.totals.germinated + 1)


@reduce.register
def _(payload: SeedStageChanged, env: EnvView) -> bool:
    if payload.to_stage is SeedStage.DORMANT:  # the slot is free again
        env.put(SeedState(slot_id=payload.slot_id))
    else:
        env.put(replace(_seed_of(payload, env), stage=payload.to_stage, epochs_in_stage=0))
    return True


@reduce.register
def _(payload: SeedPruned, env: EnvView) -> bool:
    seed = _seed_of(payload, env)
    why = ": ".join(part for part in (payload.rule, payload.evidence or seed.evidence) if part)
    # What it was pruned for takes the place of the verdict on its last epoch.
    env.put(replace(seed, stage=SeedStage.PRUNED, epochs_in_stage=0, paused=False, fault=None, evidence=why))
    return _count(env, pruned=env.totals.pruned + 1)


@reduce.register
def _(payload: SeedFossilized, env: EnvView) -> bool:
    env.put(
        replace(
            _seed_of(payload, env),
            stage=SeedStage.FOSSILIZED,
            epochs_in_stage=0,
            seed_params=payload.seed_params,
            accuracy_delta=payload.accuracy_delta,
        )
    )
    return _count(env, fossilized=env.totals.fossilized + 1)


@reduce.register
def _(payload: AlertRaised, env: EnvView) -> bool:
    env.open_alerts = (*_others(env.open_alerts, payload.alert), payload.alert)
    env.worsen(Condition.ALERTED)
    return True


@reduce.register
def _(payload: AlertCleared, env: EnvView) -> bool:
    env.open_alerts = _others(env.open_alerts, payload.alert)
    return True


@reduce.register
def _(payload: ActionTaken, env: EnvView) -> bool:
    return payload.done and _pause(env, payload.alert.slot_id, payload.alert.seed_id, payload.action)


@reduce.register
def _(payload: RequestAnswered, env: EnvView) -> bool:
    return payload.done and _pause(env, payload.slot_id, payload.seed_id, payload.action)


@reduce.register
def _(payload: EnvCompleted, env: EnvView) -> bool:
    env.status = EnvStatus.COMPLETED
    if payload.accuracy is not None:
        env.accuracy = payload.accuracy
    return True


@reduce.register
def _(payload: EnvFailed, env: EnvView) -> bool:
    env.status, env.error = EnvStatus.FAILED, payload.error
    env.worsen(Condition.FAILED)
    return True


def _pause(env: EnvView, slot_id: str, seed_id: str, action: str) -> bool:
    """Hold a seed, or let it go on, at once: the epoch that says so itself may be long in coming."""
    slot = env.slots.get(slot_id)
    if action not in ("hold", "resume") or slot is None or slot.seed_id != seed_id:
        return False
    env.put(replace(slot.facts.state, paused=action == "hold"))
    return True


def _count(env: EnvView, **totals: int) -> bool:
    env.totals = replace(env.totals, **totals)
    return True


def _newborn(payload: SeedPayload) -> SeedState:
    return SeedState(slot_id=payload.slot_id, seed_id=payload.seed_id, blueprint_id=payload.blueprint_id)


def _seed_of(payload: SeedPayload, env: EnvView) -> SeedState:
    """The seed that the payload is about; a fresh view of it where its germination was missed."""
    slot = env.slots.get(payload.slot_id)
    return slot.facts.state if slot is not None and slot.seed_id == payload.seed_id else _newborn(payload)


def _others(alerts: tuple[Alert, ...], alert: Alert) -> tuple[Alert, ...]:
    key = (alert.rule, alert.slot_id, alert.seed_id)
    return tuple(other for other in alerts if (other.rule, other.slot_id, other.seed_id) != key)
