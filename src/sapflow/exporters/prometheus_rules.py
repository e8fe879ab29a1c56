"""Sapflow's rules as alerting rules of Prometheus, which then judges what it has scraped by itself."""

import json
import re
from collections.abc import Iterable, Iterator
from fnmatch import translate

from sapflow.exporters.prometheus import metric_name
from sapflow.exporters.series import SEED_SERIES
from sapflow.health.conditions import MEASURES, Condition
from sapflow.health.rule import Rule
from sapflow.health.rule_words import sentence

STALLED_SECONDS = 600
CUT_OFF_MINUTES = 10
METRIC = {series.name: metric_name(series) for series in SEED_SERIES}
COMPARED = {
    Condition.RATIO_BELOW: "gradient.gain",
    Condition.RATIO_ABOVE: "gradient.gain",
    Condition.PEAK_ABOVE: "gradient.gain_max",
    Condition.LIVENESS_BELOW: "seed.liveness",
    Condition.ACCURACY_BELOW: "seed.accuracy_delta",
}
# A glob's parts that are not literal; "]" in the first place of a set is one of its characters.
WILD = re.compile(r"(\*|\?|\[!?+\]?+[^\]]*\])")
ONE_OR_MANY = {"*": "(?s:.*)", "?": "(?s:.)"}
NOTHING = r"[^\x00-\x{10FFFF}]"  # as RE2 has it; a range that goes backwards matches nothing

PERCENT = frozenset(series.name for series in SEED_SERIES if series.percent)

HEAD = """\
# Alerting rules for Prometheus (2.42 or newer), made by `sapflow rules prometheus`.
#
# sapflow-alerts passes on what Sapflow itself has raised, judged in step with training: it is exact.
# sapflow-rules has Prometheus judge what it has scraped by the same rules, with times instead of epochs.
# sapflow-runs watches the watching.
"""


def rule_file(rules: Iterable[Rule], epoch_seconds: float) -> str:
    """A rule file for Prometheus, as YAML.

    A rule holds after N epochs in a row, of which the first is known when it ends: `for` is N − 1 epochs, and
    `keep_firing_for` the epochs after which it clears. Rules for passes have no times: they hold at once.

    Args:
        rules: that are to be judged by.
        epoch_seconds: how long an epoch takes, roughly.
    """
    rules = tuple(rules)
    groups = (
        ("sapflow-alerts", [_passed_on()]),
        ("sapflow-rules", [_judged(rule, epoch_seconds) for rule in rules]),
        ("sapflow-runs", list(_watchdogs())),
    )
    lines = [HEAD + "groups:"]
    for name, entries in groups:
        if entries:
            lines += [f"  - name: {name}", "    rules:", *("\n".join(entry) for entry in entries)]
    return "\n".join(lines) + "\n"


def expression(rule: Rule) -> str:
    """The condition of a rule in PromQL; a seed that moves to another stage goes on being the same one."""
    return f"max without (stage) ({_condition(rule.when, rule.level or 0.0, _selector(rule))})"


def _condition(condition: Condition, level: float, where: str) -> str:
    def metric(name: str, more: str = "") -> str:
        inner = ",".join(part for part in (where, more) if part)
        return f"{METRIC[name]}{{{inner}}}" if inner else METRIC[name]

    masked = f"{metric('seed.masked_values')} > 0"
    match condition:
        case Condition.VANISHING | Condition.EXPLODING:
            return f"{metric(f'gradient.{condition}')} == 1"
        case Condition.NON_FINITE:
            return f"{metric('gradient.non_finite')} == 1 or {masked}"
        case Condition.MASKED:
            return masked
        case Condition.UNMEASURED:
            trained = 'stage!="GERMINATED"'
            return f"{metric('gradient.measured', trained)} == 0"
        case Condition.DEAD:
            blocked = f"{metric('gradient.leaving_norm')} == 0 and {metric('gradient.entering_norm')} > 0"
            return f"({blocked}) or {metric('seed.liveness')} == 0"
        case _:
            name = COMPARED[condition]
            level = level / 100 if name in PERCENT else level
            return f"{metric(name)} {'<' if MEASURES[condition].below else '>'} {level!r}"


