"""Entering and leaving at a module's boundary: hooks that add squared gradient norms while a backward pass goes by.

The input is handed on as an alias with a hook of its own, since a hook on the input itself would see every user of it
(17 times too much on `h + s(h)`); the output is hooked as it is, which is right under in-place operations that follow.
"""

import logging
from collections.abc import Collection, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, compiler, is_grad_enabled, nn
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.autograd.graph import Node
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.adding import adder, adder_alone
from sapflow.gradients.cells import ENTERING, LEAVING, Row
from sapflow.gradients.frames import never_compiled_alone, run_at_compile_time
from sapflow.gradients.nodes import NodeHook, alias_of, listen, listen_at_changed, node_of
from sapflow.gradients.norms import add_mean_squares, has_numbers
from sapflow.gradients.pass_sums import PassSums
from sapflow.gradients.reach import ParameterReach
from sapflow.gradients.structures import StandIns, map_tensors
from sapflow.gradients.taps import Traced, changes_in_place, inputs_to_tap, tap_inputs, tap_outputs

# Compiled code looks at a part in so many of the activations, unless all are asked for.
COMPILED_SHARE = 16

# Of a call that is open: what was handed on for each input, with its node (None where the call is not measured), what
# is to be put back where it stood, and the call inside of which it was begun.
_Call = tuple[Sequence[tuple[Tensor, Node]] | None, StandIns | None, "_Call | None"]

