"""Who decides: the seam at which, once an epoch, seeds move on, are given up, and germinate."""

from dataclasses import dataclass
from typing import Any, Protocol

from sapflow.control.actions import SlotActions


@dataclass(frozen=True, kw_only=True)
class EpochOutcome:
    """What an epoch of a host came to: what a controller may go by beside the slots.

    `epoch` counts from 1 and is 0 before the first, `epochs` is how many there will be (0 where nobody knows); accuracy
    in percent on the validation split, losses in the task's own unit, None where nobody told. `stopping`: a rule or a
    person asks for the training to end with it.
    """

    epoch: int
    epochs: int = 0
    accuracy: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    stopping: bool = False

    @property
    def last(self) -> bool:
        """Whether nothing will be trained any more."""
        return self.stopping or 0 < self.epochs <= self.epoch


class Controller(Protocol):
    """The seam: decides once an epoch, in step with training, and acts through `actions` alone."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Act on the slots after an epoch has been measured and said."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on, as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Decide from now on as the controller would have of which this is the state."""
