"""The page of several runs: groups on one axis, what differs between them, and every run in one table."""

from collections.abc import Mapping, Sequence
from math import inf, isnan
from statistics import median

from sapflow.history import plot
from sapflow.history.plot.comparison import MEASURES, interval
from sapflow.history.plot.palette import shown
from sapflow.history.report.rendering import Page, Section, card, render
from sapflow.history.report.settings import plan_of, rule_sentences, settings_of
from sapflow.history.report.story import Line, Mark
from sapflow.history.report.tables import HtmlTable, cell, number, pairs
from sapflow.history.run import Run
from sapflow.telemetry.source import RunState

Groups = Mapping[str, Sequence[Run]]

MOST_ALERTS = 300
STATES = {RunState.LIVE: "still running", RunState.ENDED: "cut off"}
MORE_OF_ONE = "`sapflow report RUN` says more of a single run."
RUN_COLUMNS = (
    "group", "run", "state", "began", "envs", "epochs", "grown", "pruned", "fossilized", "alerts", "accuracy",
    "missing",
)  # fmt: skip


def comparison_page(groups: Groups) -> str:
    """The report of several runs as HTML.

    Raises:
        JournalError: a run cannot be read.
    """
    runs = [run for members in groups.values() for run in members]
    names = ", ".join(f"{shown(name)} ({len(members)})" for name, members in groups.items())
    charts = [chart for measure in MEASURES if (chart := plot.compare(groups, measure)).data.num_rows]
    charts.append(plot.fates(groups))
    sections = [
        Section("comparison", "On one axis", [card(chart, f"compare{number}") for number, chart in enumerate(charts)]),
        Section("runs", "Every run", tables=[_runs_table(groups)], note=MORE_OF_ONE),
        _alerts(groups),
        _configuration(groups),
    ]
    return render(
        Page(
            title=f"{len(runs)} runs compared · gradient flow",
            subtitle=names,
            lines=_story(groups, charts),
            sections=sections,
        )
    )


def _story(groups: Groups, charts: Sequence[plot.Chart]) -> list[Line]:
    runs = [run for members in groups.values() for run in members]
    tasks = ", ".join(sorted({shown(run.summary.task, 40) or "no task" for run in runs}))
    sizes = ", ".join(f"{shown(name)} with {len(members)}" for name, members in groups.items())
    lines = [Line(Mark.ABOUT, f"{len(runs)} runs of {tasks} in {len(groups)} groups: {sizes}.")]
    unfinished = [run for run in runs if run.summary.state is not RunState.COMPLETED]
    if named := [f"{shown(run.path.name)} ({STATES[run.summary.state]})" for run in unfinished]:
        lines.append(Line(Mark.BAD, f"Not completed: {_first(named)}."))
    if named := [f"{shown(run.path.name)}: {missing}" for run in runs if (missing := _missing(run))]:
        lines.append(Line(Mark.BAD, f"Missing: {_first(named)}."))
    pruned = [_pruned(name, [run.summary.pruned for run in members]) for name, members in groups.items()]
    lines.append(Line(Mark.FACT, f"Pruned seeds a run: {'; '.join(pruned)}."))
    curves = [chart for chart in charts if "epoch" in chart.data.column_names]
    lines += [Line(Mark.FACT, _at_the_end(chart)) for chart in curves]
    return lines + [
        Line(Mark.FACT, _at_its_lowest(chart)) for chart in curves if chart.title == MEASURES["not_flagged"][0]
    ]


def _first(named: Sequence[str], most: int = 4) -> str:
    more = f"; and {len(named) - most} more" if len(named) > most else ""
    return "; ".join(named[:most]) + more


def _pruned(name: str, values: Sequence[int]) -> str:
    return f"{shown(name)} {_estimate(median(values), *interval(values))}"


def _at_the_end(chart: plot.Chart) -> str:
    """The last epoch of each group, with its interval."""
    last = {row["group"]: row for row in chart.data.to_pylist()}
    parts = [
        f"{shown(name)} {_estimate(row['median'], row['low'], row['high'], row['coverage'])} at epoch {row['epoch']}"
        for name, row in last.items()
    ]
    return f"{chart.title}: {'; '.join(parts)}{_apart(list(last.values()))}."


