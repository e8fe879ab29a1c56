"""Alert rules at work: what holds for long enough is raised, what is over for long enough is cleared, nothing flaps."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import nan
from typing import Any

import msgspec
from msgspec.structs import replace

from sapflow.errors import InputError
from sapflow.health.conditions import MEASURES, ONLY_AT_EPOCH_ENDS, Condition, Finding, measured
from sapflow.health.rule import ON_THE_SEED, Action, ActionKind, Rule
from sapflow.telemetry.events import Alert, SeedTelemetry
from sapflow.telemetry.vocabulary import SeedStage, Severity

__all__ = ["DEFAULT_RULES", "WATCH_RULES", "Action", "ActionKind", "Condition", "Outcome", "Rule", "RuleBook"]

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

# A decision waits for the device, which at this pace cannot be seen in the time of a pass.
DECIDE_EVERY = 50

# What is fossilised is a part of its host, and no slot manages what is watched: nothing can be done to them.
OUT_OF_REACH = frozenset({SeedStage.FOSSILIZED, SeedStage.WATCHED})
RATIO_IS_SAID = frozenset({Condition.RATIO_BELOW, Condition.RATIO_ABOVE})  # in the evidence of every policy


class _Streak(msgspec.Struct):
    """What a rule remembers of a seed; times in the rule's unit, epochs or passes."""

    holding: int = 0  # for so long in a row the condition has held
    since: int = 0  # the epoch in which that began
    over: int = 0  # for so long in a row it has been over
    cooling: int = 0  # for so long it is not raised again
    alert: Alert | None = None


@dataclass
class Outcome:
    """What one epoch, or one window of passes, of an env changed."""

    raised: list[Alert] = field(default_factory=list)
    cleared: list[Alert] = field(default_factory=list)
    orphaned: list[Alert] = field(default_factory=list)  # that stood, of rules that are there no more


