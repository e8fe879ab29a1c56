"""A host with its fossils as a plain module: it loads and runs where Sapflow is not installed."""

import copy
import operator
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Tracer

from sapflow.growth.placing import PlacedSlot
from sapflow.growth.slot import SeedSlot

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def export(host: nn.Module, placed: Mapping[str, PlacedSlot] | None = None) -> nn.Module:
    """A copy of the host in which fossils are parts like others, and nothing is Sapflow's; living seeds stay behind.

    A slot of the host becomes x + fossil(x), or an identity; a module with a fossil before or after it, a Sequential of
    the two (so the keys of its own parameters get a ".0" or ".1"). Values that are not finite are not masked any more.

    Args:
        host: the network itself, without wrappers.
        placed: slots that hang on its modules, by name.
    """
    plain = copy.deepcopy(host)
    for module in plain.modules():
        _drop_hooks(module)
    for name, slot in _slots_in(host).items():
        plain.set_submodule(name, _residual(slot))
    for name, of_host in (placed or {}).items():
        if of_host.slot.fossil is not None:
            module, residual = plain.get_submodule(name), _residual(of_host.slot)
            pair = (residual, module) if of_host.place == "before" else (module, residual)
            plain.set_submodule(name, nn.Sequential(*pair))
    return _without_our_classes(plain) if _is_ours(plain) else plain


def _slots_in(host: nn.Module) -> dict[str, SeedSlot]:
    return {name: module for name, module in host.named_modules() if isinstance(module, SeedSlot)}


def _residual(slot: SeedSlot) -> nn.Module:
    """x + fossil(x); the identity where nothing was fossilised."""
    if slot.fossil is None:
        return nn.Identity()
    fossil = copy.deepcopy(slot.fossil)
    for module in fossil.modules():
        _drop_hooks(module)
    graph = Graph()
    x = graph.placeholder("x")
    branch = graph.call_module("fossil", (x,))
    graph.output(graph.call_function(operator.add, (x, branch)))
    return _without_our_classes(GraphModule({"fossil": fossil}, graph, class_name="Residual"))


class _OurTracer(Tracer):
    """Goes into what Sapflow defines, and leaves everything else as the module that it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(_is_ours(part) for part in m.modules())


def _without_our_classes(module: nn.Module) -> nn.Module:
    if not any(_is_ours(part) for part in module.modules()):
        return module
    return GraphModule(module, _OurTracer().trace(module), class_name=type(module).__name__)


def _drop_hooks(module: nn.Module) -> None:
    for table in HOOKS:
        hooks: dict[int, Any] = getattr(module, table)
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]
            getattr(module, f"{table}_with_kwargs").pop(key, None)


def _is_ours(thing: Any) -> bool:
    return str(thing.__module__).split(".")[0] == "sapflow"
