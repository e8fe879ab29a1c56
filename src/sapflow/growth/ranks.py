"""What the ranks that train one host do together, so that each of them decides the same."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sapflow.errors import BlueprintError, InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


def summed_over_ranks(values: list[float], group: "ProcessGroup | None", device: torch.device) -> list[float]:
    """The sum of each value over the ranks of the group, the same on all; the values themselves without a group."""
    if group is None:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=group)
    return [float(value) for value in total.tolist()]


def mean_over_ranks(
    values: Sequence[float | None], group: "ProcessGroup | None", device: torch.device
) -> list[float | None]:
    """The mean of each value over the ranks that know it, the same on all; None where no rank does."""
    sums = summed_over_ranks([value or 0.0 for value in values], group, device)
    known = summed_over_ranks([float(value is not None) for value in values], group, device)
    return [total / ranks if ranks else None for total, ranks in zip(sums, known, strict=True)]


def broadcast_from_first(tensors: list[Tensor], group: "ProcessGroup") -> None:
    """Give every rank of the group what its first has."""
    first = dist.get_global_rank(group, 0)
    for tensor in tensors:
        dist.broadcast(tensor.detach(), first, group=group)


def on_all_ranks(born: Callable[[], T], group: "ProcessGroup | None", device: torch.device) -> T:
    """What is born, if that goes well on every rank; where it fails on one, each of them raises.

    Raises:
        BlueprintError: it does not fit, on some rank.
        Exception: it failed otherwise: the rank's own error, or an InputError where another rank has one.
    """
    if group is None:
        return born()
    seed, error = None, None
    try:
        seed = born()
    except Exception as failure:  # raised below, when every rank knows
        error = failure
    unfit = isinstance(error, BlueprintError)
    unfit_ranks, failed_ranks = summed_over_ranks([float(unfit), float(error is not None and not unfit)], group, device)
    if failed_ranks:
        raise error if error is not None and not unfit else InputError("germination failed on another rank")
    if unfit_ranks:
        raise error if error is not None else BlueprintError("the blueprint does not fit on another rank")
    assert seed is not None
    return seed
