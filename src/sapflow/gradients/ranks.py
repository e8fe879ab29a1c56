"""Training on several ranks: their closed passes become those of the global batch, at the decision drain.

Sums of squares add, so one SUM over all ranks gives the gain of the global batch. A gradient that tensor-parallel
ranks hold together (a DTensor) is counted by its parts; a plain gradient that each of them holds whole counts once.
"""

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.gradients.cells import NEVER_FIRED, TAKEN
from sapflow.gradients.parts import is_a, part_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger("sapflow.gradients")

# Tensor-parallel ranks compute a replicated gradient from the same numbers; where their squares differ by more than
# this, relatively, in any pass, each of them holds a part of its own.
REPLICAS_DIFFER = 1e-6


class Ranks:
    """The ranks that train one model together, and this rank's closed passes until they are combined.

    All ranks close as many passes an epoch, with the same names measured: then, and only then, their passes are those
    of one process that computes the mean loss of all their (equally sized) batches.

    Args:
        group: every rank that trains the model, data-parallel and tensor-parallel ones alike; None: this one alone.

    Raises:
        InputError: this rank is not in the group.
    """

    def __init__(self, group: "ProcessGroup | None") -> None:
        if group is not None and dist.get_rank(group) < 0:
            raise InputError("process_group: this rank is not in it; measure on its own ranks alone")
        self.counted_passes = 0  # of this epoch: those that optimizer or step() closed, on every rank alike
        self._group = group
        self._mesh: DeviceMesh | None = None  # of the ranks that compute one share of the batch together
        self._in_parts: set[tuple[int, int]] = set()  # cells (row, side) to which a DTensor was added in this epoch
        self._warned = False

    @property
    def together(self) -> bool:
        """Whether the ranks meet at the end of the epoch."""
        return self._group is not None

    def stay_local(self) -> None:
        """Meet the other ranks no more."""
        self._group = None

    def look_at(self, module: nn.Module) -> None:
        """Find out whether tensor-parallel ranks compute the module together; while its forward runs."""
        self._meet(_mesh_of(module))

    def part_of(self, gradient: Tensor, row: int, side: int) -> tuple[Tensor, float]:
        """As `part_of`, noting that the cell holds parts; meets the tensor-parallel ranks if it has to."""
        part, factor, mesh = part_of(gradient, may_meet=self.together)
        if mesh is not None:
            self._meet(mesh)
            self._in_parts.add((row, side))
        return part, factor

    def combine(
        self,
        blocks: list[Tensor],
        height: int,
        columns: int,
        vitals: dict[str, Tensor],
        rows: Mapping[str, int],
        device: torch.device,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The passes of the global batch, the same on every rank; this rank's where they do not agree or answer.

        Args:
            blocks: closed passes of this rank since the last time, float64 (passes, rows, columns).
            height: rows that there are by now.
            columns: how many the passes have.
            vitals: this rank's `Vitals.numbers`, of the names that have any.
            rows: the row of each name.
            device: where the group's collectives work.
        """
        counted, self.counted_passes = self.counted_passes, 0
        measured = [(name, row, len(vitals.get(name, ()))) for name, row in rows.items()]
        try:
            squares = _stacked(blocks, height, columns)
            passes = self._agree(counted, len(squares), measured, device)
            if passes is None:
                return blocks, vitals
            if passes:
                missing = squares.new_full((passes - len(squares), height, columns), NEVER_FIRED)
                blocks = [self._sum_passes(torch.cat((squares, missing)).to(device)).cpu()]
            return blocks, self._sum_vitals(vitals, device)
        except Exception:  # training comes first
            log.exception("gradient flow could not be combined over the ranks: it is this rank's own from now on")
            self.stay_local()
            return blocks, vitals
        finally:
            self._in_parts.clear()  # another module may get the row

    def _agree(self, counted: int, passes: int, measured: list[Any], device: torch.device) -> int | None:
        """How many passes the longest rank has, where all closed and measure the same; None where they do not."""
        digest = hashlib.sha256(repr(measured).encode()).digest()
        mine = [counted, int.from_bytes(digest[:7]), self._tensor_ranks()]
        header = torch.tensor([*mine, *(-value for value in mine), passes], dtype=torch.int64, device=device)
        dist.all_reduce(header, dist.ReduceOp.MAX, group=self._group)
        highest = header.tolist()
        if highest[:3] == [-value for value in highest[3:6]] and highest[2] > 0:
            return int(highest[6])
        if not self._warned:
            log.warning(
                "the ranks do not agree (here: %d passes, %s, %d tensor-parallel ranks in the group): "
                "gradient flow is this rank's own where they do not",
                counted,
                ", ".join(name for name, *_ in measured),
                mine[2],
            )
            self._warned = True
        return None

    def _sum_passes(self, squares: Tensor) -> Tensor:
        """The squares of the global batch from those of each rank, float64 (passes, rows, columns)."""
        tensor_ranks = self._tensor_ranks()
        if tensor_ranks > 1:
            squares = torch.where(self._replicated(squares), squares / tensor_ranks, squares)
        dist.all_reduce(squares, dist.ReduceOp.SUM, group=self._group)
        # Each loss is the mean over its share of the batch, which in the mean over all counts 1/shares.
        shares = dist.get_world_size(self._group) / tensor_ranks
        return squares / shares**2

    def _sum_vitals(self, vitals: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        if not vitals:
            return vitals
        total = torch.cat(list(vitals.values())).to(device)
        dist.all_reduce(total, dist.ReduceOp.SUM, group=self._group)
        parts = total.cpu().split([len(numbers) for numbers in vitals.values()])
        return dict(zip(vitals, parts, strict=True))

    def _replicated(self, squares: Tensor) -> Tensor:
        """Which cells every tensor-parallel rank holds whole, (rows, columns): plain gradients, the same on all.

        A plain tensor does not tell how it is laid out (parallelize_module hands on local parts by default), so the
        squares have to; parts that are equally large in every pass of an epoch would be taken for replicas.
        """
        assert self._mesh is not None
        bounds = torch.stack((squares, -squares)).nan_to_num()
        for dim in range(self._mesh.ndim):
            dist.all_reduce(bounds, dist.ReduceOp.MAX, group=self._mesh.get_group(dim))
        highest, lowest = bounds[0], -bounds[1]
        replicated = (highest - lowest <= REPLICAS_DIFFER * highest).all(0)
        replicated[:, TAKEN:] = False  # mean squares add up the same way, whoever holds what
        for cell in self._in_parts:
            replicated[cell] = False
        return replicated

    def _meet(self, mesh: "DeviceMesh | None") -> None:
        if mesh is not None and (self._mesh is None or mesh.size() > self._mesh.size()):
            self._mesh = mesh

    def _tensor_ranks(self) -> int:
        """How many ranks compute one share of the batch together; 0 where some of them are not in the group."""
        if self._mesh is None:
            return 1
        enclosed = set(self._mesh.mesh.flatten().tolist()) <= set(dist.get_process_group_ranks(self._group))
        return self._mesh.size() if enclosed else 0


def _mesh_of(module: nn.Module) -> "DeviceMesh | None":
    """The mesh of tensor-parallel parameters, as they are while the module's forward runs.

    FSDP2 has gathered the module's own then; those of submodules that it wraps for themselves are still its shards.
    """
    inner = [child for child in module.children() if not is_a("torch.distributed.fsdp", "FSDPModule", child)]
    for parameter in module.parameters(recurse=False):
        if is_a("torch.distributed.tensor", "DTensor", parameter):
            return cast("DeviceMesh", cast(Any, parameter).device_mesh)
    return next((mesh for mesh in map(_mesh_of, inner) if mesh is not None), None)


def _stacked(blocks: list[Tensor], height: int, columns: int) -> Tensor:
    """Blocks of (passes, rows, columns) as one of (all passes, height, columns); rows that came later never fired."""
    stacked = torch.full((sum(map(len, blocks)), height, columns), NEVER_FIRED, dtype=torch.float64)
    first = 0
    for block in blocks:
        stacked[first : first + len(block), : block.shape[1]] = block
        first += len(block)
    return stacked
