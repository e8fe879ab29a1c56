"""The norm of a gradient, right for every dtype and layout, and the mean square of activations."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from sapflow.errors import InputError
from sapflow.gradients.cells import NEVER_FIRED
from sapflow.gradients.parts import held_part
from sapflow.gradients.structures import map_tensors

# A flat fp32 norm loses digits on large tensors (seen on CPU: 3e-4 at 4e6 elements); the norm of the norms of rows
# loses none, and costs nothing from about this size on.
LARGE = 1 << 16
ROW = 1 << 10


def norm_of(gradient: Tensor) -> Tensor:
    """‖gradient‖₂ as a scalar on its device, in fp32 (fp64 of fp64), whatever its dtype or layout."""
    if gradient.requires_grad:  # under create_graph the sums must not become part of the graph
        gradient = gradient.detach()
    norm: Tensor
    size = gradient.numel()
    if gradient.dtype is torch.float32 and not gradient.is_sparse:  # most of them, in the fewest calls
        if size <= LARGE:
            norm = vector_norm(gradient)
            return norm
        if not size % ROW and gradient.is_contiguous():
            norm = vector_norm(vector_norm(gradient.view(-1, ROW), dim=-1))
            return norm
    gradient = numbers_of(gradient)
    dtype = torch.float64 if gradient.dtype is torch.float64 else torch.float32
    size = gradient.numel()
    if size <= LARGE:
        norm = vector_norm(gradient, dtype=dtype)
        return norm
    ordered, remainder = _in_order_of_memory(gradient), size % ROW
    if not remainder:
        norm = vector_norm(vector_norm(ordered.reshape(-1, ROW), dim=-1, dtype=dtype))
        return norm
    flat = ordered.reshape(-1)
    norms = vector_norm(flat[:-remainder].view(-1, ROW), dim=-1, dtype=dtype)
    norm = vector_norm(torch.cat((norms, vector_norm(flat[-remainder:], dtype=dtype).view(1))))
    return norm


def numbers_of(gradient: Tensor) -> Tensor:
    """The real numbers that it consists of, in a tensor that is dense."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    # A conjugate is a view that its numbers are not in yet.
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _in_order_of_memory(tensor: Tensor) -> Tensor:
    """Its dimensions so that flattening needs no copy, where that can be (channels last, a transposed matrix)."""
    if tensor.is_contiguous():
        return tensor
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


class MeanSquare(NamedTuple):
    """The mean of the squares of so many numbers, fp32."""

    value: Tensor
    numbers: int


def mean_square_of(value: Any, home: torch.device, every: int = 1) -> MeanSquare | None:
    """That of the signal in a structure, as far as this rank holds it, on the device `home`; None without numbers.

    The signal is what needs a gradient; where nothing does, all that there is. What stands beside it, such as a mask of
    −inf, does not count, but NaN there is NaN in the whole.

    With `every` above 1, of the first part in so many of each tensor, along its first dimension: an estimate.
    """
    signal, beside = _numbers(value)
    if not signal:
        signal, beside = beside, []
    if not signal:
        return None
    signal = _first_parts(signal, every)
    numbers = sum(tensor.numel() for tensor in signal)
    square = _norm_of_all(signal, home).square() / numbers
    if beside:
        square = square.masked_fill(_norm_of_all(_first_parts(beside, every), home).isnan(), torch.nan)
    return MeanSquare(square, numbers)


def _first_parts(tensors: list[Tensor], every: int) -> list[Tensor]:
    if every == 1:
        return tensors
    return [tensor[: (len(tensor) + every - 1) // every] if tensor.dim() else tensor for tensor in tensors]


def _norm_of_all(tensors: list[Tensor], home: torch.device) -> Tensor:
    """In fp32, of tensors that may lie on several devices."""
    # On the CPU, where nothing is queued, a value that was not waited for would be read before it is there.
    waits_not = home.type != "cpu"
    norms = [norm_of(tensor).to(home, torch.float32, non_blocking=waits_not) for tensor in tensors]
    norm: Tensor = norms[0] if len(norms) == 1 else vector_norm(torch.stack(norms))
    return norm


def add_mean_squares(cells: Tensor, taken: Any, given: Any, every: int = 1) -> bool:
    """Add those of a call's inputs and outputs to a pair of cells; whether both are of as many numbers."""
    seen = [mean_square_of(value, cells.device, every) for value in (taken, given)]
    # What has no numbers leaves its cell as it is: −0.0 and −0.0 are −0.0.
    values = [torch.full((), NEVER_FIRED, device=cells.device) if one is None else one.value for one in seen]
    cells.add_(torch.stack(values))
    return len({None if one is None else one.numbers for one in seen}) == 1


def has_numbers(value: Any) -> bool:
    """Whether a structure of tensors has any that a gradient could be asked for."""
    return any(_numbers(value))


def _numbers(value: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of numbers that need a gradient, and others."""
    needing: list[Tensor] = []
    others: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if tensor.is_nested:  # what TorchDynamo fails to trace is the user's failure: here it is still the probe's
            raise InputError("it takes or returns a nested tensor")
        part = held_part(tensor.detach())
        if part is not None and (part.is_floating_point() or part.is_complex()) and part.numel():
            (needing if tensor.requires_grad else others).append(part)
        return tensor

    map_tensors(collect, value)
    return needing, others
