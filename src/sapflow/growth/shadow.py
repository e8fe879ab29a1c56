"""The shadow forward: a seed learns while the host does not know of it.

A closure runs the host and gives its loss, `lambda net: loss_of(net(x), y)`. A shadow runs it once more, with the seed
in place (α = 1) on the detached h, on clones of the host's buffers and from the host's random state of that step. Host
outputs, gradients and buffers are the same to the bit with and without it, whatever the seed does, NaN included.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sapflow.errors import InputError
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.roster import muted, probes_on
from sapflow.growth.randomness import RandomState
from sapflow.growth.slot import SeedSlot

Closure = Callable[[nn.Module], Tensor]
T = TypeVar("T")


def shadow_backward(
    host: nn.Module,
    slot: SeedSlot,
    closure: Closure,
    *,
    random_state: RandomState,
    slots: Iterable[SeedSlot],
    monitor: GradientMonitor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Run the shadow of `slot`'s seed for one batch, add to its parameters' gradients, and return its loss.

    With micro-batches: one shadow each.

    Args:
        host: what the closure is called with; no wrapper around it (DDP, torch.compile) may have a part in it.
        slot: holds the seed that learns.
        closure: of this step; gives a scalar.
        random_state: of the generators just before the host's own forward of this step.
        slots: all of the host's slots; seeds that live in the others stand still while this one looks on.
        monitor: only the probe of `slot` listens to the shadow.
        scale: a loss scale, which the gradients then carry.
    """
    assert slot.seed is not None
    parameters = [parameter for parameter in slot.seed.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        _aside(stack, host, slots, slot, monitor)
        stack.enter_context(random_state.replayed())
        leaves = stack.enter_context(slot.shadowed())

        def gradients_of(loss: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            if not loss.requires_grad:  # the slot lies where the host computes without gradients
                return loss, (None,) * len(parameters)
            scaled = loss if scale is None else loss * scale
            # The leaves must be asked for, too: else the gradient that leaves the seed is not computed.
            gradients = torch.autograd.grad(scaled, [*parameters, *leaves], allow_unused=True)
            return loss.detach(), gradients[: len(parameters)]

        loss, gradients = _with_frozen_state(host, closure, gradients_of)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return loss


def exchange_at(
    host: nn.Module,
    slot: SeedSlot,
    closure: Closure,
    *,
    slots: Iterable[SeedSlot],
    monitor: GradientMonitor | None = None,
) -> tuple[Tensor, Tensor]:
    """What an empty slot hands on for a batch, and the gradient of the loss that comes back to it; both detached.

    They are of the dtype that a seed there has to have: under autocast, which recasts, that of the host's parameters.

    Leaves the host, its other seeds and their measurement as they were, but for the random numbers that its forward
    draws. The arguments are those of `shadow_backward`.

    Raises:
        InputError: the closure's forward does not pass the slot.
    """
    leaves: list[Tensor] = []
    recast: list[bool] = []

    def cut(_module: nn.Module, _args: tuple[Tensor, ...], h: Tensor) -> Tensor:
        recast.append(torch.is_autocast_enabled(h.device.type))
        leaves.append(h.detach().requires_grad_())
        return leaves[-1].clone()  # on which the host may write

    def exchanged(loss: Tensor) -> tuple[Tensor, Tensor]:
        if not leaves:
            raise _not_passed(slot)
        leaf = leaves[-1]
        (gradient,) = torch.autograd.grad(loss, [leaf], allow_unused=True) if loss.requires_grad else (None,)
        dtype = next(host.parameters()).dtype if recast[-1] else leaf.dtype
        return leaf.detach().to(dtype), (torch.zeros_like(leaf) if gradient is None else gradient).to(dtype)

    with ExitStack() as stack:
        _aside(stack, host, slots, slot, monitor)
        stack.callback(slot.register_forward_hook(cut).remove)
        return _with_frozen_state(host, closure, exchanged)


def learn_shapes(host: nn.Module, closure: Closure, slots: Iterable[SeedSlot]) -> None:
    """Tell slots that do not know it the shape of what they hand on; the host and what has grown stay as they were.

    Raises:
        InputError: the closure's forward does not pass one of them, or nothing could grow on what one hands on; or the
            closure gives no scalar.
    """
    strangers = [slot for slot in slots if not slot.shape]

    def look(slot: nn.Module, _args: tuple[Tensor, ...], h: Tensor) -> Tensor:
        assert isinstance(slot, SeedSlot)
        if h.dim() < 2 or not h.is_floating_point():
            raise InputError(
                f"slot {slot.state.slot_id!r}: {h.dtype} of shape {tuple(h.shape)} passes it, and a seed grows on "
                "floating-point numbers of shape (batch, …); choose another module or place"
            )
        slot.shape = tuple(h.shape[1:])
        return h.detach().requires_grad_().clone()  # as when a seed grows there: a closure may ask for gradients itself

    if not strangers:
        return
    with ExitStack() as stack:
        stack.enter_context(RandomState.capture().replayed())
        _aside(stack, host, slots)
        for slot in strangers:
            stack.callback(slot.register_forward_hook(look).remove)
        _with_frozen_state(host, closure, lambda loss: loss)
    for slot in strangers:
        if not slot.shape:
            raise _not_passed(slot)


def _not_passed(slot: SeedSlot) -> InputError:
    return InputError(f"slot {slot.state.slot_id!r}: the forward did not pass it; choose a module that runs")


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, nothing is compiled."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing ever was, and it takes seconds to import
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


class _Step(nn.Module):
    """A closure, and what is to be made of its loss, as the forward of a module that holds the host."""

    def __init__(self, host: nn.Module, step: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.host = host
        self.step = step

    def forward(self) -> Any:
        return self.step(self.host)


def _with_frozen_state(host: nn.Module, closure: Closure, then: Callable[[Tensor], T]) -> T:
    """`then(closure(host))` with the host's state frozen: also while a backward pass computes activations anew."""
    state = {f"host.{name}": value for name, value in _frozen_state(host).items()}
    made: T = functional_call(_Step(host, lambda net: then(_scalar(closure(net)))), state, ())
    return made


def _scalar(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise InputError(f"the closure gives {given}: let it give the loss alone, a tensor of one number")


def _aside(
    stack: ExitStack,
    host: nn.Module,
    slots: Iterable[SeedSlot],
    slot: SeedSlot | None = None,
    monitor: GradientMonitor | None = None,
) -> None:
    """Until the stack closes, nothing but `slot` learns, counts, is measured or is compiled."""
    for other in slots:
        if other is not slot and other.host_sees and other.seed is not None:
            stand_in = partial(functional_call, other.seed, _frozen_state(other.seed))
            stack.enter_context(other.replaced_by(stand_in))
    stack.enter_context(muted(probes_on(host)))  # whoever watches the host, a shadow's gradients are not its own
    if slot is not None and monitor is not None:
        stack.enter_context(monitor.only(slot.state.slot_id))
    stack.enter_context(uncompiled())


def _frozen_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters without a gradient and clones of the buffers: nothing upstream is tracked, nothing is updated."""
    return {
        **{name: parameter.detach() for name, parameter in module.named_parameters()},
        **{name: buffer.clone() for name, buffer in module.named_buffers()},
    }
