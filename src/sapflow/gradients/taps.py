"""The probe's other form, for code that TorchDynamo compiles: identities whose backward adds to a cell.

Tensor hooks would break the graph; an autograd.Function is traced into it, and inductor fuses the rest away.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sapflow.gradients.norms import norm_of
from sapflow.gradients.structures import map_tensors


class _Tap(torch.autograd.Function):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        norm = norm_of(gradient).to(ctx.cell.device)
        # An attribute with a version counter of its own: as a saved tensor, the next change would make it stale.
        ctx.cell.addcmul_(norm, norm)
        return gradient, None


class _InputTap(_Tap):
    """A view, and no copy: were the module to change it in place, its caller would have to see the change."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, cell: Tensor) -> Tensor:
        ctx.cell = cell
        return tensor.view_as(tensor)


class _OutputTap(_Tap):
    """A copy, which may be changed in place; inductor removes it where nobody does."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, cell: Tensor) -> Tensor:
        ctx.cell = cell
        return tensor.clone()


def tap_inputs(value: Any, cell: Tensor) -> Any:
    """A structure of inputs; what leaves through them is added to `cell`."""
    return _tapped(_InputTap, value, cell)


def tap_outputs(value: Any, cell: Tensor) -> Any:
    """A structure of outputs; what enters through them is added to `cell`."""
    return _tapped(_OutputTap, value, cell)


def _tapped(tap: type[torch.autograd.Function], value: Any, cell: Tensor) -> Any:
    apply: Callable[[Tensor, Tensor], Tensor] = tap.apply
    return map_tensors(lambda tensor: apply(tensor, cell) if tensor.requires_grad else tensor, value)


def changes_in_place(module: nn.Module) -> bool:
    """Whether a part of the module says that it works in place; autograd forbids that on a tapped input."""
    return any(getattr(part, "inplace", False) for part in module.modules())