class RuleBook:
    """The rules of one env with their memory; deterministic, evaluated in step with training.

    Raises:
        InputError: two rules have one name.
    """

    def __init__(self, rules: Iterable[Rule] = DEFAULT_RULES) -> None:
        self.rules = tuple(rules)
        check_names(self.rules)
        self._streaks: dict[tuple[str, str], _Streak] = {}

    @property
    def needs_windows(self) -> bool:
        """Whether any rule is judged at decision steps within an epoch."""
        return any(rule.by_passes for rule in self.rules)

    def evaluate(self, epoch: int, seeds: Iterable[SeedTelemetry], *, validated: bool = True) -> Outcome:
        """Apply the rules for epochs to every seed, at the end of an epoch.

        Args:
            epoch: that has ended.
            seeds: report that epoch.
            validated: the host's accuracy was measured in it; if not, nobody knows what a seed adds to it.
        """
        if not validated:
            seeds = [replace(seed, accuracy_delta=nan) for seed in seeds]
        rules = [rule for rule in self.rules if not rule.by_passes]
        outcome = self._evaluate(rules, epoch, 1, seeds)
        names = {rule.name for rule in self.rules}
        outcome.orphaned = self._forget(key for key in self._streaks if key[0] not in names)
        return outcome

    def evaluate_window(self, epoch: int, passes: int, seeds: Iterable[SeedTelemetry]) -> Outcome:
        """Apply the rules for passes to every seed, at a counted decision step within `epoch`.

        Args:
            epoch: in which the window is.
            passes: that it has, since the decision step before.
            seeds: report the gradient flow of those passes alone.
        """
        rules = [rule for rule in self.rules if rule.by_passes]
        return self._evaluate(rules, epoch, passes, seeds)

    @property
    def open_alerts(self) -> list[Alert]:
        """The alerts that stand."""
        return [streak.alert for streak in self._streaks.values() if streak.alert is not None]

    def state_dict(self) -> dict[str, Any]:
        """The memory as plain data."""
        return {"streaks": [[list(key), msgspec.to_builtins(streak)] for key, streak in self._streaks.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Judge from now on as the book would have of which this is the state.

        Rules that are there no more are forgotten when the next epoch ends: what they held is let go then.
        """
        self._streaks = {tuple(key): msgspec.convert(streak, _Streak) for key, streak in state["streaks"]}

    def forget(self, seed_id: str) -> list[Alert]:
        """Drop a seed that is gone; its open alerts come back to be cleared."""
        return self._forget(key for key in self._streaks if key[1] == seed_id)

    def _forget(self, keys: Iterable[tuple[str, str]]) -> list[Alert]:
        return [streak.alert for key in list(keys) if (streak := self._streaks.pop(key)).alert is not None]

    def _evaluate(self, rules: list[Rule], epoch: int, lasted: int, seeds: Iterable[SeedTelemetry]) -> Outcome:
        outcome = Outcome()
        for seed in seeds:
            for rule in rules:
                if rule.concerns(seed):
                    self._apply(rule, epoch, lasted, seed, outcome)
        return outcome

    def _apply(self, rule: Rule, epoch: int, lasted: int, seed: SeedTelemetry, outcome: Outcome) -> None:
        streak = self._streaks.setdefault((rule.name, seed.seed_id), _Streak())
        cooling, streak.cooling = streak.cooling > 0, max(0, streak.cooling - lasted)
        match rule.find(seed):
            case Finding.UNKNOWN:
                return
            case Finding.HOLDS:
                if not streak.holding:
                    streak.since = epoch
                streak.holding, streak.over = streak.holding + lasted, 0
            case Finding.BETWEEN:
                streak.holding = streak.over = 0
            case Finding.OVER:
                streak.holding, streak.over = 0, streak.over + lasted
        if streak.alert is None and not cooling and streak.holding >= rule.raised_after:
            streak.alert = _alert(rule, streak.since, seed)
            outcome.raised.append(streak.alert)
        elif streak.alert is not None and streak.over >= rule.cleared_after:
            outcome.cleared.append(streak.alert)
            streak.alert, streak.cooling = None, rule.cool_down


def decision_pace(rules: Iterable[Rule], asked: int | None = None) -> int:
    """Passes from one decision step to the next, such as was asked for, or as suits the rules for passes; 0: none."""
    lasting = [rule.for_passes for rule in rules if rule.for_passes is not None]
    return (asked or min(DECIDE_EVERY, *lasting)) if lasting else 0


def check_watch_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules, if they are such that `sapflow.watch` passes nothing of them over in silence.

    Raises:
        InputError: one is judged within epochs, is about what only a slot knows, or asks for an action.
    """
    for rule in (checked := tuple(rules)):
        if rule.by_passes:
            raise InputError(f"rule {rule.name!r}: watch judges at the ends of epochs: say for_epochs")
        if rule.when in ONLY_AT_EPOCH_ENDS:
            raise InputError(f"rule {rule.name!r}: {rule.when!s} is known of seeds alone, in slots: use sapflow.grow")
        if rule.stages and SeedStage.WATCHED not in rule.stages:
            raise InputError(f"rule {rule.name!r}: what is watched is in none of these stages: remove them")
        if rule.actions:
            raise InputError(f"rule {rule.name!r}: watch acts on nothing: remove its actions, or use on_verdict")
    return checked


def check_names(rules: Iterable[Rule]) -> None:
    """Make sure that every rule has a name of its own, by which alerts and memory are told apart.

    Raises:
        InputError: two have the same.
    """
    seen: set[str] = set()
    for rule in rules:
        if rule.name in seen:
            raise InputError(f"rule {rule.name!r} stands there more than once: give each a name of its own")
        seen.add(rule.name)


def _alert(rule: Rule, since: int, seed: SeedTelemetry) -> Alert:
    level = "" if rule.level is None else f" {rule.level:g}"
    unit = ("pass" + "es" * (rule.raised_after > 1)) if rule.by_passes else "epoch" + "s" * (rule.raised_after > 1)
    value = measured(rule.when, seed)
    assert value is not None  # a condition that holds was known
    found = f"{rule.when}{level} for {rule.raised_after} {unit}"
    own = f"{MEASURES[rule.when].words} is {value:.3g}" if rule.when in MEASURES.keys() - RATIO_IS_SAID else ""
    out_of_reach = ON_THE_SEED if seed.stage in OUT_OF_REACH else ()
    return Alert(
        rule=rule.name,
        severity=rule.severity,
        slot_id=seed.slot_id,
        seed_id=seed.seed_id,
        blueprint_id=seed.blueprint_id,
        since_epoch=since,
        value=value,
        evidence="; ".join(part for part in (found, own, seed.measurement_reason, seed.evidence) if part),
        actions=tuple(str(action) for action in rule.actions if action.kind not in out_of_reach),
    )
