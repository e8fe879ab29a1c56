"""The page of one run: what happened in words, then the charts, the alerts, the configuration, the versions."""

from collections.abc import Iterator

from sapflow.history import plot
from sapflow.history.plot.chart import Chart
from sapflow.history.plot.palette import shown
from sapflow.history.plot.places import lives_of, most_telling, panels_of
from sapflow.history.report.rendering import Card, Page, Section, card, render
from sapflow.history.report.settings import plan_of, rule_sentences, settings_of
from sapflow.history.report.story import story
from sapflow.history.report.tables import HtmlTable, pairs, table_of
from sapflow.history.run import Run

TROUBLE = ("status", "vanishing", "exploding", "non_finite")
MOST_ALERTS = 300
ALERT_COLUMNS = (
    "severity", "rule", "env", "slot", "seed", "blueprint", "since_epoch", "raised_epoch", "cleared_epoch",
    "cleared_reason", "value", "evidence", "actions",
)  # fmt: skip


def run_page(run: Run) -> str:
    """The report of one run as HTML.

    Raises:
        JournalError: the run cannot be read.
    """
    summary = run.summary
    name, run_id = shown(run.path.name, 80), shown(summary.run_id, 80) or "without a name"
    return render(
        Page(
            title=f"{shown(summary.task, 60) or name} · gradient flow",
            subtitle=name if name == run_id else f"{name} · run {run_id}",
            lines=story(run),
            sections=list(_sections(run)),
        )
    )


def _sections(run: Run) -> Iterator[Section]:
    lives = lives_of(run, TROUBLE)
    panels = panels_of(lives)
    kept = most_telling(panels, lives)
    left_out = len(panels) - len(kept)
    note = (
        f"Of {len(panels)} groups of slots the {len(kept)} with the most trouble are shown; `sapflow query` has all."
        if left_out
        else ""
    )
    places = [((panel.env,), panel.slots) for panel in kept]
    ratios = [plot.ratio(run, envs=envs, slots=slots) for envs, slots in places] or [plot.ratio(run)]
    yield Section("ratio", "Does gradient flow?", _cards("ratio", ratios), note)
    envs = sorted({panel.env for panel in kept}) if left_out else None
    yield _timelines(run, envs)
    yield Section(
        "flow", "How much enters, how much leaves", _cards("flow", [plot.flow(run), plot.distribution(run)])
    )  # fmt: skip
    if any(value is not None for value in run.epochs(columns=["accuracy"])["accuracy"].to_pylist()):
        accuracies = [plot.accuracy(run, envs=envs_, slots=slots) for envs_, slots in places] or [plot.accuracy(run)]
        yield Section("accuracy", "What the seeds are worth", _cards("accuracy", accuracies), note)
    else:
        yield Section("accuracy", "What the seeds are worth", note="No accuracy is known: nobody validated.")
    yield _configuration(run)


def _timelines(run: Run, envs: list[int] | None) -> Section:
    alerts = _alert_table(run)
    charts = [plot.lives(run, envs=envs), *([plot.alerts(run)] if alerts.rows else [])]
    return Section(
        "lives",
        "What grew where, and what raised an alert",
        _cards("lives", charts),
        note="" if alerts.rows else "No alert was raised.",
        tables=[alerts] if alerts.rows else [],
    )


def _cards(key: str, charts: list[Chart]) -> list[Card]:
    return [card(chart, f"{key}{number}") for number, chart in enumerate(charts)]


def _alert_table(run: Run) -> HtmlTable:
    """The alerts with their evidence, the newest of too many left out."""
    table = run.alerts(columns=ALERT_COLUMNS)
    more = table.num_rows - MOST_ALERTS
    name = f"The first {MOST_ALERTS} of {table.num_rows} alerts" if more > 0 else f"Alerts: {table.num_rows}"
    return table_of(table.slice(0, MOST_ALERTS), name)


def _configuration(run: Run) -> Section:
    plan, summary = plan_of(run.path), run.summary
    rows = [{"setting": name, "value": value} for name, value in settings_of(plan or {}).items()]
    if plan is None and summary.rng_seed is not None:
        rows.append({"setting": "rng_seed", "value": str(summary.rng_seed)})
    versions = [{"program": name, "version": version} for name, version in summary.versions.items()]
    return Section(
        "configuration",
        "Configuration and versions",
        note="" if plan is not None else "The run directory holds no plan: its loop was not Sapflow's own.",
        tables=[
            *([pairs("Configuration", ("setting", "value"), rows)] if rows else []),
            pairs("Versions that trained", ("program", "version"), versions),
        ],
        bullets=[] if plan is None else rule_sentences(plan),
    )
