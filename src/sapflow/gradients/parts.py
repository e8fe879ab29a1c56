"""What one rank holds of a tensor that several hold together (a DTensor), without meeting the others."""

import math
import sys
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from sapflow.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def held_part(tensor: Tensor) -> Tensor | None:
    """The elements of a tensor that this rank holds, without meeting others; None if all it holds are summands."""
    if type(tensor) is Tensor or not is_a("torch.distributed.tensor", "DTensor", tensor):
        return tensor
    shared = cast(Any, tensor)
    return None if any(placement.is_partial() for placement in shared.placements) else cast(Tensor, shared.to_local())


def part_of(gradient: Tensor, *, may_meet: bool) -> tuple[Tensor, float, "DeviceMesh | None"]:
    """This rank's part of a gradient, the factor by which its norm counts, and the mesh that holds it together.

    Over all ranks of the mesh the squares of part norm × factor add up to ‖gradient‖₂². A gradient that is no DTensor
    is its own part, without a mesh.

    Raises:
        InputError: every rank holds a summand only, and the ranks may not meet to add them.
    """
    if not is_a("torch.distributed.tensor", "DTensor", gradient):
        return gradient, 1.0, None
    from torch.distributed.tensor import Replicate

    held: Any = gradient.detach()
    mesh: DeviceMesh = held.device_mesh
    placements = [Replicate() if placement.is_partial() else placement for placement in held.placements]
    if any(placement.is_partial() for placement in held.placements):
        if not may_meet:
            raise InputError("its gradient is a partial sum on each rank: measure it with a process_group")
        held = held.redistribute(placements=placements)
    replicas = math.prod(mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    return held.to_local(), replicas**-0.5, mesh


def is_a(package: str, kind: str, value: object) -> bool:
    """Whether the value is of a type whose package is heavy to import: where nobody did, nothing is of that type."""
    return package in sys.modules and isinstance(value, getattr(sys.modules[package], kind))
