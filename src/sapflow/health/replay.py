"""Rules on a recorded run: what they would have raised, had they been there."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from sapflow.health.conditions import Condition
from sapflow.health.policy import HealthPolicy, Reading
from sapflow.health.rule import Rule
from sapflow.health.rules import Outcome, RuleBook
from sapflow.telemetry.events import (
    Alert,
    EpochCompleted,
    GradientSampled,
    SeedPruned,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.vocabulary import Measurement

# What samples do not have of their passes; a rule that goes by it finds nothing in a replay.
NOT_SAMPLED = frozenset({Condition.LIVENESS_BELOW})
RATIOS_KNOWN = frozenset({Measurement.MEASURED, Measurement.NON_FINITE})


@dataclass(kw_only=True)
class Firing:
    """An alert that would have been raised: in which env and epoch, and what would have become of it."""

    env_id: int
    epoch: int
    alert: Alert
    passes: int | None = None  # of that epoch, by which it would have been raised; None: at its end
    end: str = "would stand at the end"


@dataclass
class _Sums:
    """The sampled passes of one seed in one window."""

    passes: int = 0
    non_finite: int = 0
    entering_square: float = 0.0
    leaving_square: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def add(self, entering: float, leaving: float) -> None:
        if not (math.isfinite(entering) and math.isfinite(leaving)):
            self.non_finite += 1
        elif entering > 0:
            self.passes += 1
            self.entering_square += entering * entering
            self.leaving_square += leaving * leaving
            self.ratios.append(leaving / entering)


class Replay:
    """Takes the events of a recorded run in their order, and tells what these rules would have raised.

    Rules for epochs see what EPOCH_COMPLETED has. Rules for passes see samples: cut into windows of `decide_every`
    passes from the beginning of each epoch, the rest of an epoch being the last, and flagged by the record's band. What
    the run did about its own alerts stands; what these would have asked for is not done. Of the epoch within which the
    run pruned a seed, rules for passes see nothing of that seed.

    Args:
        rules: to try.
        decide_every: passes between two decision steps; 0 where no rule is for passes.

    Attributes:
        firings: in the order in which they would have been raised.
        epochs: that were replayed, of all envs.
        passes: that were measured, of all seeds.
        sampled: of those, how many were sampled, so that rules for passes could see them.
    """

    def __init__(self, rules: Iterable[Rule], decide_every: int) -> None:
        self.rules = tuple(rules)
        self.decide_every = decide_every
        self.firings: list[Firing] = []
        self.epochs = 0
        self.passes = 0
        self.sampled = 0
        self._envs: dict[int, _Env] = {}

    def take(self, event: TelemetryEvent) -> None:
        """Take the next event."""
        if event.env_id is None:
            return
        env = self._envs.setdefault(event.env_id, _Env(event.env_id, RuleBook(self.rules)))
        match event.payload:
            case GradientSampled() as sample if self.decide_every:
                env.sample(sample, self.decide_every)
            case EpochCompleted() as completed:
                self._close(env, completed)
            case SeedPruned() as pruned:
                for alert in env.book.forget(pruned.seed_id):
                    end = f"in epoch {pruned.epoch} the run pruned the seed (rule {pruned.rule!r})"
                    env.open.pop((alert.rule, alert.seed_id)).end = end
            case _:
                pass

    def _close(self, env: "_Env", completed: EpochCompleted) -> None:
        alive = [seed for seed in completed.seeds if seed.stage.alive]
        self.epochs += 1
        for seed in alive:
            measured = seed.passes + seed.non_finite_passes
            sampled = [window[seed.slot_id] for window in env.windows.values() if seed.slot_id in window]
            self.passes += measured
            self.sampled += min(measured, sum(sums.passes + sums.non_finite for sums in sampled))
        for index, sums in sorted(env.windows.items()):
            last = min(self.decide_every * (index + 1), env.longest)
            seeds = [_in_window(seed, sums[seed.slot_id]) for seed in alive if seed.slot_id in sums]
            outcome = env.book.evaluate_window(completed.epoch, last - self.decide_every * index, seeds)
            self.firings += env.note(completed.epoch, last, outcome)
        env.windows, env.longest = {}, 0
        outcome = env.book.evaluate(completed.epoch, alive, validated=completed.accuracy is not None)
        self.firings += env.note(completed.epoch, None, outcome)


@dataclass
class _Env:
    """One env in a replay: its rules, the firings that stand, and the samples of the epoch that has not ended."""

    env_id: int
    book: RuleBook
    open: dict[tuple[str, str], Firing] = field(default_factory=dict)
    windows: dict[int, dict[str, _Sums]] = field(default_factory=dict)
    longest: int = 0  # passes of the epoch so far

    def sample(self, sample: GradientSampled, decide_every: int) -> None:
        for index, entering, leaving in zip(sample.pass_index, sample.entering, sample.leaving, strict=False):
            window = self.windows.setdefault(index // decide_every, {})
            window.setdefault(sample.slot_id, _Sums()).add(entering, leaving)
            self.longest = max(self.longest, index + 1)

    def note(self, epoch: int, passes: int | None, outcome: Outcome) -> list[Firing]:
        for alert in outcome.cleared:
            self.open.pop((alert.rule, alert.seed_id)).end = f"would clear in epoch {epoch}"
        fresh = [Firing(env_id=self.env_id, epoch=epoch, alert=alert, passes=passes) for alert in outcome.raised]
        self.open |= {(firing.alert.rule, firing.alert.seed_id): firing for firing in fresh}
        return fresh


def blind_spots(rules: Iterable[Rule]) -> list[Rule]:
    """The rules for passes that a replay cannot try, since no sample tells of their condition."""
    return [rule for rule in rules if rule.by_passes and rule.when in NOT_SAMPLED]


def _in_window(seed: SeedTelemetry, sums: _Sums) -> SeedTelemetry:
    """A seed as a decision step would have seen it; where no ratio can be known in the epoch, none is in the window."""
    measurement, known = seed.measurement, seed.measurement in RATIOS_KNOWN
    sums = sums if known else _Sums()
    # A side that no gradient came to is NaN in a sample, too.
    non_finite = min(sums.non_finite, seed.non_finite_passes)
    if known:
        states = ((sums.passes, Measurement.MEASURED), (non_finite, Measurement.NON_FINITE))
        measurement = next((state for count, state in states if count), Measurement.NO_GRADIENT)
    reading = Reading(
        measurement=measurement,
        passes=sums.passes,
        non_finite_passes=non_finite,
        longest_non_finite_run=non_finite,
        entering_square=sums.entering_square,
        leaving_square=sums.leaving_square,
    )
    verdict = HealthPolicy().judge(reading, None)
    return replace(
        seed,
        measurement=measurement,
        grad_ratio=reading.grad_ratio,
        has_vanishing=verdict.has_vanishing,
        has_exploding=verdict.has_exploding,
        evidence=verdict.evidence,
        fault=verdict.fault,
        passes=sums.passes,
        non_finite_passes=non_finite,
        entering_norm=math.sqrt(sums.entering_square),
        leaving_norm=math.sqrt(sums.leaving_square),
        min_ratio=min(sums.ratios, default=0.0),
        max_ratio=max(sums.ratios, default=0.0),
        last_ratio=sums.ratios[-1] if sums.ratios else 0.0,
        ratio_histogram=(),
        masked_values=0,
        parameter_liveness=None,
    )
