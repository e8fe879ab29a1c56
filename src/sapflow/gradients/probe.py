"""Entering and leaving at a module's boundary: hooks that add squared gradient norms while a backward pass goes by.

The input is handed on as an alias with a hook of its own, since a hook on the input itself would see every user of it
(17 times too much on `h + s(h)`); the output is hooked as it is, which is right under in-place operations that follow.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.frames import never_compiled_alone, run_at_compile_time
from sapflow.gradients.norms import add_mean_squares, has_numbers, norm_of
from sapflow.gradients.parts import part_of
from sapflow.gradients.pass_sums import ENTERING, LEAVING, PassSums, Row
from sapflow.gradients.structures import map_tensors
from sapflow.gradients.taps import changes_in_place, tap_inputs, tap_outputs

# Compiled code looks at a part in so many of the activations, unless all are asked for.
COMPILED_SHARE = 16

# What a node of the graph calls with the gradients of all of its outputs: hooks on nodes cost less than on tensors.
NodeHook = Callable[[tuple[Tensor | None, ...]], None]

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
        # Of each call that is open: what was handed on for each input, and its node; None if it is not measured.
        self.open_calls: list[Sequence[tuple[Tensor, Node]] | None] = []
        self._handles: list[RemovableHandle] = []
        self.compiled_share = 1 if sums is None or sums.every_activation else COMPILED_SHARE
        self.compiled = False  # in a forward of it the probe was, too; from then on no Python tells that it ran
        self.taps_input = module is not None and not changes_in_place(module)
        self.begin_epoch()
        if module is not None:
            self._enters, self._leaves = self._adder(ENTERING), self._adder(LEAVING)
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

    # What runs in every call of the module and in every backward is written for few frames and few calls: their code is
    # not in the cache any more when its turn comes, and takes several times what it does in a loop of its own.

    @never_compiled_alone
    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return self._before_compiled(args, kwargs)
        if torch.compiler._is_compiling_flag or not self.listening():  # exporting without TorchDynamo sets the flag
            self._note_unheard()
            return None
        if not self.ran:
            self._begin_first_forward(module)
        try:
            if len(args) == 1 and not kwargs and type(args[0]) is Tensor and args[0].requires_grad:
                alias = args[0][...]
                node = alias.grad_fn
                node.register_prehook(self._leaves)  # type: ignore[union-attr]
                self.open_calls.append(((alias, node),))  # type: ignore[arg-type]
                return (alias,), kwargs
            return self._hand_on_all(args, kwargs)
        except Exception as error:  # training comes first: what cannot be measured passes through
            self.open_calls.append(())
            self._fail(error)
            return None

    def _hand_on_all(self, args: Any, kwargs: Any) -> Any:
        """Aliases in the place of all inputs, whatever structure they come in."""
        handed: list[tuple[Tensor, Node]] = []

        def hand_on(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            alias = alias_of(tensor)
            node = _node(alias)
            node.register_prehook(self._leaves)
            handed.append((alias, node))
            return alias

        handed_on = map_tensors(hand_on, (args, kwargs))
        if not (handed or self.input_detached) and has_numbers((args, kwargs)):
            self.input_detached = True
        self.open_calls.append(handed)
        return handed_on

    @never_compiled_alone
    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if is_dynamo_compiling():
            return self._after_compiled(args, kwargs, output)
        sums, row = self.sums, self.row
        handed = self.open_calls.pop() if self.open_calls else None
        if sums is None or row is None or handed is None:
            return None
        for alias, node in handed:
            if alias.grad_fn is not node:  # changed in place, the alias is out of the graph: listen at what made it
                _listen(*node.next_functions[0], self._leaves)
        try:
            if type(output) is Tensor and output.output_nr == 0 and (made_by := output.grad_fn) is not None:
                made_by.register_prehook(self._enters)
                self.output_hooked = True
                hooked: Any = output
            else:
                hooked = map_tensors(self._hook, output)
            if sums.sees_activations:
                self.keeps_size = add_mean_squares(row.activations, (args, kwargs), output)
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
        _listen(_node(output), output.output_nr, self._enters)
        return output

    def _adder(self, column: int) -> NodeHook:
        """What adds the square of a gradient's norm to one of the row's cells."""

        def add(gradients: tuple[Tensor | None, ...]) -> None:
            gradient, sums, row = gradients[0], self.sums, self.row
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
                    norm = self._norm_of_part(column, gradient)
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
                self._fail(error)

        return add

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
        if len(row.activations):  # in every pass, since now and then would be another graph; so not all of it
            add_mean_squares(row.activations, (args, kwargs), output, self.compiled_share)
        return tap_outputs(output, row.cells[ENTERING])

    @run_at_compile_time
    def _note_compiled(self) -> None:
        """TorchDynamo forbids changes of attributes inside of a checkpoint that it traces."""
        self.compiled = True
        if self.sums is not None:
            self.sums.compiled = True

    def _note_unheard(self) -> None:
        """Note that the module ran with gradients in a pass that is left out, or for another module's sake."""
        if self.sums is None:
            return
        self.open_calls.append(None)
        if torch.is_grad_enabled():
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


def _listen(node: Node | None, position: int, hook: NodeHook) -> None:
    """Have `hook` called with the gradient of one of a node's outputs; not at a leaf, which outlives the pass."""
    if node is not None and node.name() != "torch::autograd::AccumulateGrad":
        node.register_prehook(hook if position == 0 else lambda gradients: hook(gradients[position : position + 1]))


def _node(tensor: Tensor) -> Node:
    node = tensor.grad_fn
    assert node is not None  # callers ask for tensors that require grad and are no leaves
    return node
