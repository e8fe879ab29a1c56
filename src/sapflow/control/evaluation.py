"""How a host does, and what each seed that it sees gives it: found out by leaving the seed out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sapflow.growth.shadow import uncompiled
from sapflow.growth.slot import SeedSlot


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a host does on its validation split: accuracy in percent, loss in the task's own unit; None: not known."""

    accuracy: float | None = None
    loss: float | None = None


def worth_of_seeds(
    evaluate: Callable[[], Evaluation], accuracy: float | None, slots: Iterable[SeedSlot]
) -> dict[str, float]:
    """The accuracy that the host loses without each seed that it sees, by slot_id; nothing where it is not known.

    Args:
        evaluate: how the host does now.
        accuracy: how it does with all of them.
        slots: of the host.
    """
    worth: dict[str, float] = {}
    for slot in slots if accuracy is not None else ():
        if slot.host_sees:
            with _bypassed(slot):
                without = evaluate().accuracy
            assert accuracy is not None
            assert without is not None
            worth[slot.state.slot_id] = accuracy - without
    return worth


@contextmanager
def _bypassed(slot: SeedSlot) -> Iterator[None]:
    """The counterfactual: inside, the host is as if nothing grew in the slot; nothing is compiled for it."""
    slot.bypassed = True
    try:
        with uncompiled():
            yield
    finally:
        slot.bypassed = False
