"""Which modules of a model are meant: by glob over their names, by type, or by predicate.

A model that was wrapped (DDP, torch.compile, checkpoint_wrapper) keeps the names that it had before.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from sapflow.errors import InputError

# A pattern over dotted names ("layers.*.adapter"; * is one part of a name, ** any number of them), a type of module, or
# a predicate of name and module.
Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]

# Where torch.compile's and checkpoint_wrapper's wrappers keep what they wrap.
COMPILED, CHECKPOINTED = "_orig_mod", "_checkpoint_wrapped_module"


def select(model: nn.Module, what: Selector | Iterable[Selector]) -> dict[str, nn.Module]:
    """The modules of `model` that any of the selectors means, by name, in the model's order; the model itself is "".

    A wrapper and what it wraps are one module with one name, of which either may be meant. torch.compile's wrapper is
    the one that is given, since its hooks run outside of the compiled code; of others, what they wrap. A shared module
    may be meant by any of its names, and is given by the first.

    Raises:
        InputError: a selector means none; the message names what comes near.
    """
    selectors = [what] if isinstance(what, str) or callable(what) else list(what)
    chains = _chains(model)
    chosen: set[str] = set()
    for selector in selectors:
        found = {name for name, chain in chains.items() if any(_means(selector, name, module) for module in chain)}
        if not found:
            raise InputError(_nothing_found(selector, chains))
        chosen |= found
    measured = {name: _to_be_measured(chain) for name, chain in chains.items()}
    first_names: dict[nn.Module, str] = {}
    for name, module in measured.items():
        first_names.setdefault(module, name)
    meant = {measured[name] for name in chosen}
    return {name: module for module, name in first_names.items() if module in meant}


def _chains(model: nn.Module) -> dict[str, list[nn.Module]]:
    """By the name that it has without wrappers: each module, after the wrappers around it, outermost first."""
    plain_names: dict[str, str] = {}
    chains: dict[str, list[nn.Module]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        parent, _, part = name.rpartition(".")
        if not name:
            plain = ""
        elif part == _wrapped_part(modules[parent]):
            plain = plain_names[parent]
        else:
            plain = f"{plain_names[parent]}.{part}".removeprefix(".")
        plain_names[name] = plain
        chains.setdefault(plain, []).append(module)
    return chains


def _wrapped_part(module: nn.Module) -> str | None:
    """The attribute under which a wrapper keeps what it wraps; None if the module is no wrapper."""
    if isinstance(module, DistributedDataParallel):
        return "module"
    return next((part for part in (COMPILED, CHECKPOINTED) if part in module._modules), None)


def _to_be_measured(chain: list[nn.Module]) -> nn.Module:
    return next(module for module in chain if _wrapped_part(module) in (None, COMPILED))


def kind_of(module: nn.Module) -> str:
    """The name of the module's type; a wrapper's is that of what it wraps."""
    return type(unwrapped(module)).__name__


def size_of(module: nn.Module) -> int:
    """How many numbers its parameters have; those of lazy modules have none before their first forward."""
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _means(selector: Selector, name: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return _matches(_parts(selector), _parts(name))
    if isinstance(selector, type):
        return isinstance(module, selector)
    return selector(name, module)


def _parts(dotted: str) -> list[str]:
    return dotted.split(".") if dotted else []


def _matches(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(pattern[1:], name[start:]) for start in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(pattern[1:], name[1:])


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers around it (DDP, torch.compile, checkpoint_wrapper)."""
    part = _wrapped_part(model)
    return unwrapped(model.get_submodule(part)) if part is not None else model


def near_names(name: str, names: Iterable[str]) -> str:
    """Those that come near, in words."""
    known = [other for other in names if other]
    near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return ", ".join(near) or "none, the model has no submodules"


def _nothing_found(selector: Selector, chains: dict[str, list[nn.Module]]) -> str:
    if isinstance(selector, str):
        return f"no module is named {selector!r}: near are {near_names(selector, chains)}"
    if isinstance(selector, type):
        kinds = sorted({type(module).__name__ for chain in chains.values() for module in chain})
        return f"no module is a {selector.__name__}: there are {', '.join(kinds)}"
    return f"the predicate {getattr(selector, '__name__', selector)} holds for no module"
