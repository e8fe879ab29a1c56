"""What a run was asked to do: its plan and its rules, read from a directory that may be a stranger's."""

from pathlib import Path
from typing import Any

import msgspec

from sapflow.errors import InputError
from sapflow.health.rule_file import RuleFile, parse_rules
from sapflow.health.rule_words import sentence, ways
from sapflow.health.rules import DEFAULT_RULES
from sapflow.history.plot.palette import shown
from sapflow.telemetry.run_directory import PLAN_NAME

MAX_PLAN_BYTES = 2**20
LONGEST_SENTENCE = 500


def plan_of(run_dir: Path) -> dict[str, Any] | None:
    """The run's plan; None where there is none (a watched run has none) or it cannot be read."""
    try:
        with (run_dir / PLAN_NAME).open("rb") as file:
            text = file.read(MAX_PLAN_BYTES + 1)
        return None if len(text) > MAX_PLAN_BYTES else msgspec.json.decode(text, type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def settings_of(plan: dict[str, Any]) -> dict[str, str]:
    """The plan as names and values; its rules are said apart, for the text of a rule file may hold secrets."""
    return {
        name: msgspec.json.encode(value).decode() if isinstance(value, list | dict) else str(value)
        for name, value in plan.items()
        if name != "rules" and value not in ("", [], None)
    }


def rule_sentences(plan: dict[str, Any]) -> list[str]:
    """The rules of a run with this plan, in sentences; of addresses for notifications only the schemes."""
    text = plan.get("rules") or ""
    try:
        found = parse_rules(str(text)) if text else RuleFile(rules=DEFAULT_RULES)
    except InputError as error:
        return [shown(f"The rules of this run cannot be read: {error}", LONGEST_SENTENCE)]
    lines = [sentence(rule) for rule in found.rules]
    if found.notify:
        lines.append(f"Notifications go by {ways(found.notify)}.")
    return [shown(line, LONGEST_SENTENCE) for line in lines]
