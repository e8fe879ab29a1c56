"""Entering and leaving at a module's boundary: hooks that add squared gradient norms while a backward pass goes by.

The input is handed on as an alias with a hook of its own, since a hook on the input itself would see every user of it
(17 times too much on `h + s(h)`); the output is hooked as it is, which is right under in-place operations that follow.
"""

import logging
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.linalg import vector_norm
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.pass_sums import ENTERING, LEAVING, PassSums
from sapflow.gradients.ranks import part_of
from sapflow.gradients.structures import map_tensors

log = logging.getLogger("sapflow.gradients")

# A view whose backward hands the gradient through as it is; that of `view_as` reshapes it, which sparse ones cannot.
alias_of = torch.ops.aten.alias.default

# A flat fp32 norm loses digits on large tensors (seen on CPU: 3e-4 at 4e6 elements); the norm of the norms of rows
# loses none, and costs nothing from about this size on.
LARGE = 1 << 16
ROW = 1 << 10


def norm_of(gradient: Tensor) -> Tensor:
    """‖gradient‖₂ as a scalar on its device, in fp32 (fp64 of fp64), whatever its dtype or layout."""
    gradient = gradient.detach()  # under create_graph the sums must not become part of the graph
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    if gradient.numel() < LARGE:
        return cast(Tensor, vector_norm(gradient, dtype=dtype))
    flat = gradient.reshape(-1)
    in_rows = flat.numel() // ROW * ROW
    norms = vector_norm(flat[:in_rows].view(-1, ROW), dim=-1, dtype=dtype)
    remainder = vector_norm(flat[in_rows:], dtype=dtype).view(1)
    return cast(Tensor, vector_norm(torch.cat((norms, remainder))))


def inside_backward() -> bool:
    """Whether autograd is running in this thread (a checkpoint recomputing its forward, say).

    torch.utils.checkpoint asks in the same way; there is no public name for it.
    """
    return torch._C._current_graph_task_id() != -1


class _Alias(NamedTuple):
    """What was handed to the module in place of an input, and what tells whether the module changed it in place."""

    tensor: Tensor
    version: int
    producer: Node | None
    output_nr: int


class Probe:
    """Measures one module on every backward pass, into one row of `sums`.

    Without `sums` it is inert: so is every copy of a probe that comes with a deep-copied or unpickled model.

    Args:
        module: the module to measure; called any number of times a pass, with any structure of tensors.
        sums: where the squares are added.
        row: the probe's row in `sums`.
    """

    def __init__(self, module: nn.Module | None, sums: PassSums | None, row: int = 0) -> None:
        self.module = module
        self.sums = sums
        self.row = row
        self.muted = False
        self._cells: tuple[Tensor, Tensor] | None = None
        self._cells_generation = 0
        self._open_calls: list[list[_Alias]] = []
        self._handles: list[RemovableHandle] = []
        self.begin_epoch()
        if module is not None:
            self._handles = [
                module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                module.register_forward_hook(self._after_forward, prepend=True),
            ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a model carry inert probes: one live probe a module, and no device tensors in a pickle."""
        return Probe, (None, None)

    def begin_epoch(self) -> None:
        """Forget what was noted of the epoch before."""
        self.forwards = 0  # with gradient enabled
        self.detached_forwards = 0  # of these: no input needed a gradient
        self.hooked_outputs = 0
        self.passes_ended = 0  # whether the probe fired in them or not
        self.parameters_reached = False
        self.failure = ""

    def end_pass(self) -> None:
        """Let go of what a forward that raised left behind, and note whether a gradient reached the parameters."""
        self._open_calls.clear()
        self.passes_ended += 1
        if not self.parameters_reached and self.module is not None:
            self.parameters_reached = any(p.grad is not None for p in self.module.parameters())

    def remove(self) -> None:
        """Take the hooks off the module; graphs that are still alive add nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._open_calls = []
        self.module = self.sums = self._cells = None

    def _listening(self) -> bool:
        return not (
            torch.compiler.is_compiling()
            or self.sums is None
            or self.muted
            or not torch.is_grad_enabled()
            or torch._C._are_functorch_transforms_active()
        )

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self._listening():
            return None
        aliases: list[_Alias] = []
        differentiable = 0

        def alias(tensor: Tensor) -> Tensor:
            nonlocal differentiable
            differentiable += tensor.is_floating_point() or tensor.is_complex()
            if not tensor.requires_grad:
                return tensor
            handed_on: Tensor = alias_of(tensor)
            handed_on.register_hook(self._leaves)
            aliases.append(_Alias(handed_on, handed_on._version, tensor.grad_fn, tensor.output_nr))
            return handed_on

        if not self.forwards and self.sums is not None and self.sums.ranks is not None:
            self.sums.ranks.look_at(module)
        self.forwards += 1
        self._open_calls.append(aliases)
        try:
            handed_on = map_tensors(alias, (args, kwargs))
        except Exception as error:  # training comes first: what cannot be measured passes through
            self._fail(error)
            return None
        self.detached_forwards += bool(differentiable and not aliases)
        return handed_on

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not (self._listening() and self._open_calls):
            return None
        for alias in self._open_calls.pop():
            if alias.tensor._version != alias.version and alias.producer is not None:
                self._hook_producer(alias.producer, alias.output_nr)

        def hook(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            if tensor.is_leaf:  # a parameter handed out: hooks on it would outlive the pass and pile up
                tensor = alias_of(tensor)
            tensor.register_hook(self._enters)
            self.hooked_outputs += 1
            return tensor

        try:
            hooked = map_tensors(hook, output)
        except Exception as error:  # training comes first
            self._fail(error)
            return None
        return None if hooked is output else hooked

    def _hook_producer(self, producer: Node, output_nr: int) -> None:
        """A change of the input in place cuts the alias out of the graph: listen where the input was made instead."""

        def leaves(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[output_nr]
            if gradient is not None:
                self._leaves(gradient)

        producer.register_prehook(leaves)

    def _enters(self, gradient: Tensor) -> None:
        self._add(ENTERING, gradient)

    def _leaves(self, gradient: Tensor) -> None:
        self._add(LEAVING, gradient)

    def _add(self, side: int, gradient: Tensor) -> None:
        sums = self.sums
        if sums is None:
            return
        try:
            if self._cells is None or self._cells_generation != sums.generation:
                self._cells = sums.cells_of(self.row, gradient.device)
                self._cells_generation = sums.generation
            cell = self._cells[side]
            norm = norm_of(gradient) if type(gradient) is Tensor else self._norm_of_part(side, gradient)
            if norm.device != cell.device:
                norm = norm.to(cell.device, non_blocking=True)
            cell.addcmul_(norm, norm)
            sums.fired = True
        except Exception as error:  # training comes first
            self._fail(error)

    def _norm_of_part(self, side: int, gradient: Tensor) -> Tensor:
        """What a gradient that several ranks may hold together (a DTensor) adds to this rank's norm."""
        ranks = self.sums.ranks if self.sums is not None else None
        if ranks is None:
            part, factor, _ = part_of(gradient, may_meet=False)
        else:
            part, factor = ranks.part_of(gradient, self.row, side)
        return norm_of(part) * factor

    def _fail(self, error: Exception) -> None:
        if not self.failure:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("the gradient probe on %s cannot measure: %s", type(self.module).__name__, self.failure)
