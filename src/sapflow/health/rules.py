"""Alert rules: conditions that must hold for some epochs, clear for some, and ask for an action."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from sapflow.telemetry.events import Alert, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity


class Condition(StrEnum):
    """What a rule looks at in an epoch of a seed."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    NON_FINITE = "non_finite"
    RATIO_BELOW = "ratio_below"
    RATIO_ABOVE = "ratio_above"


class Action(StrEnum):
    """What a rule asks the controller to do; the alert itself is always said."""

    PRUNE = "prune"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`when` holds for `for_epochs` measured epochs in a row: raised; fails to for `clear_after`: cleared.

    `level` is the ratio that RATIO_BELOW and RATIO_ABOVE compare with.
    """

    name: str
    when: Condition
    for_epochs: int
    clear_after: int = 2
    severity: Severity = Severity.WARNING
    actions: tuple[Action, ...] = ()
    level: float = 0.0

    def holds(self, seed: SeedTelemetry) -> bool:
        """Whether the condition is met in the epoch that `seed` reports."""
        match self.when:
            case Condition.VANISHING:
                return seed.has_vanishing
            case Condition.EXPLODING:
                return seed.has_exploding
            case Condition.NON_FINITE:
                return seed.non_finite_passes > 0 or seed.masked_values > 0
            case Condition.RATIO_BELOW:
                return seed.measurement is Measurement.MEASURED and seed.grad_ratio < self.level
            case Condition.RATIO_ABOVE:
                return seed.measurement is Measurement.MEASURED and seed.grad_ratio > self.level


# Flags are no verdict of death: trained healthy seeds leave the band. What is pruned has been beyond these wider levels
# for some epochs; they are measured on healthy seeds (docs/prune-levels.md, benchmarks/prune_levels.py).
PRUNE_BELOW = 0.02
PRUNE_ABOVE = 20.0

DEFAULT_RULES = (
    Rule(name="vanishing seed", when=Condition.VANISHING, for_epochs=2),
    Rule(name="exploding seed", when=Condition.EXPLODING, for_epochs=2),
    Rule(
        name="dying seed",
        when=Condition.RATIO_BELOW,
        level=PRUNE_BELOW,
        for_epochs=3,
        severity=Severity.CRITICAL,
        actions=(Action.PRUNE,),
    ),
    Rule(
        name="runaway seed",
        when=Condition.RATIO_ABOVE,
        level=PRUNE_ABOVE,
        for_epochs=3,
        severity=Severity.CRITICAL,
        actions=(Action.PRUNE,),
    ),
    Rule(
        name="non-finite seed",
        when=Condition.NON_FINITE,
        for_epochs=1,
        severity=Severity.CRITICAL,
        actions=(Action.PRUNE,),
    ),
)


# For modules that no slot manages: nobody is pruned, and persistence is the policy's own affair.
WATCH_RULES = (
    Rule(name="vanishing module", when=Condition.VANISHING, for_epochs=1),
    Rule(name="exploding module", when=Condition.EXPLODING, for_epochs=1),
    Rule(name="non-finite module", when=Condition.NON_FINITE, for_epochs=1, severity=Severity.CRITICAL),
)


@dataclass
class _Streak:
    holding: int = 0  # epochs in a row in which the condition held
    since: int = 0  # the first of them
    failing: int = 0  # measured epochs in a row in which it did not
    alert: Alert | None = None


@dataclass
class Outcome:
    """What one epoch of an env changed."""

    raised: list[Alert] = field(default_factory=list)
    cleared: list[Alert] = field(default_factory=list)


class RuleBook:
    """The rules of one env with their memory; deterministic, evaluated in step at the end of each epoch."""

    def __init__(self, rules: Iterable[Rule] = DEFAULT_RULES) -> None:
        self.rules = tuple(rules)
        self._streaks: dict[tuple[str, str], _Streak] = {}

    def evaluate(self, epoch: int, seeds: Iterable[SeedTelemetry]) -> Outcome:
        """Apply every rule to every seed of the epoch; an unmeasured epoch neither raises nor clears."""
        outcome = Outcome()
        for seed in seeds:
            for rule in self.rules:
                self._apply(rule, epoch, seed, outcome)
        return outcome

    @property
    def open_alerts(self) -> list[Alert]:
        """The alerts that stand."""
        return [streak.alert for streak in self._streaks.values() if streak.alert is not None]

    def state_dict(self) -> dict[str, Any]:
        """The memory as plain data."""
        return {"streaks": [[list(key), msgspec.to_builtins(streak)] for key, streak in self._streaks.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Judge from now on as the book would have of which this is the state."""
        self._streaks = {tuple(key): msgspec.convert(streak, _Streak) for key, streak in state["streaks"]}

    def forget(self, seed_id: str) -> list[Alert]:
        """Drop a seed that is gone; its open alerts come back to be cleared."""
        gone = [key for key in self._streaks if key[1] == seed_id]
        return [streak.alert for key in gone if (streak := self._streaks.pop(key)).alert is not None]

    def _apply(self, rule: Rule, epoch: int, seed: SeedTelemetry, outcome: Outcome) -> None:
        streak = self._streaks.setdefault((rule.name, seed.seed_id), _Streak())
        if rule.holds(seed):
            if not streak.holding:
                streak.since = epoch
            streak.holding, streak.failing = streak.holding + 1, 0
        elif seed.measurement is Measurement.MEASURED:
            streak.holding, streak.failing = 0, streak.failing + 1
        if streak.alert is None and streak.holding >= rule.for_epochs:
            streak.alert = _alert(rule, streak.since, seed)
            outcome.raised.append(streak.alert)
        elif streak.alert is not None and streak.failing >= rule.clear_after:
            outcome.cleared.append(streak.alert)
            streak.alert = None


def _alert(rule: Rule, since: int, seed: SeedTelemetry) -> Alert:
    level = f" {rule.level:g}" if rule.level else ""
    sustained = f"{rule.when}{level} for {rule.for_epochs} epoch" + "s" * (rule.for_epochs > 1)
    return Alert(
        rule=rule.name,
        severity=rule.severity,
        slot_id=seed.slot_id,
        seed_id=seed.seed_id,
        blueprint_id=seed.blueprint_id,
        since_epoch=since,
        value=seed.grad_ratio,
        evidence="; ".join(part for part in (sustained, seed.evidence) if part),
        # What is fossilised is a part of its host: nothing can be done to it any more.
        actions=() if seed.stage is SeedStage.FOSSILIZED else tuple(action.value for action in rule.actions),
    )
