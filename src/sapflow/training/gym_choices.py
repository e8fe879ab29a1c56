"""What an agent may do to a slot at an epoch's end, which of it is legal now, and how it is done."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sapflow.control.actions import SlotActions
from sapflow.errors import BlueprintError
from sapflow.growth.blueprints import Blueprint, check_fit
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.vocabulary import SeedStage

Mask = NDArray[np.int8]

_AFTER = {
    SeedStage.TRAINING: SeedStage.BLENDING,
    SeedStage.BLENDING: SeedStage.HOLDING,
    SeedStage.HOLDING: SeedStage.FOSSILIZED,
}
BY_AGENT = "the agent"


class Choice(IntEnum):
    """What can be chosen for a slot; `GERMINATE + k` germinates the k-th blueprint of the pool."""

    WAIT = 0
    ADVANCE = 1
    PRUNE = 2
    HOLD = 3
    RESUME = 4
    GERMINATE = 5


class Choices:
    """The choices that an agent has in slots of these shapes, over one pool of blueprints.

    Args:
        pool: in the order of the choices.
        slots: of a host; whether a blueprint fits them is found out now.
    """

    def __init__(self, pool: Sequence[Blueprint], slots: Sequence[SeedSlot]) -> None:
        self.pool = pool
        self._fit = {
            shape: np.array([_fits(one, shape) for one in pool], dtype=np.int8) for shape in {s.shape for s in slots}
        }

    def mask(self, slot: SeedSlot, *, last: bool) -> Mask:
        """1 for what is legal in the slot now; nothing germinates when the `last` epoch is over."""
        stage = slot.state.stage
        growing = stage in _AFTER
        sows = stage is SeedStage.DORMANT and not last
        own = {
            Choice.WAIT: True,
            Choice.ADVANCE: growing and not slot.closed_gate(_AFTER[stage]),
            Choice.PRUNE: growing,
            Choice.HOLD: growing and not slot.state.paused,
            Choice.RESUME: slot.state.paused,
        }
        return np.concatenate([np.array(list(own.values()), dtype=np.int8), self._fit[slot.shape] * np.int8(sows)])

    def carry_out(self, choice: int, epoch: int, slot: SeedSlot, actions: SlotActions) -> None:
        """Do what was chosen, which the mask has allowed.

        Raises:
            BlueprintError: the blueprint does not grow on what the host feeds it; the mask does not allow it again.
        """
        match choice:
            case Choice.WAIT:
                pass
            case Choice.ADVANCE:
                actions.advance(epoch, slot, _AFTER[slot.state.stage], BY_AGENT)
            case Choice.PRUNE:
                actions.prune(epoch, slot, rule=BY_AGENT, evidence="")
            case Choice.HOLD:
                actions.hold(slot)
            case Choice.RESUME:
                actions.resume(slot)
            case _:
                try:
                    actions.germinate(epoch, slot, self.pool[choice - Choice.GERMINATE])
                except BlueprintError:
                    self._fit[slot.shape][choice - Choice.GERMINATE] = 0
                    raise
                actions.advance(epoch, slot, SeedStage.TRAINING, BY_AGENT)


def _fits(blueprint: Blueprint, shape: tuple[int, ...]) -> bool:
    if blueprint.dimensions != len(shape):
        return False
    try:
        check_fit(blueprint, shape)
    except BlueprintError:
        return False
    return True
