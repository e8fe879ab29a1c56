"""Measures whether it pays to prune by gradient flow: a fixed budget of steps, pools of which a part cannot learn.

    python benchmarks/pruning.py --write docs/pruning.md

Every arm lets slots germinate on one schedule, of one pool; arms differ only in what they prune.
"""

import argparse
import math
import multiprocessing
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from faulty_blueprints import FAULTY
from scipy.stats import t as student

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.control.controllers import AccuracyOnlyController, ScheduledController
from sapflow.control.life_cycle import GrowthPlan
from sapflow.growth.blueprints import Blueprint, blueprints_for
from sapflow.growth.host import DenseHost
from sapflow.growth.lifecycle import ALL_GATES, Gate
from sapflow.health.calibrated import CalibratedPolicy
from sapflow.health.rules import DEFAULT_RULES, Condition, Rule
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training.env import Env, EnvPlan
from sapflow.training.tasks.digits import load_digits
from sapflow.training.tasks.task import Task

WIDTH, EPOCHS, LAST_EPOCHS = 10, 40, 5
SHARES = (0.2, 0.4, 0.6)
POOL_SIZE = 10
NAMES = {one.blueprint_id for one in FAULTY}
TASK = Task("digits-narrow", load_digits, partial(DenseHost, inputs=64, classes=10, width=WIDTH))
PLAN = GrowthPlan(germination_interval=1, holding_epochs=3)

# What is flagged at decisions every 10 passes for so long is pruned: by the calibrated policy, which has its own
# persistence, and by the record's band.
DECIDE_EVERY = 10
FLOW_RULES = (
    Rule(name="vanishing", when=Condition.VANISHING, for_passes=DECIDE_EVERY, actions=("prune",)),
    Rule(name="exploding", when=Condition.EXPLODING, for_passes=DECIDE_EVERY, actions=("prune",)),
    Rule(name="non-finite", when=Condition.NON_FINITE, for_passes=DECIDE_EVERY, actions=("prune",)),
)
BAND_RULES = tuple(
    Rule(name=name, when=when, for_epochs=epochs, actions=("prune",))
    for name, when, epochs in (
        ("vanishing", Condition.VANISHING, 3), ("exploding", Condition.EXPLODING, 3), ("nan", Condition.NON_FINITE, 1),
    )
)  # fmt: skip


