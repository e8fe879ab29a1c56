"""The words of the events log: what is said of each payload, wherever it is read."""

from functools import singledispatch

from sapflow.telemetry.events import (
    ActionTaken,
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    NonFiniteOrigin,
    Payload,
    RequestAnswered,
    RunCompleted,
    RunResumed,
    RunStarted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
)
from sapflow.telemetry.vocabulary import SeedStage


@singledispatch
def describe(payload: Payload) -> tuple[str, ...]:
    """The parts of the payload's line in the log; none for a payload that has no line (samples, epochs)."""
    return ()


@describe.register
def _(payload: RunStarted) -> tuple[str, ...]:
    epochs = counted(payload.epochs, "epoch") if payload.epochs else "any number of epochs"
    return ("run started", payload.task, counted(payload.envs, "env"), epochs)


@describe.register
def _(payload: RunResumed) -> tuple[str, ...]:
    return (f"run resumed from epoch {payload.from_epoch}",)


@describe.register
def _(payload: EnvStarted) -> tuple[str, ...]:
    return ("started", payload.host, f"{payload.host_params} parameters")


@describe.register
def _(payload: SeedGerminated) -> tuple[str, ...]:
    planted = ("planted",) if payload.planted else ()
    return ("germinated", payload.blueprint_id, f"birth gain {payload.birth_gain:.3g}", *planted)


@describe.register
def _(payload: SeedStageChanged) -> tuple[str, ...]:
    if payload.to_stage in (SeedStage.PRUNED, SeedStage.FOSSILIZED):  # these have an event, and so a line, of their own
        return ()
    return (f"{payload.from_stage} → {payload.to_stage}", payload.blueprint_id, payload.reason)


@describe.register
def _(payload: SeedPruned) -> tuple[str, ...]:
    return ("pruned", payload.blueprint_id, payload.rule, f"ratio {payload.grad_ratio:.3g}", payload.evidence)


@describe.register
def _(payload: SeedFossilized) -> tuple[str, ...]:
    return ("fossilized", payload.blueprint_id, f"Acc Δ {payload.accuracy_delta:+.3g} %")


@describe.register
def _(payload: NonFiniteOrigin) -> tuple[str, ...]:
    return (f"NaN or infinity was {payload.text}",)


@describe.register
def _(payload: AlertRaised) -> tuple[str, ...]:
    return describe_alert(payload.alert)


@describe.register
def _(payload: AlertCleared) -> tuple[str, ...]:
    return ("cleared", payload.alert.rule, payload.alert.blueprint_id, payload.reason)


@describe.register
def _(payload: ActionTaken) -> tuple[str, ...]:
    alert = payload.alert
    return (
        payload.action if payload.done else f"{payload.action} failed",
        alert.blueprint_id,
        alert.rule,
        payload.outcome,
    )


@describe.register
def _(payload: RequestAnswered) -> tuple[str, ...]:
    asker = f"asked for by {payload.by}" if payload.by else ""
    return (
        f"{payload.action} by hand" if payload.done else f"{payload.action} refused",
        payload.blueprint_id,
        asker,
        payload.outcome,
    )


@describe.register
def _(payload: EnvCompleted) -> tuple[str, ...]:
    return ("completed", "" if payload.accuracy is None else f"accuracy {payload.accuracy:.3g} %")


@describe.register
def _(payload: EnvFailed) -> tuple[str, ...]:
    return ("failed", payload.error)


@describe.register
def _(payload: RunCompleted) -> tuple[str, ...]:
    failed = (f"{payload.failed_envs} failed",) if payload.failed_envs else ()
    return ("run completed", counted(payload.completed_envs, "env"), *failed)


def describe_alert(alert: Alert) -> tuple[str, ...]:
    """The parts of an alert's line: rule, blueprint, value, since when, evidence, and what it asks for."""
    actions = (f"→ {', '.join(alert.actions)}",) if alert.actions else ()
    since = f"since epoch {alert.since_epoch}"
    return (alert.rule, alert.blueprint_id, f"value {alert.value:.3g}", since, alert.evidence, *actions)


def counted(number: int, what: str) -> str:
    """How many of them: 1 env, 2 envs."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
