"""Rules as TOML: read from a file that may come from a stranger, checked whole, and written."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sapflow.errors import InputError
from sapflow.health.conditions import Condition
from sapflow.health.rule import Action, Rule
from sapflow.health.rules import check_names, decision_pace
from sapflow.telemetry.vocabulary import SeedStage, Severity

T = TypeVar("T")

MAX_FILE_BYTES = 64 * 2**10
MAX_RULES = 200
MAX_URLS = 20
MAX_URL_LENGTH = 2_000
LONGEST_DECIDE_EVERY = 10**6

VOCABULARIES: dict[str, type[StrEnum]] = {"when": Condition, "severity": Severity, "stages": SeedStage}
TYPES = {"int": "a whole number", "float": "a number", "str": "a string", "array": "a list", "object": "a table"}


class _Notify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [notify]."""

    urls: tuple[str, ...] = ()


class _Rest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in a file but its rules."""

    notify: _Notify = _Notify()
    decide_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class RuleFile:
    """What stands in a rule file.

    Attributes:
        rules: in the order of the file.
        notify: URLs as they stand there: variables in them are not expanded.
        decide_every: passes between two decision steps, counted from the beginning of each epoch; 0 where no rule is
            judged by passes.
    """

    rules: tuple[Rule, ...]
    notify: tuple[str, ...] = ()
    decide_every: int = 0


def load_rules(path: Path) -> RuleFile:
    """The rules in a TOML file.

    Raises:
        InputError: there is no such file, it is no TOML, or something in it cannot be; the message names file and rule.
    """
    return parse_rules(read_rules(path))


def read_rules(path: Path) -> str:
    """The text of a rule file that has been found to be one.

    Raises:
        InputError: as `load_rules`.
    """
    try:
        text = _text(path)
        parse_rules(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return text


def parse_rules(text: str) -> RuleFile:
    """The rules in the text of a rule file.

    Raises:
        InputError: it is no TOML, or something in it cannot be; the message names the rule.
    """
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise InputError("is nested too deeply") from error
    except ValueError as error:  # TOML's own errors, and integers of too many digits
        raise InputError(f"is no TOML: {' '.join(str(error).split())}") from error
    return _rule_file(tables)


def dump_rules(rules: Iterable[Rule]) -> str:
    """The rules as TOML that `load_rules` reads as the same rules; what is as by default is left out."""
    return "\n".join(_dumped(rule) for rule in rules)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise InputError("is no file: name a rule file in TOML")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}): name a rule file in TOML") from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"is larger than {MAX_FILE_BYTES // 2**10} KiB, which no rule file is")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"is no text in UTF-8 (byte {error.start})") from error


def _rule_file(tables: dict[str, Any]) -> RuleFile:
    _check_keys(tables, ("rules", *_Rest.__struct_fields__), "")
    found = tables.pop("rules", None)
    if not isinstance(found, list) or not found or not all(isinstance(table, dict) for table in found):
        raise InputError("has no rules: write each below a line [[rules]]")
    if len(found) > MAX_RULES:
        raise InputError(f"has {len(found)} rules: at most {MAX_RULES}")
    rules = tuple(_rule(table, number) for number, table in enumerate(found, start=1))
    check_names(rules)
    if isinstance(tables.get("notify"), dict):
        _check_keys(tables["notify"], _Notify.__struct_fields__, "notify: ")
    rest = _converted(tables, _Rest, "")
    _check_urls(rest.notify.urls)
    _check_somebody_is_told(rules, rest.notify.urls)
    return RuleFile(rules=rules, notify=rest.notify.urls, decide_every=_decide_every(rules, rest.decide_every))


def _rule(table: dict[str, Any], number: int) -> Rule:
    name = table.get("name")
    where = f"rule {name!r}: " if isinstance(name, str) and name else f"rule {number}: "
    _check_keys(table, Rule.__struct_fields__, where)
    for key in ("name", "when"):
        if key not in table:
            raise InputError(f"{where}{key} is missing")
    for key, vocabulary in VOCABULARIES.items():
        words = table.get(key)
        for word in words if isinstance(words, list) else [words]:
            if isinstance(word, str):
                _check_word(word, [str(member) for member in vocabulary], f"{where}{key}")
    return _converted(table, Rule, where)


def _converted(table: dict[str, Any], kind: type[T], where: str) -> T:
    def action(wanted: type[Any], text: Any) -> Any:
        if wanted is Action and isinstance(text, str):
            try:
                return Action(text)
            except InputError as error:
                raise InputError(f"{where}{error}") from None
        raise ValueError("Expected `str`")

    try:
        return msgspec.convert(table, kind, dec_hook=action)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}{_plain(str(error))}") from None


def _plain(message: str) -> str:
    """The words of msgspec, "Expected `int | null`, got `str` - at `$.level`", in ours."""
    what, _, place = message.partition(" - at ")
    expected, _, got = what.removeprefix("Expected ").replace("`", "").partition(", got ")
    wanted = " or ".join(TYPES.get(word, word) for word in expected.split(" | ") if word != "null")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    return f"{key} must be {wanted}" + (f", not {TYPES.get(got, got)}" if got else "")


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        _check_word(key, list(known), f"{where}key")


def _check_word(word: str, known: list[str], where: str) -> None:
    """Make sure that a word is known.

    Raises:
        InputError: it is not; the message has the near misses, or else all there are.
    """
    if word in known:
        return
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in get_close_matches(word[:80].lower(), by_lower)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(known)}"
    raise InputError(f"{where} {word[:80]!r} is unknown: {hint}")


def _check_urls(urls: tuple[str, ...]) -> None:
    if len(urls) > MAX_URLS:
        raise InputError(f"notify: has {len(urls)} urls: at most {MAX_URLS}")
    for number, url in enumerate(urls, start=1):
        if not url.isprintable() or not 1 <= len(url) <= MAX_URL_LENGTH:
            raise InputError(f"notify: url {number} must have 1 to {MAX_URL_LENGTH} printable characters")


def _check_somebody_is_told(rules: tuple[Rule, ...], urls: tuple[str, ...]) -> None:
    asking = [rule.name for rule in rules if Action.NOTIFY in rule.actions]
    if asking and not urls:
        raise InputError(f'rule {asking[0]!r}: notify tells nobody: add urls = ["..."] below a line [notify]')


def _decide_every(rules: tuple[Rule, ...], asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= LONGEST_DECIDE_EVERY:
        raise InputError(f"decide_every must be a whole number from 1 to {LONGEST_DECIDE_EVERY}")
    if asked is not None and not any(rule.by_passes for rule in rules):
        raise InputError("decide_every is for rules with for_passes, and there is none: remove it")
    return decision_pace(rules, asked)


def _dumped(rule: Rule) -> str:
    lines = ["[[rules]]"]
    for field in msgspec.structs.fields(Rule):
        value = getattr(rule, field.name)
        if value != field.default:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    match value:
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            return json.dumps(str(value), ensure_ascii=False)  # of what is printable, the same string in TOML
        case _:
            return repr(value)
