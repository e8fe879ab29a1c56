"""What some policies need beside the gains: the scale of a module's output, and whether its parameters are alive.

Measured on one pass of VITALS_EVERY, so that the others pay next to nothing; nothing synchronises before `read`.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    """The vital signs of one module, shown by its forwards while `due`."""

    def __init__(self, module: nn.Module) -> None:
        self.due = True
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._versions = [parameter._version for parameter in self.parameters]
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self._scales: list[tuple[Tensor, Tensor]] = []  # mean squares of input and output, a call
        self.share: Tensor | None = None  # of live parameter tensors, when last seen

    def read(self) -> VitalSigns:
        """The vital signs of the epoch so far; waits for the device."""
        rms = None
        if self._scales:
            entering, leaving = (float(torch.stack(side).mean()) for side in zip(*self._scales, strict=True))
            rms = math.sqrt(leaving / entering) if entering > 0 else None
        liveness = None if self.share is None else float(self.share)
        moved = [p._version != before for p, before in zip(self.parameters, self._versions, strict=True)]
        return VitalSigns(rms, liveness, any(moved) if moved else None)

    def see(self, inputs: Any, output: Any) -> None:
        """Note the scale of a call's output over that of its inputs, both any structure of tensors."""
        entering, leaving = _mean_square(inputs), _mean_square(output)
        if entering is not None and leaving is not None:
            self._scales.append((entering, leaving))


def note_liveness(vitals: Iterable[Vitals]) -> None:
    """Note the share of live parameter tensors of each module, on the device.

    Gradients must still stand on the parameters, as they do right after an optimizer's step; where none does, nothing
    is noted. A parameter without a gradient is dead.
    """
    trained = [vital for vital in vitals if vital.parameters]
    gradients = [[p.grad for p in vital.parameters if p.grad is not None] for vital in trained]
    if not any(gradients):
        return
    norms = torch.stack([norm.float() for norm in torch._foreach_norm([g for group in gradients for g in group])])
    alive = (norms > ALIVE_SHARE * norms.max()).float().split([len(group) for group in gradients])
    for vital, live in zip(trained, alive, strict=True):
        vital.share = live.sum() / len(vital.parameters)


def _mean_square(value: object) -> Tensor | None:
    """The mean of the squares of all floating-point elements in a structure, fp32; None if it has none."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.numel():
            tensors.append(tensor.detach())
        return tensor

    map_tensors(collect, value)
    if not tensors:
        return None
    return torch.stack([t.float().square().sum() for t in tensors]).sum() / sum(t.numel() for t in tensors)
