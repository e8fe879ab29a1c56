"""A rule: on which condition, for how long, of which seeds, and what it asks for."""

import re
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import ClassVar

import msgspec

from sapflow.errors import InputError
from sapflow.health.conditions import ONLY_AT_EPOCH_ENDS, Condition, Finding, check_levels, find
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import SeedStage, Severity

# Rules come from strangers' files, and their words stand in terminals and messages.
LONGEST_NAME = 80
LONGEST_GLOB = 200
LONGEST_TIME = 10**9  # epochs or passes

CLEAR_AFTER_EPOCHS = 2
SLOWED_DOWN = 0.1
FUNCTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,79}", re.ASCII)


class ActionKind(StrEnum):
    """The kinds of actions."""

    PRUNE = "prune"
    HOLD = "hold"
    SLOW_DOWN = "slow_down"
    STOP = "stop"
    NOTIFY = "notify"
    CALL = "call"


ON_THE_SEED = frozenset({ActionKind.PRUNE, ActionKind.HOLD, ActionKind.SLOW_DOWN})
ALLOWED_ACTIONS = "prune, hold, slow_down, slow_down:FACTOR, stop, notify, call:NAME"


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1:
        raise InputError(f"the factor {text[:LONGEST_NAME]!r} of slow_down must be a number between 0 and 1")
    return factor


class Action(str):
    """What a rule asks for, in the words of a rule file: a kind, and with a colon behind it an argument.

    "prune" cuts the seed out, "hold" stops it where it is, "slow_down:0.1" multiplies its learning rate (0.1 where no
    factor is given), "stop" ends the env, "notify" tells people, "call:NAME" calls the Python function that the program
    registered under that name: never one that a file could choose. The alert itself is always said.

    Raises:
        InputError: there is no such action.
    """

    __slots__ = ()

    PRUNE: ClassVar["Action"]
    HOLD: ClassVar["Action"]
    SLOW_DOWN: ClassVar["Action"]
    STOP: ClassVar["Action"]
    NOTIFY: ClassVar["Action"]

    def __new__(cls, text: str) -> "Action":
        """Parse it; a kind's default argument is written out."""
        kind, colon, argument = text.partition(":")
        match kind:
            case ActionKind.SLOW_DOWN:
                factor = _factor(argument) if colon else SLOWED_DOWN
                return super().__new__(cls, f"{kind}:{factor}")
            case ActionKind.CALL if FUNCTION.fullmatch(argument):
                return super().__new__(cls, text)
            case ActionKind.PRUNE | ActionKind.HOLD | ActionKind.STOP | ActionKind.NOTIFY if not colon:
                return super().__new__(cls, text)
        raise InputError(f"there is no action {text[:LONGEST_NAME]!r}: use {ALLOWED_ACTIONS}")

    @property
    def kind(self) -> ActionKind:
        """What is to be done."""
        return ActionKind(self.partition(":")[0])

    @property
    def argument(self) -> str:
        """The factor of "slow_down", the name of "call"; else empty."""
        return self.partition(":")[2]


Action.PRUNE = Action("prune")
Action.HOLD = Action("hold")
Action.SLOW_DOWN = Action("slow_down")
Action.STOP = Action("stop")
Action.NOTIFY = Action("notify")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`when` holds for so long in a row: raised; it is over for `clear_after` in a row: cleared.

    What is not known of an epoch or window neither raises nor clears.

    Attributes:
        name: of the rule; printable.
        when: the condition.
        for_epochs: how many measured epochs in a row; or else
        for_passes: how many passes in a row, judged at counted decision steps.
        clear_after: in the same unit; by default 2 epochs, or `for_passes` passes.
        cool_down: in the same unit: having cleared, it is not raised again for so long.
        severity: of the alert.
        actions: that the alert asks for.
        level: what a condition such as RATIO_BELOW compares with.
        clear_level: what has to be reached for it to be over; by default `level`.
        slots: globs over slot_id; none: all.
        blueprints: globs over blueprint_id; none: all.
        stages: a seed that is in none of these does not meet the condition; none: all.

    Raises:
        InputError: these do not go together.
    """

    name: str
    when: Condition
    for_epochs: int | None = None
    for_passes: int | None = None
    clear_after: int | None = None
    cool_down: int = 0
    severity: Severity = Severity.WARNING
    actions: tuple[Action, ...] = ()
    level: float | None = None
    clear_level: float | None = None
    slots: tuple[str, ...] = ()
    blueprints: tuple[str, ...] = ()
    stages: tuple[SeedStage, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= LONGEST_NAME or not self.name.isprintable():
            raise InputError(f"the name of a rule has 1 to {LONGEST_NAME} printable characters")
        try:
            # Written as plain strings, too, where rules are made in code.
            msgspec.structs.force_setattr(self, "actions", tuple(Action(action) for action in self.actions))
            self._check()
        except InputError as error:
            raise InputError(f"rule {self.name!r}: {error}") from None

    @property
    def by_passes(self) -> bool:
        """Whether it is judged at decision steps, and all its times are in passes; else at epoch ends, in epochs."""
        return self.for_passes is not None

    @property
    def raised_after(self) -> int:
        """For how long the condition has to hold, in epochs or passes."""
        lasting = self.for_epochs if self.for_passes is None else self.for_passes
        assert lasting is not None
        return lasting

    @property
    def cleared_after(self) -> int:
        """For how long the condition has to be over, in epochs or passes."""
        if self.clear_after is not None:
            return self.clear_after
        return CLEAR_AFTER_EPOCHS if self.for_passes is None else self.for_passes

    def concerns(self, seed: SeedTelemetry) -> bool:
        """Whether the rule is about the seed at all, whatever its stage."""
        return _any(self.slots, seed.slot_id) and _any(self.blueprints, seed.blueprint_id)

    def find(self, seed: SeedTelemetry) -> Finding:
        """What the condition comes to in the epoch or window that `seed` reports."""
        if self.stages and seed.stage not in self.stages:
            return Finding.OVER
        return find(self.when, seed, self.level, self.clear_level)

    def _check(self) -> None:
        if (self.for_epochs is None) == (self.for_passes is None):
            raise InputError("say for_epochs or for_passes, one of them")
        for key, least in (("for_epochs", 1), ("for_passes", 1), ("clear_after", 1), ("cool_down", 0)):
            value = getattr(self, key)
            if value is not None and not least <= value <= LONGEST_TIME:
                raise InputError(f"{key} must be a whole number from {least} to {LONGEST_TIME}")
        if self.by_passes and self.when in ONLY_AT_EPOCH_ENDS:
            raise InputError(f"{self.when!s} is known at epoch ends alone: say for_epochs")
        check_levels(self.when, self.level, self.clear_level)
        kinds = [_once(action) for action in self.actions]
        for action in kinds:
            if kinds.count(action) > 1:
                raise InputError(f"the action {action!r} stands there more than once")
        for key in ("slots", "blueprints"):
            for glob in getattr(self, key):
                if not 1 <= len(glob) <= LONGEST_GLOB or not glob.isprintable():
                    raise InputError(f"a glob of {key} has 1 to {LONGEST_GLOB} printable characters")


def _once(action: Action) -> str:
    """Of each of these a rule can ask for one: several functions may be called, but there is one learning rate."""
    return action if action.kind is ActionKind.CALL else action.kind.value


def _any(globs: Iterable[str], name: str) -> bool:
    patterns = tuple(globs)
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
