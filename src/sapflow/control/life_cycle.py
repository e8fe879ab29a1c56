"""The life that controllers let seeds lead; where they differ is in what germinates, where, and when."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.errors import BlueprintError, InputError
from sapflow.growth.blueprints import Blueprint, blueprint_for, blueprints_for, check_fit
from sapflow.growth.lifecycle import ALL_GATES, Gate
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.vocabulary import SeedStage

log = logging.getLogger("sapflow.control")


@dataclass(frozen=True, kw_only=True)
class GrowthPlan:
    """When things happen, in epochs."""

    first_germination: int = 1
    germination_interval: int = 2
    training_epochs: int = 3
    longest_training: int = 10
    blending_epochs: int = 4
    holding_epochs: int = 3
    embargo_epochs: int = 3

    @property
    def shortest_life(self) -> int:
        """Epochs from germination to a fossil, if nothing keeps the seed."""
        return self.training_epochs + self.blending_epochs + self.holding_epochs


class LifeCycle:
    """A controller without a will to sow: embargoes end, seeds move on through their gates, hopeless ones are given up.

    What a rule asks for was done before it decides. A paused seed is left where it is.

    Args:
        plan: the timing.
        random_seed: of the stream that choices are drawn from.
        plants: blueprints that are to grow in given slots first, by slot_id.
        pool: what grows otherwise; by default the healthy blueprints that fit the slot.
        gates: that stand; the others are open.
    """

    def __init__(
        self,
        plan: GrowthPlan,
        random_seed: int,
        *,
        plants: Mapping[str, str] | None = None,
        pool: Sequence[Blueprint] | None = None,
        gates: frozenset[Gate] = ALL_GATES,
    ) -> None:
        self.plan = plan
        self.plants = dict(plants or {})
        self.gates = gates
        self.random = random.Random(random_seed)
        self._pool = pool
        self._unfit: set[tuple[str, tuple[int, ...]]] = set()
        self._left_empty: set[str] = set()  # slots of which it was logged

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Let the embargo run, cull, move on, sow; after the last epoch nothing is sown, since it could not learn.

        Raises:
            InputError: before the first epoch: nothing can grow in some slot, or not what is to be planted there, or
                there is no such slot.
        """
        if not outcome.epoch:
            if strangers := sorted(self.plants.keys() - actions.slots.keys()):
                raise InputError(f"plants: there is no slot {strangers[0]!r}, only {', '.join(actions.slots)}")
            for slot_id, slot in actions.slots.items():
                if slot_id in self.plants:
                    check_fit(blueprint_for(self.plants[slot_id], slot.shape), slot.shape)
                else:
                    self._fitting(slot)
        for slot in actions.slots.values():
            slot.gates = self.gates
            self.rest(outcome.epoch, slot, actions)
        self.cull(outcome, actions)
        for slot in actions.slots.values():
            if not slot.state.paused:
                self._move_on(outcome.epoch, slot, actions)
        if not outcome.last:
            self.sow(outcome, actions)

    def cull(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Prune by other reasons than those of rules and gates; by none here."""

    def sow(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Germinate what is to grow; nothing here."""

    def choose(self, fitting: Sequence[Blueprint], actions: SlotActions) -> Blueprint:
        """Which of those that fit is to grow."""
        return self.random.choice(fitting)

    def state_dict(self) -> dict[str, Any]:
        """What is still to be planted, what does not fit, and the random stream."""
        version, internal, gauss = self.random.getstate()
        return {
            "plants": dict(self.plants),
            "unfit": [[name, list(shape)] for name, shape in sorted(self._unfit)],
            "random": [version, list(internal), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plants = dict(state["plants"])
        self._unfit = {(name, tuple(shape)) for name, shape in state["unfit"]}
        version, internal, gauss = state["random"]
        self.random.setstate((version, tuple(internal), gauss))

    def germinate(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        """Sow in an empty slot: what is to be planted there, or what is chosen. What does not fit is not chosen again.

        Training comes first: once it is under way, a slot in which nothing can germinate stays empty, which is logged.

        Raises:
            InputError: before the first epoch: nothing fits, or not what is to be planted, or the forward does not pass
                the slot.
            OutOfMemoryError: before the first epoch.
        """
        slot_id = slot.state.slot_id
        planted = self.plants.get(slot_id)
        try:
            if planted is not None:
                actions.germinate(epoch, slot, blueprint_for(planted, slot.shape), planted=True)
            else:
                self._germinate_chosen(epoch, slot, actions)
        except (InputError, torch.OutOfMemoryError) as error:
            if not epoch:
                raise
            if slot_id not in self._left_empty:
                log.warning("slot %r stays empty, and it will be tried again: %s (said once)", slot_id, error)
            self._left_empty.add(slot_id)
            return
        self.plants.pop(slot_id, None)
        actions.advance(epoch, slot, SeedStage.TRAINING, "it fits its slot")

    def _germinate_chosen(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        while True:
            chosen = self.choose(self._fitting(slot), actions)
            try:
                actions.germinate(epoch, slot, chosen)
            except BlueprintError as error:
                log.warning("%s; it is not chosen again", error)
                self._unfit.add((chosen.blueprint_id, slot.shape))
            else:
                return

    def _fitting(self, slot: SeedSlot) -> list[Blueprint]:
        """What may grow in the slot, as far as is known."""
        shape = slot.shape
        pool = self._pool if self._pool is not None else blueprints_for(shape)
        fitting = [one for one in pool if one.dimensions == len(shape) and (one.blueprint_id, shape) not in self._unfit]
        if not fitting:
            raise BlueprintError(f"slot {slot.state.slot_id!r}: no blueprint of the pool fits {shape}")
        return fitting

    def rest(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        """Show a pruned slot as such for an epoch, and let its embargo run."""
        embargo = self.plan.embargo_epochs
        if slot.state.stage is SeedStage.PRUNED and slot.state.epochs_in_stage:  # shown as pruned for an epoch
            actions.advance(epoch, slot, SeedStage.EMBARGOED, f"for {embargo} epochs")
        elif slot.state.stage is SeedStage.EMBARGOED and slot.state.epochs_in_stage >= embargo:
            actions.advance(epoch, slot, SeedStage.DORMANT, "the embargo is over")

    def _move_on(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        plan, epochs = self.plan, slot.state.epochs_in_stage
        match slot.state.stage:
            case SeedStage.TRAINING if epochs >= plan.longest_training and slot.closed_gate(SeedStage.BLENDING):
                evidence = f"{slot.closed_gate(SeedStage.BLENDING)} after {epochs} epochs"
                actions.prune(epoch, slot, rule="never ready", evidence=evidence)
            case SeedStage.TRAINING if epochs >= plan.training_epochs and not slot.closed_gate(SeedStage.BLENDING):
                reason = "sound gradient flow, measured" if Gate.SOUND_FLOW in self.gates else "it has had its time"
                actions.advance(epoch, slot, SeedStage.BLENDING, reason)
            case SeedStage.BLENDING if epochs >= plan.blending_epochs and not slot.closed_gate(SeedStage.HOLDING):
                actions.advance(epoch, slot, SeedStage.HOLDING, "blended in whole")
            # What was weighed in an earlier epoch alone is weighed again before it is decided by.
            case SeedStage.HOLDING if epochs >= plan.holding_epochs and not slot.state.weighed_before:
                closed = slot.closed_gate(SeedStage.FOSSILIZED)
                if closed:
                    actions.prune(epoch, slot, rule="no gain", evidence=closed)
                else:
                    known = slot.state.weighed_before is not None
                    reason = f"accuracy {slot.state.accuracy_delta:+.2f} %" if known else "nobody told its accuracy"
                    actions.advance(epoch, slot, SeedStage.FOSSILIZED, reason)
            case _:
                pass


def dormant(actions: SlotActions) -> list[SeedSlot]:
    """The slots in which something may germinate, in the order of the host's forward."""
    return [slot for slot in actions.slots.values() if slot.state.stage is SeedStage.DORMANT]
