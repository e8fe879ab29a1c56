"""Germination: build a blueprint for a slot, check that it fits, and bring its gain to 1 where it asks for that."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sapflow.errors import BlueprintError
from sapflow.gradients.norms import norm_of
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.blueprints.fit import build_seed, check_fit, run_checked
from sapflow.growth.randomness import RandomState
from sapflow.growth.slot import SeedSlot

CALIBRATED_WITHIN = 0.01  # of a gain of 1

log = logging.getLogger("sapflow.growth")


def germinate(
    slot: SeedSlot,
    blueprint: Blueprint,
    *,
    exchange: Callable[[], tuple[Tensor, Tensor]],
    random_seed: int,
) -> tuple[nn.Module, float, Tensor]:
    """A seed of `blueprint`, ready to be planted in the slot, and its gain at birth, ‖∂L/∂h‖₂ / ‖∂L/∂seed(h)‖₂.

    With them where torch's random numbers stood when it was built. The gain is NaN, and the seed as it was built, where
    the gradient at the slot is zero or not finite.

    Everything random is drawn from the seed's own stream: the host's generators stand where they stood.

    Args:
        slot: for which it is; it stays as it is.
        blueprint: what to build.
        exchange: gives what the slot hands on for some batch, and the gradient that comes back, (batch, *slot.shape);
            the gain is measured on them, since it depends on both, and of their dtype it is.
        random_seed: of the seed's stream.

    Raises:
        BlueprintError: the module does not fit (see `check_fit`), or is to be calibrated and has no weight.
    """
    with RandomState.seeded(random_seed).replayed():
        activations, gradient = exchange()
        check_fit(blueprint, tuple(activations.shape[1:]), activations.dtype)
        birth = torch.get_rng_state()
        seed = build_seed(blueprint, slot.shape).to(activations)
        gain = _gain(seed, activations, gradient, blueprint)
        if blueprint.calibrated and 0 < gain < math.inf:  # where no gradient comes, there is nothing to scale by
            _scale_output(seed, 1 / gain, blueprint)
            gain = _gain(seed, activations, gradient, blueprint)
            if not abs(gain - 1) <= CALIBRATED_WITHIN:
                log.warning(
                    "blueprint %r is born with gain %.3g in slot %r although it is calibrated: let it end in a layer "
                    "with a weight, or register it with calibrated=False",
                    blueprint.blueprint_id, gain, slot.state.slot_id,
                )  # fmt: skip
    return seed, gain, birth


def _gain(seed: nn.Module, activations: Tensor, gradient: Tensor, blueprint: Blueprint) -> float:
    """‖Jᵀg‖₂ / ‖g‖₂, J the Jacobian of the seed at the activations."""
    leaf = activations.detach().requires_grad_()
    output = run_checked(blueprint, seed, leaf.clone())
    if not output.requires_grad:
        raise BlueprintError(f"blueprint {blueprint.blueprint_id!r} detaches its output: no gradient could reach it")
    (leaving,) = torch.autograd.grad(output, leaf, gradient, allow_unused=True)
    return 0.0 if leaving is None else float(norm_of(leaving) / norm_of(gradient))


def _scale_output(seed: nn.Module, factor: float, blueprint: Blueprint) -> None:
    """Multiply the weight of the last layer, in which the output, and so the gain, is linear."""
    weights = [parameter for parameter in seed.parameters() if parameter.dim() >= 2]
    if not weights:
        raise BlueprintError(
            f"blueprint {blueprint.blueprint_id!r} has no weight to calibrate: register it with calibrated=False"
        )
    with torch.no_grad():
        weights[-1].mul_(factor)
