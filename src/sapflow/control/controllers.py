"""The controllers that come with Sapflow: on a plan, by plateaus, and the baselines that they have to beat."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.control.life_cycle import GrowthPlan, LifeCycle, dormant
from sapflow.errors import InputError
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.lifecycle import TOLERATED_COST, Gate
from sapflow.telemetry.vocabulary import SeedStage

# The host is on a plateau when its metric has not risen by more than this for so many epochs: points of accuracy, or
# a share of the loss.
PLATEAU_EPOCHS = 3
PLATEAU_POINTS = 0.25
PLATEAU_SHARE = 0.01
COSTLY_EPOCHS = 2


class ScheduledController(LifeCycle):
    """Germinates slot after slot on a plan: for experiments."""

    def sow(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Whatever is due."""
        for order, slot in enumerate(actions.slots.values()):
            due = self.plan.first_germination + order * self.plan.germination_interval
            if slot.state.stage is SeedStage.DORMANT and due <= outcome.epoch:
                self.germinate(outcome.epoch, slot, actions)


class HeuristicController(LifeCycle):
    """Germinates when the host stops getting better, of blueprints that have worked.

    At most one seed an epoch, in the dormant slot that has had fewest, once the host has begun to learn and while there
    is time for a whole life. The blueprint is drawn by Thompson sampling: each has a Beta(1 + successes, 1 + failures)
    belief about its worth, one number is drawn from each, and the largest decides (Thompson 1933; Chapelle and Li
    2011). A success is a seed that became a fossil or gives accuracy, a failure one that was pruned.

    It goes by accuracy, or else by the validation loss, or else by the training loss.
    """

    def __init__(self, plan: GrowthPlan, random_seed: int, **options: Any) -> None:
        super().__init__(plan, random_seed, **options)
        self._best: float | None = None
        self._improvements = 0
        self._epochs_without = 0

    def sow(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """One seed, if the host is on a plateau."""
        self._note(outcome)
        on_plateau = self._improvements > 0 and self._epochs_without >= PLATEAU_EPOCHS
        in_time = not outcome.epochs or outcome.epochs - outcome.epoch >= self.plan.shortest_life
        empty = dormant(actions)
        if on_plateau and in_time and empty:
            seeds = Counter(life.slot_id for life in actions.lives)
            self.germinate(outcome.epoch, min(empty, key=lambda slot: seeds[slot.state.slot_id]), actions)
            self._epochs_without = 0

    def choose(self, fitting: Sequence[Blueprint], actions: SlotActions) -> Blueprint:
        """By Thompson sampling over the lives so far."""
        worked = Counter(
            life.blueprint_id
            for life in actions.lives
            if life.pruned_epoch is None and (life.stage is SeedStage.FOSSILIZED or life.accuracy_delta > 0)
        )
        failed = Counter(life.blueprint_id for life in actions.lives if life.pruned_epoch is not None)
        drawn = [self.random.betavariate(1 + worked[one.blueprint_id], 1 + failed[one.blueprint_id]) for one in fitting]
        return fitting[drawn.index(max(drawn))]

    def state_dict(self) -> dict[str, Any]:
        """That of every life cycle, and how the host has done."""
        own = {"best": self._best, "improvements": self._improvements, "without": self._epochs_without}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self._best, self._improvements = state["best"], state["improvements"]
        self._epochs_without = state["without"]

    def _note(self, outcome: EpochOutcome) -> None:
        """Whether the epoch was better than the best before it, by more than the margin."""
        loss = outcome.validation_loss if outcome.validation_loss is not None else outcome.train_loss
        if outcome.accuracy is not None:
            metric, margin = outcome.accuracy, PLATEAU_POINTS
        elif loss is not None:
            metric, margin = -loss, PLATEAU_SHARE * abs(loss)
        else:
            return
        if not math.isfinite(metric):  # as of an overflowed batch: neither a best, nor a sign of a plateau
            return
        better = self._best is None or metric > self._best + margin
        self._improvements += better and self._best is not None
        self._epochs_without = 0 if better else self._epochs_without + 1
        self._best = metric if self._best is None else max(self._best, metric)


class RandomController(LifeCycle):
    """A baseline: sows in each dormant slot, and prunes each seed that is no fossil, with a probability an epoch."""

    def __init__(
        self, plan: GrowthPlan, random_seed: int, *, sowing: float = 0.3, pruning: float = 0.05, **options: Any
    ) -> None:
        for name, share in (("sowing", sowing), ("pruning", pruning)):
            if not 0 <= share <= 1:
                raise InputError(f"{name}={share}: a probability is from 0 to 1")
        super().__init__(plan, random_seed, **options)
        self.sowing = sowing
        self.pruning = pruning

    def cull(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """By chance."""
        for slot in actions.slots.values():
            grows = slot.alive and slot.state.stage is not SeedStage.FOSSILIZED
            if grows and self.random.random() < self.pruning:
                actions.prune(
                    outcome.epoch, slot, rule="chance", evidence=f"with probability {self.pruning:g} an epoch"
                )

    def sow(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """By chance."""
        for slot in dormant(actions):
            if outcome.epoch >= self.plan.first_germination and self.random.random() < self.sowing:
                self.germinate(outcome.epoch, slot, actions)


class AccuracyOnlyController(ScheduledController):
    """A baseline: does not look at gradients, and prunes what costs the host accuracy for COSTLY_EPOCHS in a row."""

    def __init__(self, plan: GrowthPlan, random_seed: int, **options: Any) -> None:
        super().__init__(plan, random_seed, gates=frozenset({Gate.NO_COST}), **options)
        self._costly: dict[str, int] = {}  # epochs in a row, by seed

    def cull(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """What the host would do better without."""
        for slot in actions.slots.values():
            state = slot.state
            if state.weighed_before:  # what an epoch did not measure it is not judged by
                continue
            costs = state.accuracy_delta < -TOLERATED_COST and state.stage in (SeedStage.BLENDING, SeedStage.HOLDING)
            self._costly[state.seed_id] = self._costly.get(state.seed_id, 0) + 1 if costs else 0
            if self._costly[state.seed_id] >= COSTLY_EPOCHS:
                evidence = f"it costs the host {-state.accuracy_delta:.2f} % accuracy"
                actions.prune(outcome.epoch, slot, rule="no gain", evidence=evidence)

    def state_dict(self) -> dict[str, Any]:
        """That of every life cycle, and what has been costly."""
        return super().state_dict() | {"costly": dict(self._costly)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self._costly = dict(state["costly"])


CONTROLLERS: Mapping[str, type[LifeCycle]] = {
    "scheduled": ScheduledController,
    "heuristic": HeuristicController,
    "random": RandomController,
    "accuracy": AccuracyOnlyController,
}


def controller_named(name: str) -> type[LifeCycle]:
    """The controller of this name.

    Raises:
        InputError: there is none.
    """
    if name not in CONTROLLERS:
        raise InputError(f"unknown controller {name!r}: choose one of {', '.join(CONTROLLERS)}")
    return CONTROLLERS[name]
