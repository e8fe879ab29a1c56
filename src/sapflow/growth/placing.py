"""Slots in anybody's model: before or behind a module, by its name; its state_dict keeps the keys that it has."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sapflow.errors import InputError
from sapflow.gradients.parts import is_a
from sapflow.gradients.selection import near_names
from sapflow.growth.slot import SeedSlot

Place = Literal["before", "after"]


class PlacedSlot:
    """A slot that hangs on a module by a hook, and goes with it through modes and copies; no part of the module.

    Args:
        name: of the module, and of the slot.
        module: whose first input or output is h; outputs are a tensor, or a tuple that begins with one.
        place: before the module or after it.
    """

    def __init__(self, name: str, module: nn.Module, place: Place) -> None:
        self.slot = SeedSlot(name, ())
        self.place = place
        self.gives_tuple: bool | None = None  # the module, when it last ran
        self._handle: RemovableHandle = (
            module.register_forward_pre_hook(self._before)
            if place == "before"
            else module.register_forward_hook(self._after)
        )

    def remove(self) -> None:
        """Take the slot off the module."""
        self._handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not isinstance(args[0], Tensor):
            raise InputError(f"slot {self.slot.state.slot_id!r}: the module's first input is no tensor; choose another")
        return (self._through(module, args[0]), *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.gives_tuple = type(output) is tuple
        if isinstance(output, Tensor):
            return self._through(module, output)
        if self.gives_tuple and output and isinstance(output[0], Tensor):
            return (self._through(module, output[0]), *output[1:])
        raise InputError(
            f"slot {self.slot.state.slot_id!r}: the module's output is a {type(output).__name__}, not a tensor or a "
            "tuple that begins with one; choose a module inside it"
        )

    def _through(self, module: nn.Module, h: Tensor) -> Tensor:
        if self.slot.training != module.training:  # nn.Module.train does not reach what is no part of it
            self.slot.train(module.training)
        return self.slot(h)  # type: ignore[no-any-return]


def place_slots(host: nn.Module, where: Mapping[str, Place]) -> dict[str, PlacedSlot]:
    """A slot at each of these modules of `host`, by the module's name, in the order of `where`.

    What is compiled in this process will be compiled anew.

    Raises:
        InputError: there is no such module or place, or the host is sharded; nothing was changed.
    """
    modules = dict(host.named_modules())
    for name, place in where.items():
        if not name or name not in modules:
            raise InputError(f"slots: no module is named {name!r}: near are {near_names(name, modules)}")
        if place not in ("before", "after"):
            raise InputError(f"slots: {name!r}: {place!r} is no place; write 'before' or 'after'")
    if any(is_a("torch.distributed.tensor", "DTensor", parameter) for parameter in host.parameters()):
        raise InputError("slots: the model is sharded (FSDP, tensor parallel), and shadows need it whole; use DDP")
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # what is compiled already does not look for hooks that come later
    return {name: PlacedSlot(name, modules[name], place) for name, place in where.items()}
