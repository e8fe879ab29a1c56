"""Whether the parameters of a module are alive: reached by gradients, and moved by training.

Liveness is noted on one pass of VITALS_EVERY, so that the others pay nothing; nothing synchronises before it is read.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

VITALS_EVERY = 64
# A parameter tensor is alive when the norm of its gradient exceeds this share of the largest among all watched ones.
ALIVE_SHARE = 1e-4


class Vitals:
    """What is known of the trainable parameters of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._versions = [parameter._version for parameter in self.parameters]
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self.share: Tensor | None = None  # of live parameter tensors, when last seen

    @property
    def liveness(self) -> float | None:
        """The share of live parameter tensors, as in `health.policy.Reading`; waits for the device."""
        return None if self.share is None else float(self.share)

    @property
    def moved(self) -> bool | None:
        """Whether any parameter has changed since the module was attached; None if there is none."""
        moved = [p._version != before for p, before in zip(self.parameters, self._versions, strict=True)]
        return any(moved) if moved else None


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
