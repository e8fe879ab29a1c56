"""Whether the parameters of a module are alive: reached by gradients, and moved by training.

Noted on few passes (`vitals_due`), so that the others pay nothing. Nothing synchronises before `numbers` are asked for,
and nothing communicates: of what ranks hold together, each counts its part.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sapflow.gradients.parts import held_part

VITALS_EVERY = 64
# A parameter tensor is alive when the norm of its gradient exceeds this share of the largest among all watched ones.
ALIVE_SHARE = 1e-4


def vitals_due(passes: int, age: int) -> bool:
    """Whether a pass is one to note vital signs on: one of VITALS_EVERY, and more of them while a module is young.

    Args:
        passes: measured in the epoch before it.
        age: passes measured since a module was attached.
    """
    return passes % VITALS_EVERY == 0 or (age < VITALS_EVERY and age & (age - 1) == 0)


class Vitals:
    """What is known of the trainable parameters of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._versions = [parameter._version for parameter in self.parameters]
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self.norms: Tensor | None = None  # of the gradients of `parameters`, when last seen

    def numbers(self) -> Tensor:
        """What the vital signs of the epoch so far follow from (`signs_of`); waits for the device.

        float64 (2 + parameters,): whether parameters moved, whether gradients were seen, and the squares of the
        gradients' norms. Those of several ranks add up.
        """
        moved = any(p._version != before for p, before in zip(self.parameters, self._versions, strict=True))
        norms = torch.zeros(len(self.parameters)) if self.norms is None else self.norms
        flags = torch.tensor([moved, self.norms is not None], dtype=torch.float64)
        return torch.cat((flags, norms.double().cpu().square()))


class VitalSigns(NamedTuple):
    """Vital signs of a module over an epoch, each None where it was not measured; as in `health.policy.Reading`."""

    parameter_liveness: float | None = None
    parameters_moved: bool | None = None


def signs_of(numbers: Mapping[str, Tensor]) -> dict[str, VitalSigns]:
    """The vital signs of each module from what `Vitals.numbers` gave, of all modules that are watched."""
    squares = torch.cat([of_one[2:] for of_one in numbers.values()]) if numbers else torch.zeros(0)
    largest = squares.max() if len(squares) else 0.0
    signs = {}
    for name, of_one in numbers.items():
        moved, seen = of_one[:2].tolist()
        alive = of_one[2:] > ALIVE_SHARE**2 * largest
        trained = len(alive) > 0
        liveness = float(alive.double().mean()) if trained and seen else None
        signs[name] = VitalSigns(liveness, moved > 0 if trained else None)
    return signs


def note_liveness(vitals: Iterable[Vitals]) -> None:
    """Note the norms of each module's gradients, on the device; of those that ranks hold together, this one's part.

    Gradients must still stand on the parameters, as they do right after an optimizer's step; where none does, nothing
    is noted. A parameter without a gradient is dead.
    """
    trained = [vital for vital in vitals if vital.parameters]
    gradients = [p.grad if p.grad is None else held_part(p.grad) for vital in trained for p in vital.parameters]
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return
    norms, none = iter(torch._foreach_norm(there)), torch.zeros((), device=there[0].device)
    aligned = torch.stack([none if gradient is None else next(norms).float() for gradient in gradients])
    for vital, of_one in zip(trained, aligned.split([len(vital.parameters) for vital in trained]), strict=True):
        vital.norms = of_one