def _selector(rule: Rule) -> str:
    globs = (("slot", rule.slots), ("blueprint", rule.blueprints), ("stage", [stage.value for stage in rule.stages]))
    return ",".join(f"{label}=~{_quoted('|'.join(map(_regex, names)))}" for label, names in globs if names)


def _regex(glob: str) -> str:
    """A glob (fnmatch) as a regular expression of RE2, which Prometheus anchors."""
    literal_and_wild = WILD.split(glob)
    return "".join(_wild(part) if number % 2 else re.escape(part) for number, part in enumerate(literal_and_wild))


def _wild(part: str) -> str:
    if part in ONE_OR_MANY:
        return ONE_OR_MANY[part]
    characters = translate(part).removeprefix("(?s:")[: -len(r")\Z")]  # of which later versions write the Z small
    return {"(?!)": NOTHING, ".": ONE_OR_MANY["?"]}.get(characters, characters)


def _passed_on() -> list[str]:
    return _entry(
        "SapflowAlert",
        'sapflow_alert_open{rule=~".+"} == 1',
        labels={},
        summary="{{ $labels.rule }}: slot {{ $labels.slot }} of env {{ $labels.env }} ({{ $labels.blueprint }})",
        description="Raised by Sapflow in run {{ $labels.run }}; `sapflow sanctum` shows the evidence.",
    )


def _judged(rule: Rule, epoch_seconds: float) -> list[str]:
    lasting = 0 if rule.by_passes else round((rule.raised_after - 1) * epoch_seconds)
    return _entry(
        "Sapflow" + "".join(word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", rule.name)),
        expression(rule),
        labels={"rule": _untemplated(rule.name), "severity": rule.severity.value},
        summary="{{ $labels.slot }} of env {{ $labels.env }} ({{ $labels.blueprint }}): {{ $value }}",
        description=_untemplated(sentence(rule)),
        lasting=lasting,
        keep=0 if rule.by_passes else round(rule.cleared_after * epoch_seconds),
    )


def _watchdogs() -> Iterator[list[str]]:
    age = "time() - sapflow_last_event_timestamp_seconds"
    yield _entry(
        "SapflowRunStalled",
        f'{age} > {STALLED_SECONDS} and on (run) sapflow_run_state{{state="live"}} == 1',
        labels={"severity": "warning"},
        summary="Run {{ $labels.run }} has said nothing for {{ $value | humanizeDuration }}",
        description="Its trainer is there and hangs, or an epoch takes that long.",
    )
    # The endpoint is gone soon after the run: the last scrape has to do.
    yield _entry(
        "SapflowRunCutOff",
        f'last_over_time(sapflow_run_state{{state="cut_off"}}[{CUT_OFF_MINUTES}m]) == 1',
        labels={"severity": "critical"},
        summary="Run {{ $labels.run }} was cut off",
        description=f"Its trainer was stopped or killed; this is told for {CUT_OFF_MINUTES} minutes.",
    )
    yield _entry(
        "SapflowEnvFailed",
        'sapflow_envs{state="failed"} > 0',
        labels={"severity": "critical"},
        summary="{{ $value }} envs of run {{ $labels.run }} have failed",
        description="An error ended them; the others go on.",
    )


def _entry(
    alert: str, expr: str, *, labels: dict[str, str], summary: str, description: str, lasting: int = 0, keep: int = 0
) -> list[str]:
    lines = [f"      - alert: {alert}", f"        expr: {_quoted(expr)}"]
    lines += [f"        for: {lasting}s"] if lasting else []
    lines += [f"        keep_firing_for: {keep}s"] if keep else []
    if labels:
        lines += ["        labels:", *(f"          {key}: {_quoted(value)}" for key, value in labels.items())]
    annotations = {"summary": summary, "description": description}
    return [*lines, "        annotations:", *(f"          {key}: {_quoted(text)}" for key, text in annotations.items())]


def _untemplated(text: str) -> str:
    """Text that may hold anything, such as a rule's name, so that the templates of Prometheus give it as it is."""
    return text.replace("{{", '{{"{{"}}')


def _quoted(text: str) -> str:
    """A string that YAML and PromQL read alike."""
    return json.dumps(text, ensure_ascii=False)
