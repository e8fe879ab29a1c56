"""Germination: build a blueprint for a slot, check that it fits, and bring its gain to 1 where it asks for that."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sapflow.errors import BlueprintError
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.randomness import RandomState
from sapflow.growth.slot import SeedSlot


def germinate(
    slot: SeedSlot,
    blueprint: Blueprint,
    *,
    seed_id: str,
    exchange: Callable[[], tuple[Tensor, Tensor]],
    random_seed: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Plant a seed of `blueprint` in the slot and return its gain at birth, ‖∂L/∂h‖₂ / ‖∂L/∂seed(h)‖₂.

    The gain is NaN, and the seed as it was built, where the gradient at the slot is zero or not finite.

    Everything random is drawn from the seed's own stream: the host's generators stand where they stood.

    Args:
        slot: empty and DORMANT.
        blueprint: what to build.
        seed_id: unique within the env.
        exchange: gives what the slot hands on for some batch, and the gradient that comes back, (batch, *slot.shape);
            the gain is measured on them, since it depends on both.
        random_seed: of the seed's stream.
        dtype: of the seed's parameters, and of the host's; autocast may hand on activations of another.

    Raises:
        BlueprintError: the module does not fit: its shape differs, or it changes its input in place.
        IllegalTransitionError: the slot is not DORMANT.
    """
    with RandomState.seeded(random_seed).replayed():
        activations, gradient = (tensor.to(dtype) for tensor in exchange())
        seed = blueprint.build(slot.shape).to(device=activations.device, dtype=dtype)
        gain = _gain(seed, activations, gradient, blueprint)
        if blueprint.calibrated and 0 < gain < math.inf:  # where no gradient comes, there is nothing to scale by
            _scale_output(seed, 1 / gain)
            gain = _gain(seed, activations, gradient, blueprint)
    slot.plant(seed, seed_id=seed_id, blueprint_id=blueprint.blueprint_id)
    return gain


def _gain(seed: nn.Module, activations: Tensor, gradient: Tensor, blueprint: Blueprint) -> float:
    """‖Jᵀg‖₂ / ‖g‖₂, J the Jacobian of the seed at the activations."""
    leaf = activations.detach().requires_grad_()
    fed = leaf.clone()
    output = seed(fed)
    if output.shape != activations.shape:
        raise BlueprintError(
            f"blueprint {blueprint.blueprint_id!r} turns {tuple(activations.shape[1:])} into "
            f"{tuple(output.shape[1:])}: a seed must keep the shape of its slot"
        )
    if fed._version:
        raise BlueprintError(
            f"blueprint {blueprint.blueprint_id!r} changes its input in place, which would reach the host: "
            "use operations that are not in place"
        )
    (leaving,) = torch.autograd.grad(output, leaf, gradient)
    return float(leaving.norm() / gradient.norm())


def _scale_output(seed: nn.Module, factor: float) -> None:
    """Multiply the weight of the last layer, in which the output, and so the gain, is linear."""
    last = [parameter for parameter in seed.parameters() if parameter.dim() >= 2][-1]
    with torch.no_grad():
        last.mul_(factor)
