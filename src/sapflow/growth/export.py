"""A host with its fossils as a plain module: it loads and runs where Sapflow is not installed."""

import copy
import operator
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Tracer

from sapflow.errors import InputError
from sapflow.growth.placing import PlacedSlot
from sapflow.growth.slot import SeedSlot

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def export(host: nn.Module, placed: Mapping[str, PlacedSlot] | None = None) -> nn.Module:
    """A copy of the host in which fossils are parts like others, and nothing is Sapflow's; living seeds stay behind.

    A slot of the host becomes x + fossil(x), or an identity. A module with a fossil before or after it gets a part with
    the name "fossil", and a hook that adds what that gives to the module's first input or output; an nn.Sequential, by
    which a further part would be run, becomes a Sequential of the two (its parameters' keys get a ".0" or ".1"). Values
    that are not finite are not masked any more.

    Args:
        host: the network itself, without wrappers.
        placed: slots that hang on its modules, by name.

    Raises:
        InputError: a fossil was loaded, and its module has not run since.
    """
    plain = copy.deepcopy(host)
    for module in plain.modules():
        _drop_hooks(module)
    for name, slot in _slots_in(host).items():
        plain.set_submodule(name, _residual(slot))
    # What is deeper comes first: a Sequential that becomes a pair gives its parts other names.
    for name, of_host in sorted((placed or {}).items(), key=lambda item: -item[0].count(".")):
        module, before = plain.get_submodule(name), of_host.place == "before"
        if of_host.slot.fossil is None:
            continue
        if isinstance(module, nn.Sequential):
            residual = _residual(of_host.slot)
            pair = nn.Sequential(*((residual, module) if before else (module, residual)))
            for alias in [alias for alias, part in plain.named_modules(remove_duplicate=False) if part is module]:
                plain.set_submodule(alias, pair)
        elif before:
            module.register_forward_pre_hook(_grafted(module, of_host))
        else:
            module.register_forward_hook(_grafted(module, of_host))
    return _without_our_classes(plain) if _is_ours(plain) else plain


def _slots_in(host: nn.Module) -> dict[str, SeedSlot]:
    return {name: module for name, module in host.named_modules() if isinstance(module, SeedSlot)}


def _residual(slot: SeedSlot) -> nn.Module:
    """x + fossil(x); the identity where nothing was fossilised."""
    if slot.fossil is None:
        return nn.Identity()
    graph = Graph()
    x = graph.placeholder("x")
    branch = graph.call_module("fossil", (x,))
    graph.output(graph.call_function(operator.add, (x, branch)))
    return _without_our_classes(GraphModule({"fossil": _plain_fossil(slot)}, graph, class_name="Residual"))


def _plain_fossil(slot: SeedSlot) -> nn.Module:
    fossil = copy.deepcopy(slot.fossil)
    assert fossil is not None
    for module in fossil.modules():
        _drop_hooks(module)
    return fossil


def _grafted(module: nn.Module, placed: PlacedSlot) -> nn.Module:
    """A hook for the module, of PyTorch's own classes, around the fossil of its slot, which becomes a part of it."""
    graph = Graph()
    graph.placeholder("module")
    given, in_tuple = graph.placeholder("args"), True
    if placed.place == "after":
        if placed.gives_tuple is None:
            raise InputError(f"slot {placed.slot.state.slot_id!r}: let the model run once before it is exported")
        given, in_tuple = graph.placeholder("output"), placed.gives_tuple
    x = graph.call_function(operator.getitem, (given, 0)) if in_tuple else given
    grown = graph.call_function(operator.add, (x, graph.call_module("fossil", (x,))))
    rest = graph.call_function(operator.getitem, (given, slice(1, None))) if in_tuple else None
    graph.output(grown if rest is None else graph.call_function(operator.add, ((grown,), rest)))
    hook = _without_our_classes(GraphModule({"fossil": _plain_fossil(placed.slot)}, graph, class_name="Grafted"))
    module.add_module("fossil", hook.get_submodule("fossil"))
    return hook


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
