"""What a probe's hooks on the graph do: add the square of a gradient's norm to one of its cells."""

from typing import TYPE_CHECKING
from weakref import ref

from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import is_legacy_batchedtensor
from torch.compiler import is_dynamo_compiling

from sapflow.gradients.nodes import NodeHook
from sapflow.gradients.norms import norm_of
from sapflow.gradients.parts import part_of

if TYPE_CHECKING:
    from sapflow.gradients.probe import Probe


# What runs in every call of the module and in every backward is written for few frames and few calls: their code is
# not in the cache any more when its turn comes, and takes several times what it does in a loop of its own.


def adder(probe: "Probe", column: int) -> NodeHook:
    """The hook that adds to the cell of a column, as long as the probe is on its module."""

    def add(gradients: tuple[Tensor | None, ...]) -> None:
        gradient, sums, row = gradients[0], probe.sums, probe.row
        if gradient is None or sums is None or row is None or is_dynamo_compiling():
            return
        try:
            norm: Tensor | float
            if type(gradient) is Tensor:
                known, version, norm = sums.last_norm
                if known() is not gradient or version != gradient._version:
                    norm = norm_of(gradient)
                    if norm.is_cpu:
                        norm = norm.item()
                    # What leaves a module often enters the one before it, and is measured once.
                    sums.last_norm = ref(gradient), gradient._version, norm
            else:
                norm = _norm_of_part(probe, column, gradient)
            memory = row.memory
            if memory is not None and type(norm) is float:
                square = norm * norm
                memory[column] += square
                sums.total += square
            else:
                sums.add(row, column, norm)
            if not sums.in_backward:
                sums.begin_backward()
        except Exception as error:  # training comes first
            if not (_are_functorch_transforms_active() or is_legacy_batchedtensor(gradient)):  # several have no norm
                probe.fail(error)

    return add


def adder_alone(probe: "Probe", enters: NodeHook) -> NodeHook:
    """What enters by a call none of whose inputs needs a gradient, and of which it cannot be known what would leave.

    It counts only as long as nothing else does: beside calls of which both are known it would pass for a low gain.
    """

    def add(gradients: tuple[Tensor | None, ...]) -> None:
        probe.entered_alone = True
        if not probe.input_needed:
            enters(gradients)
        elif probe.sums is not None and not probe.sums.in_backward:
            probe.sums.begin_backward()

    return add


def _norm_of_part(probe: "Probe", column: int, gradient: Tensor) -> Tensor:
    """What a gradient that several ranks may hold together (a DTensor) adds to this rank's norm."""
    assert probe.row is not None
    ranks = probe.sums.ranks if probe.sums is not None else None
    if ranks is None:
        part, factor, _ = part_of(gradient, may_meet=False)
    else:
        part, factor = ranks.part_of(gradient, probe.row.index, column)
    return norm_of(part) * factor
