"""The probe's other form, for code that TorchDynamo compiles: identities whose backward adds to a cell.

Tensor hooks would break the graph; an autograd.Function is traced into it, and inductor fuses the rest away.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.gradients.frames import run_at_compile_time
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


class Traced:
    """What TorchDynamo saw of a module's calls, each once, when it compiled them."""

    def __init__(self) -> None:
        self.tapped = False  # a call with inputs that are measured …
        self.detached = False  # … and one without any that need a gradient
        self.untapped = False  # a call with inputs that stand where they may be changed
        self.failed = False  # one that cannot be measured

    @run_at_compile_time
    def note_tapped(self) -> None:
        """A call with inputs that are measured."""
        self.tapped = True

    @run_at_compile_time
    def note_detached(self) -> None:
        """A call without an input that needs a gradient."""
        self.detached = True

    @run_at_compile_time
    def note_untapped(self) -> None:
        """A call with inputs that stand where they may be changed, and are left alone."""
        self.untapped = True

    @run_at_compile_time
    def note_failed(self) -> None:
        """A call that cannot be measured."""
        self.failed = True


def tap_inputs(args: Any, kwargs: dict[str, Any], cell: Tensor) -> Any:
    """What a module is called with; what leaves through it is added to `cell`.

    But for what stands in lists, dicts and dataclass instances: the module may change them, which a copy would lose.
    """
    tap = _adding(_InputTap, cell)
    args, values = map_tensors(tap, (args, tuple(kwargs.values())), into_mutable=False)  # as one: q=x, k=x is one input
    return args, dict(zip(kwargs, values, strict=True))


def tap_outputs(value: Any, cell: Tensor) -> Any:
    """A structure of outputs; what enters through them is added to `cell`."""
    return map_tensors(_adding(_OutputTap, cell), value)


def _adding(tap: type[torch.autograd.Function], cell: Tensor) -> Callable[[Tensor], Tensor]:
    apply: Callable[[Tensor, Tensor], Tensor] = tap.apply

    def add(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        if type(tensor) not in (Tensor, nn.Parameter):
            # What TorchDynamo fails to trace, such as the backward of a tap on it, is the user's failure: here it is
            # still the probe's.
            raise InputError("it takes or returns a tensor of a type of its own")
        return apply(tensor, cell)

    return add


def inputs_to_tap(args: Any, kwargs: dict[str, Any], *, into_mutable: bool) -> int:
    """How many tensors a module is called with that need a gradient, with or without those in lists, dicts and such."""
    needing: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            needing.append(tensor)
        return tensor

    for value in (*args, *kwargs.values()):
        map_tensors(collect, value, into_mutable=into_mutable)
    return len(needing)


def changes_in_place(module: nn.Module) -> bool:
    """Whether a part of the module says that it works in place; autograd forbids that on a tapped input."""
    return any(getattr(part, "inplace", False) for part in module.modules())
