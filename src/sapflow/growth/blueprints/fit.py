"""Does a blueprint fit a slot? Found out on meta tensors, which have shapes and no memory."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sapflow.errors import BlueprintError
from sapflow.growth.blueprints.definition import Blueprint
from sapflow.growth.randomness import RandomState


def check_fit(blueprint: Blueprint, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Build the blueprint's module on the meta device and run it on three samples in training and on one in evaluation.

    Allocates no memory for it and disturbs no random stream. What cannot run without data (an operator without a meta
    kernel, a look at a value) is let pass: germination runs the module on real activations before it plants it.

    Args:
        blueprint: what is to be built.
        shape: of one sample, as a slot has it.
        dtype: of the activations.

    Raises:
        BlueprintError: it does not fit; the message says why, in one line.
    """
    with ExitStack() as stack:
        stack.enter_context(RandomState.capture().replayed())
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.no_grad())
        try:
            seed = build_seed(blueprint, shape).to(dtype=dtype)
            for batch, training in ((3, True), (1, False)):
                run_checked(blueprint, seed.train(training), torch.empty(batch, *shape, dtype=dtype))
        except BlueprintError as error:
            if not _for_want_of_data(error.__cause__):
                raise


def build_seed(blueprint: Blueprint, shape: tuple[int, ...]) -> nn.Module:
    """A module of this blueprint for a slot of this shape, on the default device.

    Raises:
        BlueprintError: its function raises, gives no module, or one that has nothing to learn with.
    """
    name = f"blueprint {blueprint.blueprint_id!r}"
    try:
        seed = blueprint.build(shape)
    except torch.OutOfMemoryError:  # the blueprint's fault it is not
        raise
    except Exception as error:  # a stranger's function may fail in any way
        raise BlueprintError(f"{name} cannot be built for {shape}: {_line(error)}") from error
    if not isinstance(seed, nn.Module):
        raise BlueprintError(f"{name} gives a {type(seed).__name__}: it must build a module")
    if next(seed.parameters(), None) is None:
        raise BlueprintError(f"{name} has no parameters: there is nothing in it that could learn")
    return seed


def run_checked(blueprint: Blueprint, seed: nn.Module, fed: Tensor) -> Tensor:
    """seed(fed), which must be of the shape and dtype of `fed`, and must not be written on it.

    Raises:
        BlueprintError: it is not so, or the module raises.
    """
    name, shape = f"blueprint {blueprint.blueprint_id!r}", tuple(fed.shape[1:])
    version = fed._version
    try:
        output = seed(fed)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # so may its module
        raise BlueprintError(f"{name} does not run on {shape}: {_line(error)}") from error
    if not isinstance(output, Tensor):
        raise BlueprintError(f"{name} gives a {type(output).__name__}: a seed must give one tensor")
    if output.shape != fed.shape:
        turned = tuple(output.shape[1:]) if output.shape[:1] == fed.shape[:1] else f"a whole of {tuple(output.shape)}"
        raise BlueprintError(f"{name} turns {shape} into {turned}: a seed must keep the shape of its slot")
    autocast = not fed.is_meta and torch.is_autocast_enabled(fed.device.type)  # it recasts nothing on meta tensors
    if output.dtype != fed.dtype and not autocast:
        raise BlueprintError(f"{name} turns {fed.dtype} into {output.dtype}: a seed must keep the dtype of its slot")
    if fed._version != version:
        raise BlueprintError(
            f"{name} changes its input in place, which would reach the host: use operations that are not in place"
        )
    return output


def _for_want_of_data(cause: BaseException | None) -> bool:
    """Whether a module failed only because meta tensors hold nothing; PyTorch's messages then speak of "meta"."""
    return isinstance(cause, NotImplementedError) or (cause is not None and "meta" in str(cause).lower())


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
