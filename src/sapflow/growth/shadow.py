"""The shadow forward: a seed learns while the host does not know of it.

Another forward with the seed in place (α = 1) on the detached h, on clones of the host's buffers and from the host's
random state of that step. Host outputs, gradients and buffers are the same to the bit with and without it, whatever the
seed does, NaN included.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.randomness import RandomState
from sapflow.growth.slot import SeedSlot


def shadow_backward(
    host: nn.Module,
    slot: SeedSlot,
    inputs: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    random_state: RandomState,
    slots: Iterable[SeedSlot],
    monitor: GradientMonitor | None = None,
) -> Tensor:
    """Run the shadow of `slot`'s seed for one batch, add to its parameters' gradients, and return its loss.

    With micro-batches: one shadow each.

    Args:
        host: called as `host(inputs)`.
        slot: holds the seed that learns.
        inputs: the batch of this step.
        loss_of: the step's loss of the host's output.
        random_state: of the generators just before the host's own forward of this step.
        slots: all of the host's slots; seeds that live in the others stand still while this one looks on.
        monitor: only the probe of `slot` listens to the shadow.
    """
    assert slot.seed is not None
    parameters = [parameter for parameter in slot.seed.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        _freeze_others(stack, slots, slot)
        stack.enter_context(monitor.only(slot.state.slot_id) if monitor is not None else nullcontext())
        stack.enter_context(random_state.replayed())
        leaf = stack.enter_context(slot.shadowed())
        loss = loss_of(functional_call(host, _frozen_state(host), (inputs,)))
        # The leaf must be asked for: with the parameters alone, the gradient that leaves the seed is never computed.
        _, *gradients = torch.autograd.grad(loss, [leaf(), *parameters], allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None or gradient is None else parameter.grad + gradient
    return loss.detach()


def exchange_at(
    host: nn.Module,
    slot: SeedSlot,
    inputs: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    slots: Iterable[SeedSlot],
    monitor: GradientMonitor | None = None,
) -> tuple[Tensor, Tensor]:
    """What an empty slot hands on for `inputs`, and the gradient of the loss that comes back to it; both detached.

    Leaves the host, its other seeds and their measurement as they were, but for the random numbers that its forward
    draws. The arguments are those of `shadow_backward`.
    """
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: tuple[Tensor, ...], h: Tensor) -> Tensor:
        leaves.append(h.detach().requires_grad_())
        return leaves[0]

    with ExitStack() as stack:
        _freeze_others(stack, slots, slot)
        stack.enter_context(monitor.only(slot.state.slot_id) if monitor is not None else nullcontext())
        stack.callback(slot.register_forward_hook(cut).remove)
        loss = loss_of(functional_call(host, _frozen_state(host), (inputs,)))
        (gradient,) = torch.autograd.grad(loss, leaves)
    return leaves[0].detach(), gradient


def _freeze_others(stack: ExitStack, slots: Iterable[SeedSlot], slot: SeedSlot) -> None:
    """Until the stack closes, living seeds of other slots are seen as they are, but learn and count nothing."""
    for other in slots:
        if other is not slot and other.host_sees and other.fossil is None and other.seed is not None:
            stand_in = partial(functional_call, other.seed, _frozen_state(other.seed))
            stack.enter_context(other.replaced_by(stand_in))


def _frozen_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters without a gradient and clones of the buffers: nothing upstream is tracked, nothing is updated."""
    return {
        **{name: parameter.detach() for name, parameter in module.named_parameters()},
        **{name: buffer.clone() for name, buffer in module.named_buffers()},
    }