def _at_its_lowest(chart: plot.Chart) -> str:
    """The epoch in which each group's median was smallest."""
    lowest: dict[str, Mapping[str, float]] = {}
    for row in chart.data.to_pylist():
        if row["median"] < lowest.get(row["group"], {"median": inf})["median"]:
            lowest[row["group"]] = row
    parts = [f"{shown(name)} {number(row['median'])} at epoch {row['epoch']}" for name, row in lowest.items()]
    return f"{chart.title}, at the lowest: {'; '.join(parts)}."


def _estimate(middle: float, low: float, high: float, coverage: float) -> str:
    """A median with its interval, where there is one."""
    said = number(float(middle))
    return f"{said} ({number(float(low))} to {number(float(high))}, {100 * coverage:.0f} %)" if coverage > 0 else said


def _apart(rows: Sequence[Mapping[str, float]]) -> str:
    """Of two groups, whether their intervals have nothing in common."""
    if len(rows) != 2 or min(row["values"] for row in rows) < 2:
        return ""
    first, second = rows
    overlap = first["low"] <= second["high"] and second["low"] <= first["high"]
    return "; the intervals overlap" if overlap else "; the intervals do not overlap"


def _missing(run: Run) -> str:
    summary = run.summary
    counts = {
        "events dropped": summary.dropped_events, "samples dropped": summary.dropped_samples,
        "events unreadable": sum(summary.skipped.values()),
    }  # fmt: skip
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _runs_table(groups: Groups) -> HtmlTable:
    rows = []
    for name, members in groups.items():
        for run in members:
            summary = run.summary
            ends = {row["env"]: row["accuracy"] for row in run.epochs(columns=["env", "accuracy"]).to_pylist()}
            accuracies = [value for value in ends.values() if value is not None and not isnan(value)]
            rows.append(
                {
                    "group": name, "run": run.path.name, "state": summary.state.value.lower(), "began": summary.started,
                    "envs": summary.envs, "epochs": summary.epochs or None, "grown": summary.grown,
                    "pruned": summary.pruned, "fossilized": summary.fossilized, "alerts": summary.alerts,
                    "accuracy": f"{median(accuracies):.1f} %" if accuracies else None,
                    "missing": _missing(run) or "nothing",
                }
            )  # fmt: skip
    return pairs("Runs; accuracy: median of the envs at their end", RUN_COLUMNS, rows)


def _alerts(groups: Groups) -> Section:
    columns = ("run", "severity", "rule", "env", "slot", "blueprint", "raised_epoch", "cleared_epoch", "evidence")
    rows = [
        {"run": run.path.name, **alert}
        for members in groups.values()
        for run in members
        for alert in run.alerts(columns=columns[1:]).to_pylist()
    ]
    if not rows:
        return Section("alerts", "Alerts", note="No alert was raised.")
    name = f"Alerts: {len(rows)}" + (f", the first {MOST_ALERTS}" if len(rows) > MOST_ALERTS else "")
    return Section("alerts", "Alerts", tables=[pairs(name, columns, rows[:MOST_ALERTS])])


def _configuration(groups: Groups) -> Section:
    """What all runs have in common, and what each group has of its own."""
    plans = {name: [plan_of(run.path) or {} for run in members] for name, members in groups.items()}
    settings = {name: [settings_of(plan) for plan in members] for name, members in plans.items()}
    keys = list(dict.fromkeys(key for members in settings.values() for each in members for key in each))
    table = HtmlTable(
        "Configuration",
        ("setting", *map(shown, settings)),
        tuple((cell(key), *(_values(key, members) for members in settings.values())) for key in keys),
    )
    versions: dict[tuple[str, str], list[str]] = {}
    for members in groups.values():
        for run in members:
            for program, version in run.summary.versions.items():
                versions.setdefault((program, version), []).append(run.path.name)
    known = [
        {"program": program, "version": version, "runs": f"{len(names)}: {', '.join(names)}"}
        for (program, version), names in versions.items()
    ]
    rules = {tuple(rule_sentences(plan)) for members in plans.values() for plan in members if plan}
    return Section(
        "configuration",
        "Configuration and versions",
        note="The runs had different rules: see the reports of single runs." if len(rules) > 1 else "",
        tables=[
            table,
            pairs("Versions that trained", ("program", "version", "runs"), known),
        ],
        bullets=rules.pop() if len(rules) == 1 else (),
    )


def _values(key: str, members: Sequence[Mapping[str, str]]) -> str:
    """The different values of a group's runs."""
    return ", ".join(dict.fromkeys(cell(each.get(key)) for each in members))
