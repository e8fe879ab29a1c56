"""A rule in a sentence, for the person who wrote it or is asked to trust it."""

from collections.abc import Iterable

from sapflow.health.conditions import MEASURES, Condition
from sapflow.health.rule import Action, ActionKind, Rule

STATES = {
    Condition.VANISHING: "the gradient vanishes (the policy's flag)",
    Condition.EXPLODING: "the gradient explodes or is not finite (the policy's flag)",
    Condition.NON_FINITE: "gradients are not finite (the policy's flag), or non-finite values were kept from the host",
    Condition.MASKED: "non-finite values were kept from the host",
    Condition.UNMEASURED: "a seed that is trained is not measured",
    Condition.DEAD: "gradient enters and nothing leaves, or no parameter gets any",
}
DOINGS = {
    ActionKind.PRUNE: "prune",
    ActionKind.HOLD: "hold",
    ActionKind.STOP: "stop the env",
    ActionKind.NOTIFY: "notify",
}


def ways(urls: Iterable[str]) -> str:
    """By what notifications go: of each address all that is never a secret."""
    return ", ".join(url.partition("://")[0] if "://" in url else "a variable" for url in urls)


def sentence(rule: Rule) -> str:
    """What the rule does, whole: condition, times, scope, actions and clearing."""
    return (
        f"{rule.severity} {rule.name!r}: when {_condition(rule)} {_lasting(rule.raised_after, rule)}{_scope(rule)}, "
        f"{_actions(rule.actions)}; clears after {_time(rule.cleared_after, rule)}{_clear_level(rule)}"
        + (f", and is not raised again for {_time(rule.cool_down, rule)}" if rule.cool_down else "")
        + "."
    )


def _condition(rule: Rule) -> str:
    measure = MEASURES.get(rule.when)
    if measure is None:
        return STATES[rule.when]
    return f"{measure.words} is {'below' if measure.below else 'above'} {rule.level:g}{measure.unit}"


def _clear_level(rule: Rule) -> str:
    measure = MEASURES.get(rule.when)
    if measure is None or rule.clear_level is None:
        return " without it"
    return f" at {rule.clear_level:g}{measure.unit} or {'more' if measure.below else 'less'}"


def _time(count: int, rule: Rule) -> str:
    unit, plural = ("pass", "es") if rule.by_passes else ("epoch", "s")
    return f"{count} {unit}{plural if count > 1 else ''}"


def _lasting(count: int, rule: Rule) -> str:
    return f"for {_time(count, rule)}" + (" in a row" if count > 1 else "")


def _scope(rule: Rule) -> str:
    parts = [
        f"{what} {_either(names)}"
        for what, names in (("slot", rule.slots), ("blueprint", rule.blueprints), ("stage", rule.stages))
        if names
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _either(words: Iterable[str]) -> str:
    return " or ".join(map(str, words))


def _actions(actions: tuple[Action, ...]) -> str:
    if not actions:
        return "say so"
    return "say so, " + " and ".join(["then " + _doing(actions[0]), *map(_doing, actions[1:])])


def _doing(action: Action) -> str:
    match action.kind:
        case ActionKind.SLOW_DOWN:
            return f"multiply its learning rate by {action.argument}"
        case ActionKind.CALL:
            return f"call {action.argument}"
        case kind:
            return DOINGS[kind]
