"""Who decides: at the end of each epoch a controller moves seeds on, gives up on some, and germinates new ones."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sapflow.control.actions import SlotActions
from sapflow.growth.blueprints import blueprint_for, blueprints_for
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.vocabulary import SeedStage


@dataclass(frozen=True, kw_only=True)
class EpochOutcome:
    """What an epoch of a host came to: what a controller may go by beside the slots.

    `epoch` counts from 1 and is 0 before the first, `epochs` is how many there will be (0 where nobody knows); accuracy
    in percent on the validation split, losses in the task's own unit, None where nobody told.
    """

    epoch: int
    epochs: int = 0
    accuracy: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None

    @property
    def last(self) -> bool:
        """Whether nothing will be trained any more."""
        return 0 < self.epochs <= self.epoch


class Controller(Protocol):
    """The seam: decides once an epoch, in step with training, and acts through `actions` alone."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Act on the slots after an epoch has been measured and said."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on, as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Decide from now on as the controller would have of which this is the state."""


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


class ScheduledController:
    """Germinates slot after slot on a plan, lets gates and rules decide the rest.

    After the last epoch nothing germinates, since it could not learn any more.

    Args:
        plan: the timing.
        plants: blueprints that are to grow in given slots first, by slot_id.
        random_seed: of the stream that the blueprints of all other seeds are drawn from.
    """

    def __init__(self, plan: GrowthPlan, plants: Mapping[str, str], random_seed: int) -> None:
        self.plan = plan
        self.plants = dict(plants)
        self._random = random.Random(random_seed)

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Let the embargo run, move on, germinate."""
        epoch = outcome.epoch
        for slot in actions.slots.values():
            self._rest(epoch, slot, actions)
        for slot in actions.slots.values():
            self._move_on(epoch, slot, actions)
        for order, slot in enumerate(actions.slots.values()):
            due = self.plan.first_germination + order * self.plan.germination_interval
            if slot.state.stage is SeedStage.DORMANT and due <= epoch and not outcome.last:
                self._germinate(epoch, slot, actions)

    def state_dict(self) -> dict[str, Any]:
        """What is still to be planted, and the random stream."""
        version, internal, gauss = self._random.getstate()
        return {"plants": dict(self.plants), "random": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plants = dict(state["plants"])
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))

    def _rest(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        embargo = self.plan.embargo_epochs
        if slot.state.stage is SeedStage.PRUNED and slot.state.epochs_in_stage:  # shown as pruned for an epoch
            actions.advance(epoch, slot, SeedStage.EMBARGOED, f"for {embargo} epochs")
        elif slot.state.stage is SeedStage.EMBARGOED and slot.state.epochs_in_stage >= embargo:
            actions.advance(epoch, slot, SeedStage.DORMANT, "the embargo is over")

    def _germinate(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        planted = self.plants.pop(slot.state.slot_id, None)
        if planted is None:
            blueprint = self._random.choice(blueprints_for(slot.shape))
        else:
            blueprint = blueprint_for(planted, slot.shape)
        actions.germinate(epoch, slot, blueprint, planted=planted is not None)
        actions.advance(epoch, slot, SeedStage.TRAINING, "it fits its slot")

    def _move_on(self, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        plan, epochs = self.plan, slot.state.epochs_in_stage
        match slot.state.stage:
            case SeedStage.TRAINING if epochs >= plan.longest_training and slot.closed_gate(SeedStage.BLENDING):
                evidence = f"{slot.closed_gate(SeedStage.BLENDING)} after {epochs} epochs"
                actions.prune(epoch, slot, rule="never ready", evidence=evidence)
            case SeedStage.TRAINING if epochs >= plan.training_epochs and not slot.closed_gate(SeedStage.BLENDING):
                actions.advance(epoch, slot, SeedStage.BLENDING, "sound gradient flow, measured")
            case SeedStage.BLENDING if epochs >= plan.blending_epochs and not slot.closed_gate(SeedStage.HOLDING):
                actions.advance(epoch, slot, SeedStage.HOLDING, "blended in whole")
            case SeedStage.HOLDING if epochs >= plan.holding_epochs:
                closed = slot.closed_gate(SeedStage.FOSSILIZED)
                if closed:
                    actions.prune(epoch, slot, rule="no gain", evidence=closed)
                else:
                    reason = f"accuracy {slot.state.accuracy_delta:+.2f} %"
                    actions.advance(epoch, slot, SeedStage.FOSSILIZED, reason)
            case _:
                pass