class Chance(ScheduledController):
    """Prunes whatever is no fossil with a probability an epoch, and by nothing else."""

    probability = 0.0

    def cull(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        for slot in actions.slots.values():
            grows = slot.alive and slot.state.stage is not SeedStage.FOSSILIZED
            if grows and self.random.random() < self.probability:
                actions.prune(outcome.epoch, slot, rule="chance", evidence="")


class Oracle(AccuracyOnlyController):
    """Knows what is faulty."""

    def choose(self, fitting: Sequence[Blueprint], actions: SlotActions) -> Blueprint:
        return super().choose([one for one in fitting if one.blueprint_id not in NAMES], actions)


@dataclass(frozen=True)
class Arm:
    name: str
    rules: tuple[Rule, ...] = ()
    policy: Callable[[], Any] = lambda: None
    gates: frozenset[Gate] = frozenset()
    controller: type[ScheduledController] = ScheduledController


NEVER = Arm("never prune")
RANDOM = Arm("random, at the rate of ours", controller=Chance)
ACCURACY = Arm("accuracy only", controller=AccuracyOnlyController)
BAND = Arm("the record's band", BAND_RULES)
OURS = Arm("ours", DEFAULT_RULES, gates=frozenset({Gate.SOUND_FLOW}))
OURS_AND_ACCURACY = Arm("ours and accuracy", DEFAULT_RULES, gates=ALL_GATES)
CALIBRATED = Arm("the calibrated policy and accuracy", FLOW_RULES, CalibratedPolicy, ALL_GATES)
ORACLE = Arm("an oracle, and accuracy", controller=Oracle)
ARMS = {arm.name: arm for arm in (NEVER, RANDOM, ACCURACY, BAND, OURS, OURS_AND_ACCURACY, CALIBRATED, ORACLE)}


@dataclass(frozen=True)
class Trial:
    """What came of one run: accuracy in percent; seed-steps of faulty and of all seeds; prunes, and of healthy ones."""

    accuracy: float
    wasted: int
    seed_steps: int
    pruned: int
    healthy_pruned: int
    seed_epochs: float


class Nowhere:
    def emit(self, event: TelemetryEvent) -> None:
        pass


def pool_of(share: float, number: int) -> list[Blueprint]:
    """Healthy and faulty blueprints in the shares that are asked for, drawn for this repetition."""
    drawn = random.Random(f"{share}/{number}")
    faulty = round(share * POOL_SIZE)
    healthy = blueprints_for((WIDTH,))
    chosen = [drawn.choice(healthy) for _ in range(POOL_SIZE - faulty)]
    return chosen + (drawn.sample(FAULTY, faulty) if faulty <= len(FAULTY) else [])


def trial(arm_name: str, share: float, number: int, probability: float = 0.0, epochs: int = EPOCHS) -> Trial:
    """One run of an arm; the repetition's number determines host, data order and pool, the same for all arms."""
    torch.set_num_threads(1)
    arm = ARMS[arm_name]
    options = {} if issubclass(arm.controller, AccuracyOnlyController) else {"gates": arm.gates}
    controller = arm.controller(PLAN, 1_000 + number, pool=pool_of(share, number), **options)
    if isinstance(controller, Chance):
        controller.probability = probability
    plan = EnvPlan(env_id=number, epochs=epochs, rng_seed=20, blending_epochs=PLAN.blending_epochs)
    stream = EventStream(Nowhere(), "pruning", number)
    env = Env(TASK, plan, controller, stream, arm.policy(), arm.rules, decide_every=DECIDE_EVERY)
    counted = {"wasted": 0, "all": 0}
    step = env.grower.trainer.step

    def counting_step() -> dict[str, str]:
        for slot in env.slots.values():
            counted["all"] += slot.alive
            counted["wasted"] += slot.alive and slot.state.blueprint_id in NAMES
        return step()

    env.grower.trainer.step = counting_step  # type: ignore[method-assign]
    env.start()
    accuracies = []
    for _ in range(epochs):
        env.run_epoch()
        accuracies.append(env.accuracy)
    lives = env.actions.lives
    pruned = [life for life in lives if life.pruned_epoch is not None]
    steps = env.grower.trainer.steps / epochs
    return Trial(
        accuracy=fmean(accuracies[-LAST_EPOCHS:]),
        wasted=counted["wasted"],
        seed_steps=counted["all"],
        pruned=len(pruned),
        healthy_pruned=sum(life.blueprint_id not in NAMES for life in pruned),
        seed_epochs=counted["all"] / steps,
    )


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, by Student's t over repetitions."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Interval":
        sample = list(values)
        mean = fmean(sample)
        half = student.ppf(0.975, len(sample) - 1) * stdev(sample) / math.sqrt(len(sample)) if len(sample) > 1 else 0.0
        return cls(mean, mean - half, mean + half)

    def shown(self, digits: int = 2, sign: bool = False) -> str:
        form = f"{'+' if sign else ''}.{digits}f"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def measure(
    shares: Sequence[float], repetitions: int, epochs: int, workers: int
) -> dict[tuple[float, str], list[Trial]]:
    """Every arm on every pool; the random arm prunes at the rate that ours had on the same pools."""
    results: dict[tuple[float, str], list[Trial]] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        for share in shares:
            ours_rate = 0.0
            for arm in (OURS_AND_ACCURACY, *(one for one in ARMS.values() if one is not OURS_AND_ACCURACY)):
                run = partial(trial, arm.name, share, probability=ours_rate, epochs=epochs)
                results[share, arm.name] = list(processes.map(run, range(repetitions)))
                of_arm = results[share, arm.name]
                if arm is OURS_AND_ACCURACY:
                    ours_rate = sum(one.pruned for one in of_arm) / sum(one.seed_epochs for one in of_arm)
                print(f"{share:.0%} {arm.name}: {fmean(one.accuracy for one in of_arm):.2f} %", file=sys.stderr)
    return results


def table(share: float, results: dict[tuple[float, str], list[Trial]]) -> str:
    """A row an arm; differences are paired with accuracy only."""
    baseline = results[share, ACCURACY.name]
    lines = [
        f"### {share:.0%} faulty",
        "",
        "| arm | accuracy, % | against accuracy only, points | wasted seed-steps | of all, % | pruned | healthy ones |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ARMS:
        of_arm = results[share, name]
        paired = Interval.of(mine.accuracy - other.accuracy for mine, other in zip(of_arm, baseline, strict=True))
        wasted = fmean(one.wasted for one in of_arm)
        lines.append(
            f"| {name} | {Interval.of(one.accuracy for one in of_arm).shown()} "
            f"| {'–' if name == ACCURACY.name else paired.shown(sign=True)} | {wasted:.0f} "
            f"| {100 * wasted / max(1.0, fmean(one.seed_steps for one in of_arm)):.0f} "
            f"| {fmean(one.pruned for one in of_arm):.1f} | {fmean(one.healthy_pruned for one in of_arm):.1f} |"
        )
    return "\n".join(lines)


def aims(shares: Sequence[float], results: dict[tuple[float, str], list[Trial]]) -> str:
    """What was aimed at, and what came of it, for ours with accuracy."""
    lines = ["| aim, for ours and accuracy | measured | |", "| --- | ---: | --- |"]
    for share in shares:
        ours, baseline = results[share, OURS_AND_ACCURACY.name], results[share, ACCURACY.name]
        paired = Interval.of(mine.accuracy - other.accuracy for mine, other in zip(ours, baseline, strict=True))
        gone = 1 - fmean(one.wasted for one in ours) / max(1e-9, fmean(one.wasted for one in baseline))
        rows = [
            (f"{share:.0%} faulty: half of the wasted seed-steps gone", f"{gone:.0%}", gone >= 0.5),
            (f"{share:.0%} faulty: accuracy not lower (above −0.5 points)", paired.shown(sign=True), paired.low > -0.5),
        ]
        if share >= 0.4:
            rows.append((f"{share:.0%} faulty: accuracy higher", paired.shown(sign=True), paired.low > 0))
        lines += [f"| {aim} | {value} | {'met' if met else '**missed**'} |" for aim, value, met in rows]
    return "\n".join(lines)


def page(
    shares: Sequence[float],
    repetitions: int,
    epochs: int,
    seconds: float,
    results: dict[tuple[float, str], list[Trial]],
) -> str:
    """docs/pruning.md."""
    tables = "\n\n".join(table(share, results) for share in shares)
    return f"""# Does acting on gradient flow pay?

Made by `python benchmarks/pruning.py --write docs/pruning.md` in {seconds / 60:.0f} minutes, with torch
{torch.__version__}, Python {platform.python_version()}, rng seed 20, {repetitions} repetitions of each arm and pool.

## Method

A host of width {WIDTH} learns scikit-learn's digits for {epochs} epochs, a fixed budget of steps. Its three slots
germinate whenever they are empty, from a pool of {POOL_SIZE} blueprints of which a part is faulty: seeds that can never
learn, or break what they stand in ({", ".join(sorted(NAMES))}). A repetition fixes host, data order and pool for all
arms, so differences are paired; what germinates differs once the arms have pruned differently. Accuracy is the mean
over the last {LAST_EPOCHS} epochs on {len(load_digits().validation_labels)} held-out samples; intervals are 95 %,
Student's t over repetitions. A *wasted seed-step* is a step that a faulty seed spends in a slot, incubating or not.

- **never prune**: every seed blends in after its time and becomes a fossil.
- **random**: prunes with the probability an epoch that ours had on the same pools.
- **accuracy only**: blends every seed in, and prunes it when the host is more than one point better without it, for two
  epochs in a row, or when it would become a fossil.
- **the record's band**: flags of [0.5, 2.0] for three epochs, or NaN.
- **ours**: the rules and the gate of sound flow that slots have by default; with accuracy, the gate that a seed must
  not cost any when it becomes a fossil, too, which is what `sapflow.grow` does.
- **the calibrated policy**: its flags at decisions every {DECIDE_EVERY} passes, and both gates.
- **an oracle**: sows no faulty seed, and prunes by accuracy.

## Aims

{aims(shares, results)}

In most repetitions all arms end about alike. In a few, a seed breaks the host of an arm that does not look at
gradients: these make the difference, and the intervals as wide as they are, the oracle's, too.

## Results

{tables}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    options = parser.parse_args()
    begun = time.monotonic()
    results = measure(SHARES, options.repetitions, options.epochs, options.workers)
    text = page(SHARES, options.repetitions, options.epochs, time.monotonic() - begun, results)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