log = logging.getLogger("sapflow.gradients")


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
        self.open_calls: dict[int, _Call] = {}  # by thread: actors may run forward while a learner does
        self._handles: list[RemovableHandle] = []
        self.compiled_share = 1 if sums is None or sums.every_activation else COMPILED_SHARE
        self.compiled = False  # in a forward of it the probe was, too; from then on no Python tells that it ran
        self.failure_said = False
        self.traced = Traced()
        self.taps_input = module is not None and not changes_in_place(module)
        self.parameters = ParameterReach(module)
        self.begin_epoch()
        if module is not None:
            self._enters, self._leaves = adder(self, ENTERING), adder(self, LEAVING)
            self._enters_alone = adder_alone(self, self._enters)
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
        self.input_numberless = False  # or nothing in it could: integers, or what cannot be looked into
        self.input_needed = False  # in one of these: an input did
        self.entered_alone = False  # a gradient entered by one of these in which none did
        self.output_hooked = False
        self.output_is_view = False  # of which a change in place leaves out the node that is listened to
        self.output_seen = False  # a tensor was found in it
        self.opaque_output = ""  # the type of one in which none was
        self.unheard = False  # it ran in a pass that is left out, or for another module's sake
        self.transformed = False  # it ran inside of torch.func, or was traced
        self.pass_ended = False
        self.failure = ""
        self.parameters.begin_epoch()

    def end_pass(self) -> None:
        """Note that a pass has ended, and whether a gradient has reached the parameters."""
        self.pass_ended = True
        self.parameters.look()

    def forget_open_calls(self, running: Collection[int] = ()) -> None:
        """Of forwards that raised, as one does that a checkpoint stops early; not those of threads that are running."""
        for thread in [thread for thread in self.open_calls if thread not in running]:
            call: _Call | None = self.open_calls.pop(thread, None)
            while call is not None:
                _, stand_ins, call = call
                if stand_ins is not None:
                    stand_ins.put_back()

    def remove(self) -> None:
        """Take the hooks off the module; graphs that are still alive add nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget_open_calls()
        self.module = self.sums = None
        self.parameters = ParameterReach(None)

    def listening(self) -> bool:
        """Whether a forward that runs now is to be measured."""
        sums = self.sums
        return (
            sums is not None
            and not self.muted
            and not sums.paused
            and is_grad_enabled()
            and not _are_functorch_transforms_active()
            and _get_tracing_state() is None
        )

    # What runs in every call of the module and in every backward is written for few frames and few calls: their code is
    # not in the cache any more when its turn comes, and takes several times what it does in a loop of its own.

    @never_compiled_alone
    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return self._before_compiled(args, kwargs)
        if compiler._is_compiling_flag or not self.listening():  # exporting without TorchDynamo sets the flag
            self._note_unheard()
            return None
        if not self.ran:
            self._begin_first_forward()
        try:
            if len(args) == 1 and not kwargs and type(args[0]) is Tensor and args[0].requires_grad:
                alias = args[0][...]  # as `alias_of`, in one call less
                if args[0].__dict__:
                    alias.__dict__ = args[0].__dict__
                node = alias.grad_fn
                node.register_prehook(self._leaves)  # type: ignore[union-attr]
                thread = get_ident()
                self.open_calls[thread] = (((alias, node),), None, self.open_calls.get(thread))  # type: ignore[assignment]
                return (alias,), kwargs
            return self._hand_on_all(args, kwargs)
        except Exception as error:  # training comes first: what cannot be measured passes through
            self._open_call((), None)
            self.fail(error)
            return None

    def _hand_on_all(self, args: Any, kwargs: Any) -> Any:
        """Aliases in the place of all inputs, whatever structure they come in."""
        handed: list[tuple[Tensor, Node]] = []

        def hand_on(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            alias = alias_of(tensor)
            node = node_of(alias)
            node.register_prehook(self._leaves)
            handed.append((alias, node))
            return alias

        stand_ins = StandIns(hand_on)
        try:
            handed_on = stand_ins.put_in((args, kwargs))
        except Exception:
            stand_ins.put_back()
            raise
        if not (handed or self.input_detached or self.input_numberless):
            self.input_detached = has_numbers((args, kwargs))
            self.input_numberless = not self.input_detached
        self._open_call(handed, stand_ins)
        return handed_on

    def _open_call(self, handed: Sequence[tuple[Tensor, Node]] | None, stand_ins: StandIns | None) -> None:
        thread = get_ident()
        self.open_calls[thread] = (handed, stand_ins, self.open_calls.get(thread))

    @never_compiled_alone
    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if is_dynamo_compiling():
            return self._after_compiled(args, kwargs, output)
        sums, row, thread = self.sums, self.row, get_ident()
        call = self.open_calls.pop(thread, None)
        if call is None:
            return None
        handed, stand_ins, outer = call
        if outer is not None:
            self.open_calls[thread] = outer
        if stand_ins is not None:
            stand_ins.put_back()
        if handed is None or sums is None or row is None:
            return None
        try:
            for alias, node in handed:
                if alias.grad_fn is not node:
                    listen_at_changed(alias, node, self._leaves, self._lose_to_others)
            if handed:
                self.input_needed, enters = True, self._enters
            else:
                enters = self._enters_alone
            if type(output) is Tensor and output.output_nr == 0 and (made_by := output.grad_fn) is not None:
                made_by.register_prehook(enters)
                if not self.output_hooked:
                    self.output_hooked, self.output_is_view = True, output._is_view()
                hooked: Any = output
            else:
                hooked = map_tensors(lambda tensor: self._hook(tensor, enters, stand_ins), output)
                if not (self.output_hooked or self.output_seen):
                    self.opaque_output = type(output).__name__
            if sums.sees_activations:
                self.keeps_size = add_mean_squares(row.activations, (args, kwargs), output)
        except Exception as error:  # training comes first
            self.fail(error)
            return None
        return None if hooked is output else hooked

    def _hook(self, output: Tensor, enters: NodeHook, stand_ins: StandIns | None) -> Tensor:
        """Listen to what enters at one output; not at what only stands, as before, in a list that was given."""
        self.output_seen = True
        if not output.requires_grad or (stand_ins is not None and stand_ins.stood_in_for(output)):
            return output
        if output.is_leaf:  # a parameter handed out: hooks on it would outlive the pass and pile up
            output = alias_of(output)
        self.output_hooked = True
        self.output_is_view |= output._is_view()
        listen(node_of(output), output.output_nr, enters)
        return output

    def _begin_first_forward(self) -> None:
        self.ran = True
        self._look_at_ranks()

    def _look_at_ranks(self) -> None:
        if self.module is not None and self.sums is not None and self.sums.ranks is not None:
            self.sums.ranks.look_at(self.module)

    def _before_compiled(self, args: Any, kwargs: Any) -> Any:
        row = self._row_in_dynamo()
        if row is None or not self.taps_input:
            return None
        try:
            tapped = inputs_to_tap(args, kwargs, into_mutable=False)
            if inputs_to_tap(args, kwargs, into_mutable=True) > tapped:
                self.traced.note_untapped()
            elif tapped:
                self.traced.note_tapped()
            else:
                self.traced.note_detached()
            return tap_inputs(args, kwargs, row.cells[LEAVING])
        except Exception:  # training comes first
            self.traced.note_failed()
            return None

    def _after_compiled(self, args: Any, kwargs: Any, output: Any) -> Any:
        row = self._row_in_dynamo()
        if row is None:
            return None
        self._note_compiled()
        try:
            if len(row.activations):  # in every pass, since now and then would be another graph; so not all of it
                add_mean_squares(row.activations, (args, kwargs), output, self.compiled_share)
            return tap_outputs(output, row.cells[ENTERING])
        except Exception:  # training comes first
            self.traced.note_failed()
            return None

    @run_at_compile_time
    def _note_compiled(self) -> None:
        """TorchDynamo forbids changes of attributes inside of a checkpoint that it traces."""
        self.compiled = True
        if self.sums is not None:
            self.sums.compiled = True
        self._look_at_ranks()

    def _note_unheard(self) -> None:
        """Note that the module ran with gradients where nobody listens to it, and why."""
        if self.sums is None:
            return
        self._open_call(None, None)
        if not is_grad_enabled():
            return
        if self.muted or self.sums.paused:
            self.unheard = True
            self.sums.skipped |= self.sums.paused
        else:
            self.transformed = True

    def _row_in_dynamo(self) -> Row | None:
        """The row, if a forward that TorchDynamo compiles, and does not export, is to be measured."""
        # In a backward that TorchDynamo compiles, too, nothing may be added to cells.
        elsewhere = compiler.is_exporting() or torch._dynamo.compiled_autograd.compiled_autograd_enabled
        return None if elsewhere or not self.listening() else self.row

    def fail(self, error: Exception) -> None:
        """Note, and say once, that something cannot be measured."""
        self._lose(f"{type(error).__name__}: {error}".splitlines()[0])

    def _lose_to_others(self) -> None:
        self._lose("others use the input that it changes in place: set inplace=False")

    def _lose(self, why: str) -> None:
        if not self.failure:
            self.failure = why
        if not self.failure_said:
            self.failure_said = True
            log.warning("the gradient probe on %s cannot measure: %s", type(self.module).__name__, self.failure)
