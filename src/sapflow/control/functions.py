"""Python functions that rules may call: those that a program gives, or that installed packages register by name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import entry_points

from sapflow.errors import InputError
from sapflow.health.rules import ActionKind, Rule
from sapflow.telemetry.events import Alert

ENTRY_POINTS = "sapflow.functions"

Function = Callable[[Alert], object]


def check_functions(rules: Iterable[Rule], functions: Mapping[str, Function]) -> None:
    """Make sure that every function that a rule calls is there.

    Raises:
        InputError: one is not.
    """
    for rule in rules:
        for action in rule.actions:
            if action.kind is ActionKind.CALL and action.argument not in functions:
                known = ", ".join(sorted(functions)) or "there are none"
                raise InputError(
                    f"rule {rule.name!r}: no function is registered as {action.argument!r} (known: {known}): give it "
                    f"as functions=, or by an entry point of the group {ENTRY_POINTS}"
                )


def registered_functions(rules: Iterable[Rule], besides: Collection[str] = ()) -> dict[str, Function]:
    """Of the functions that packages register (entry points `sapflow.functions`), those that these rules call.

    Args:
        rules: that call them.
        besides: names of functions that are there already.

    Raises:
        InputError: one of them cannot be imported.
    """
    calls = {action.argument for rule in rules for action in rule.actions if action.kind is ActionKind.CALL}
    asked = calls.difference(besides)
    found: dict[str, Function] = {}
    for entry_point in entry_points(group=ENTRY_POINTS):
        if entry_point.name in asked:
            try:
                found[entry_point.name] = entry_point.load()
            except Exception as error:  # a stranger's module may fail in any way
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise InputError(
                    f"function {entry_point.name!r} ({entry_point.value}) cannot be used: {reason}"
                ) from error
    return found
