"""Entering and leaving at a module's boundary: hooks that add squared gradient norms while a backward pass goes by.

The input is handed on as an alias with a hook of its own, since a hook on the input itself would see every user of it
(17 times too much on `h + s(h)`); the output is hooked as it is, which is right under in-place operations that follow.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.frames import never_compiled_alone, run_at_compile_time
from sapflow.gradients.norms import has_numbers, mean_square_of, norm_of
from sapflow.gradients.parts import part_of
from sapflow.gradients.pass_sums import ENTERING, GIVEN, LEAVING, TAKEN, PassSums, Row
from sapflow.gradients.structures import map_tensors
from sapflow.gradients.taps import changes_in_place, tap_inputs, tap_outputs

# Compiled code looks at a part in so many of the activations, unless all are asked for.
COMPILED_SHARE = 16

log = logging.getLogger("sapflow.gradients")


def alias_of(tensor: Tensor) -> Tensor:
    """A view whose backward hands the gradient through as it is."""
    # The fastest way to aten::alias. The backward of `view_as` reshapes the gradient, which a sparse one cannot be.
    return tensor[...]


def inside_backward() -> bool:
    """Whether autograd is running in this thread (a checkpoint recomputing its forward, say).

    torch.utils.checkpoint asks in the same way; there is no public name for it.
    """
    return torch._C._current_graph_task_id() != -1


class Probe:
    """Measures one module on every backward pass, into one row of `sums`.

    Without `sums` it is inert: so is every copy of a probe that comes with a deep-copied or unpickled model.

    Args:
        module: the module to measure; called any number of times a pass, with any structure of tensors.
        sums: where the squares are added.
        row: the probe's row in `sums`.
    """

    def __init__(self, module: nn.Module | None, sums: PassSums | None, row: Row | None) -> None:
        self.module = module
        self.sums = sums
        self.row = row
        self.muted = False
        self.keeps_size = False  # in the last call whose activations were seen; not known of compiled ones
        # Of each call that is open: what was handed on for an input, and what tells whether it was changed in place.
        self.open_calls: list[list[tuple[Tensor, int, Node | None, int]]] = []
        self._handles: list[RemovableHandle] = []
        self.compiled_share = 1 if sums is None or sums.every_activation else COMPILED_SHARE
        self.compiled = False  # in a forward of it the probe was, too; from then on no Python tells that it ran
        self.taps_input = module is not None and not changes_in_place(module)
        self.begin_epoch()
        if module is not None:
            self._handles = [
                module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                module.register_forward_hook(self._after_forward, with_kwargs=True, prepend=True),
            ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a model carry inert probes: one live probe a module, and no device tensors in a pickle."""
        return Probe, (None, None, None)

    def begin_epoch(self) -> None:
        """Forget what was noted of the epoch before."""
        self.ran = False  # forward, with gradient enabled
        self.input_detached = False  # in one of these: no input needed a gradient
        self.output_hooked = False
        self.unheard = False  # it ran while the probe did not listen
        self.pass_ended = False
        self.parameters_reached = False
        self.failure = ""

    def end_pass(self) -> None:
        """Note that a pass has ended, and whether a gradient has reached the parameters."""
        self.pass_ended = True
        if not self.parameters_reached and self.module is not None:
            self.parameters_reached = any(p.grad is not None for p in self.module.parameters())

    def remove(self) -> None:
        """Take the hooks off the module; graphs that are still alive add nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.open_calls = []
        self.module = self.sums = None

    def listening(self) -> bool:
        """Whether a forward that runs now is to be measured."""
        return (
            self.sums is not None
            and not self.muted
            and not self.sums.paused
            and torch.is_grad_enabled()
            and not torch._C._are_functorch_transforms_active()
            and torch._C._get_tracing_state() is None
        )

    # What runs in every call of the module and in every backward is written for few frames: their code is not in the
    # cache any more when its turn comes, and takes several times what it does in a loop of its own.

    @never_compiled_alone
    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._before_compiled(args, kwargs)
        if torch.compiler._is_compiling_flag or not self.listening():  # exporting without TorchDynamo sets the flag
            self._note_unheard()
            return None
        if not self.ran:
            self._begin_first_forward(module)
        self.open_calls.append([])
        try:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                handed_on: Any = (self._hand_on(args[0]),), kwargs
            else:
                handed_on = map_tensors(self._hand_on, (args, kwargs))
        except Exception as error:  # training comes first: what cannot be measured passes through
            self._fail(error)
            return None
        if not (self.open_calls[-1] or self.input_detached) and has_numbers((args, kwargs)):
            self.input_detached = True
        return handed_on

    def _hand_on(self, tensor: Tensor) -> Tensor:
        """An alias of an input, with a hook, in its place."""
        if not tensor.requires_grad:
            return tensor
        alias = alias_of(tensor)
        _node(alias).register_prehook(self._leaves)
        self.open_calls[-1].append((alias, alias._version, tensor.grad_fn, tensor.output_nr))
        return alias

    @never_compiled_alone
    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._after_compiled(args, kwargs, output)
        sums = self.sums
        if sums is None or not self.open_calls or not self.listening():
            return None
        for alias, version, producer, position in self.open_calls.pop():
            if alias._version != version and producer is not None:
                self._hook_producer(producer, position)
        try:
            hooked = self._hook(output) if isinstance(output, Tensor) else map_tensors(self._hook, output)
            if sums.sees_activations:
                self.keeps_size = self._see(TAKEN, (args, kwargs)) == self._see(GIVEN, output)
        except Exception as error:  # training comes first
            self._fail(error)
            return None
        return None if hooked is output else hooked

    def _hook(self, output: Tensor) -> Tensor:
        """Listen to what enters at one output."""
        if not output.requires_grad:
            return output
        if output.is_leaf:  # a parameter handed out: hooks on it would outlive the pass and pile up
            output = alias_of(output)
        self.output_hooked = True
        position = output.output_nr
        if position == 0:
            _node(output).register_prehook(self._enters)
        else:
            _node(output).register_prehook(lambda gradients: self._add(ENTERING, gradients[position]))
        return output

    def _hook_producer(self, producer: Node, position: int) -> None:
        """A change of the input in place cuts the alias out of the graph: listen where the input was made instead."""
        producer.register_prehook(lambda gradients: self._add(LEAVING, gradients[position]))

    # Hooks on graph nodes, which cost less than those on tensors: they take the gradients of all of a node's outputs.

    def _enters(self, gradients: tuple[Tensor | None, ...]) -> None:
        self._add(ENTERING, gradients[0])

    def _leaves(self, gradients: tuple[Tensor | None, ...]) -> None:
        self._add(LEAVING, gradients[0])

    def _add(self, column: int, gradient: Tensor | None) -> None:
        sums, row = self.sums, self.row
        if gradient is None or sums is None or row is None or torch.compiler.is_dynamo_compiling():
            return
        try:
            norm = sums.norm_of(gradient) if type(gradient) is Tensor else self._norm_of_part(column, gradient)
            cell = row.cells[column]
            if norm.device != cell.device:
                norm, cell = sums.meet(row, column, norm)
            cell.addcmul_(norm, norm)
            sums.fired = True
            if not sums.in_backward:
                sums.begin_backward()
        except Exception as error:  # training comes first
            self._fail(error)

    def _begin_first_forward(self, module: nn.Module) -> None:
        self.ran = True
        if self.sums is not None and self.sums.ranks is not None:
            self.sums.ranks.look_at(module)

    def _norm_of_part(self, column: int, gradient: Tensor) -> Tensor:
        """What a gradient that several ranks may hold together (a DTensor) adds to this rank's norm."""
        assert self.row is not None
        ranks = self.sums.ranks if self.sums is not None else None
        if ranks is None:
            part, factor, _ = part_of(gradient, may_meet=False)
        else:
            part, factor = ranks.part_of(gradient, self.row.index, column)
        return norm_of(part) * factor

    def _see(self, column: int, value: Any, every: int = 1) -> int:
        """Add the mean square of a call's inputs or outputs, or a part in `every` of them; gives how many they were."""
        seen = mean_square_of(value, every)
        if seen is None or self.row is None:
            return 0
        cell = self.row.cells[column]
        cell.add_(seen.value.to(cell.device, non_blocking=True))
        return seen.numbers

    def _before_compiled(self, args: Any, kwargs: Any) -> Any:
        row = self._row_in_dynamo()
        if row is None or not self.taps_input:
            return None
        return tap_inputs((args, kwargs), row.cells[LEAVING])

    def _after_compiled(self, args: Any, kwargs: Any, output: Any) -> Any:
        row = self._row_in_dynamo()
        if row is None:
            return None
        self._note_compiled()
        if len(row.cells) > TAKEN:  # in every pass, since now and then would be another graph; so not all of it
            self._see(TAKEN, (args, kwargs), self.compiled_share)
            self._see(GIVEN, output, self.compiled_share)
        return tap_outputs(output, row.cells[ENTERING])

    @run_at_compile_time
    def _note_compiled(self) -> None:
        """TorchDynamo forbids changes of attributes inside of a checkpoint that it traces."""
        self.compiled = True
        if self.sums is not None:
            self.sums.compiled = True

    def _note_unheard(self) -> None:
        """Note that the module ran with gradients in a pass that is left out, or for another module's sake."""
        if self.sums is not None and torch.is_grad_enabled():
            self.unheard = True
            self.sums.skipped |= self.sums.paused

    def _row_in_dynamo(self) -> Row | None:
        """The row, if a forward that TorchDynamo compiles, and does not export, is to be measured."""
        # In a backward that TorchDynamo compiles, too, nothing may be added to cells.
        elsewhere = torch.compiler.is_exporting() or torch._dynamo.compiled_autograd.compiled_autograd_enabled
        return None if elsewhere or not self.listening() else self.row

    def _fail(self, error: Exception) -> None:
        if not self.failure:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("the gradient probe on %s cannot measure: %s", type(self.module).__name__, self.failure)


def _node(tensor: Tensor) -> Node:
    node = tensor.grad_fn
    assert node is not None  # callers ask for tensors that require grad and are no leaves
    return node
