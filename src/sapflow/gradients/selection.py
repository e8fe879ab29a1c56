"""Which modules of a model are meant: by glob over their names, by type, or by predicate."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from sapflow.errors import InputError

# A pattern over dotted names ("layers.*.adapter"; * is one part of a name, ** any number of them), a type of module, or
# a predicate of name and module.
Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def select(model: nn.Module, what: Selector | Iterable[Selector]) -> dict[str, nn.Module]:
    """The modules of `model` that any of the selectors means, by name, in the model's order; the model itself is "".

    Raises:
        InputError: a selector means none; the message names what comes near.
    """
    selectors = [what] if isinstance(what, str) or callable(what) else list(what)
    modules = dict(model.named_modules())
    chosen: set[str] = set()
    for selector in selectors:
        found = {name for name, module in modules.items() if _means(selector, name, module)}
        if not found:
            raise InputError(_nothing_found(selector, modules))
        chosen |= found
    return {name: module for name, module in modules.items() if name in chosen}


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


def _nothing_found(selector: Selector, modules: dict[str, nn.Module]) -> str:
    if isinstance(selector, str):
        names = [name for name in modules if name]
        near = get_close_matches(selector, names, n=3, cutoff=0.4) or names[:3]
        return f"no module is named {selector!r}: near are {', '.join(near) or 'none, the model has no submodules'}"
    if isinstance(selector, type):
        kinds = sorted({type(module).__name__ for module in modules.values()})
        return f"no module is a {selector.__name__}: there are {', '.join(kinds)}"
    return f"the predicate {getattr(selector, '__name__', selector)} holds for no module"
