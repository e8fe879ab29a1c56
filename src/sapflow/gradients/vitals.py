"""What some policies need beside the gains: the scale of a module's output, and whether its parameters are alive.

Measured on one pass of VITALS_EVERY, so that the others pay next to nothing; nothing synchronises before `numbers` are
asked for, and nothing here communicates: of what ranks hold together, each counts its part.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.probe import Probe
from sapflow.gradients.ranks import held_part
from sapflow.gradients.structures import map_tensors

VITALS_EVERY = 16
# A parameter tensor is alive when the norm of its gradient exceeds this share of the largest among all watched ones.
ALIVE_SHARE = 1e-4


class VitalSigns(NamedTuple):
    """Vital signs of a module over an epoch, each None where it was not measured; as in `health.policy.Reading`."""

    output_input_rms: float | None = None
    parameter_liveness: float | None = None
    parameters_moved: bool | None = None


class Vitals:
    """The vital signs of one module, which its forward shows while `due` and its probe listens.

    Copies that come with a model have no module, and are inert.
    """

    def __init__(self, module: nn.Module | None, probe: Probe | None) -> None:
        self.due = True
        self.probe = probe
        self.parameters = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        self._versions = [parameter._version for parameter in self.parameters]
        self._handles: list[RemovableHandle] = []
        self.begin_epoch()
        if module is not None:
            self._handles = [module.register_forward_hook(self._after_forward, with_kwargs=True)]

    def __reduce__(self) -> tuple[Any, ...]:
        return Vitals, (None, None)

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self._scales: list[tuple[Tensor, Tensor]] = []  # mean squares of input and output, a call
        self.norms: Tensor | None = None  # of the gradients of `parameters`, when last seen

    def remove(self) -> None:
        """Take the hook off the module."""
        for handle in self._handles:
            handle.remove()

    def numbers(self) -> Tensor:
        """What the vital signs of the epoch so far follow from (`signs_of`); waits for the device.

        float64 (4 + parameters,): the mean squares of input and output, whether parameters moved, whether gradients
        were seen, and the squares of the gradients' norms. Those of several ranks add up.
        """
        scales = torch.stack([torch.stack(call) for call in self._scales]).mean(0) if self._scales else torch.zeros(2)
        moved = any(p._version != before for p, before in zip(self.parameters, self._versions, strict=True))
        norms = torch.zeros(len(self.parameters)) if self.norms is None else self.norms
        flags = torch.tensor([moved, self.norms is not None], dtype=torch.float64)
        return torch.cat((scales.double().cpu(), flags, norms.double().cpu().square()))

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not (self.due and torch.is_grad_enabled()):
            return
        if self.probe is None or self.probe.muted:
            return
        entering, leaving = _mean_square((args, kwargs)), _mean_square(output)
        if entering is not None and leaving is not None:
            self._scales.append((entering, leaving))


def signs_of(numbers: Mapping[str, Tensor]) -> dict[str, VitalSigns]:
    """The vital signs of each module from what `Vitals.numbers` gave, of all modules that are watched."""
    squares = torch.cat([of_one[4:] for of_one in numbers.values()]) if numbers else torch.zeros(0)
    largest = squares.max() if len(squares) else 0.0
    signs = {}
    for name, of_one in numbers.items():
        entering, leaving, moved, seen = of_one[:4].tolist()
        rms = math.sqrt(leaving / entering) if entering > 0 else None
        alive = of_one[4:] > ALIVE_SHARE**2 * largest
        trained = len(alive) > 0
        liveness = float(alive.double().mean()) if trained and seen else None
        signs[name] = VitalSigns(rms, liveness, moved > 0 if trained else None)
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


def _mean_square(value: object) -> Tensor | None:
    """The mean of the squares of all floating-point elements that this rank holds, fp32; None if it has none."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        part = held_part(tensor.detach())
        if part is not None and part.is_floating_point() and part.numel():
            tensors.append(part)
        return tensor

    map_tensors(collect, value)
    if not tensors:
        return None
    return torch.stack([t.float().square().sum() for t in tensors]).sum() / sum(t.numel() for t in tensors)
