"""What keeps a host safe from the seed that it sees: what is not finite is masked, forth and back, and counted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Guard:
    """Masks one seed's output and the gradient that leaves it, and counts what it masks, on their device.

    The counts are apart, since what is compiled may change one tensor in its forward or in its backward, not in both.
    """

    def __init__(self, device: torch.device) -> None:
        self._given = torch.zeros((), dtype=torch.int64, device=device)  # values of outputs that were masked
        self._left = torch.zeros((), dtype=torch.int64, device=device)  # values of gradients that were masked
        self._left_before = self._left.clone()  # of these, those of the passes before this one
        self._entered_finite = torch.ones((), dtype=torch.bool, device=device)

    def guarded(self, seed: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """seed(h), by which nothing that is not finite comes to the host: 0 takes its place."""
        guard_input: Callable[..., Tensor] = _GuardedInput.apply
        guard_output: Callable[..., Tensor] = _GuardedOutput.apply
        taken_finite = h.isfinite().all()
        branch = seed(guard_input(h, self._left, self._entered_finite))
        return guard_output(branch, self._given, taken_finite, self._entered_finite)

    def end_pass(self, *, overflowed: bool) -> None:
        """Where the loss is scaled: what a pass masked that overflowed is no fault of the seed's."""
        if overflowed:
            self._left.copy_(self._left_before)
        self._left_before.copy_(self._left)

    def take_count(self) -> int:
        """How many values were masked since the last time; waits for the device."""
        count = int(self._given + self._left)
        self._given.zero_()
        self._left.zero_()
        self._left_before.zero_()
        return count

    def moved(self, move: Callable[[Tensor], Tensor]) -> None:
        """Go with the seed to another device."""
        for name, tensor in vars(self).items():
            setattr(self, name, move(tensor))


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


class _GuardedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, left: Tensor, entered_finite: Tensor) -> Tensor:
        ctx.left, ctx.entered_finite = left, entered_finite
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        finite = gradient.isfinite()
        # What was not finite before it came to the seed is not the seed's doing.
        ctx.left.add_((~finite).sum() * ctx.entered_finite)
        return torch.where(finite, gradient, 0.0), None, None


class _GuardedOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, given: Tensor, taken_finite: Tensor, entered_finite: Tensor) -> Tensor:
        finite = branch.isfinite()
        ctx.save_for_backward(finite)
        ctx.entered_finite = entered_finite
        given.add_((~finite).sum() * taken_finite)  # what was not finite before it came to the seed is not its doing
        return torch.where(finite, branch, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (finite,) = ctx.saved_tensors
        ctx.entered_finite.copy_(gradient.isfinite().all())
        return torch.where(finite, gradient, 0.0), None, None, None
