"""`sapflow runs`: what there is; `sapflow show`: one of them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sapflow.cli.console import say
from sapflow.cli.extras import needs
from sapflow.errors import InputError, RunDirectoryError
from sapflow.history.manifest import summary_of
from sapflow.history.summary import RunSummary
from sapflow.history.text import aligned, counted, printable
from sapflow.telemetry import run_directory
from sapflow.telemetry.source import RunState

STATES = {RunState.LIVE: "live", RunState.COMPLETED: "completed", RunState.ENDED: "cut off"}


def runs(root: Path = run_directory.RUNS, /) -> None:
    """List the runs in a directory, the newest last.

    Parameters
    ----------
    root:
        A directory with run directories in it; by default runs/.
    """
    found = run_directory.all_under(root)
    if not found:
        raise RunDirectoryError(f"there is no run under {root}: start one, or name the directory they are in")
    rows = sorted(((run_dir.name, _summary(run_dir)) for run_dir in found), key=lambda row: _began(row[1]))
    _print(
        ("when", "run", "task", "envs>", "state", "grown>", "pruned>", "fossilised>", "alerts>"),
        [_row(name, summary) for name, summary in rows],
    )


def show(run_dir: Path, /) -> None:
    """Show what a run was, what was lost of it, and what became of each of its seeds.

    A seed with an asterisk was planted.

    Parameters
    ----------
    run_dir:
        A run directory.
    """
    with needs("the tables of a run", "history"):
        from sapflow.history.run import open_run

    with open_run(run_dir) as run:
        summary, lives, alerts = run.summary, run.seeds().to_pylist(), run.alerts().to_pylist()
    for name, value in _facts(summary):
        say(f"{name:<12}{printable(value)}")
    if lives:
        _print(("env>", "slot", "seed", "blueprint", "born>", "last ratio>", "fate", "stages"), map(_life, lives))
    if alerts:
        _print(("alert", "severity", "env>", "slot", "seed", "epochs", "value>", "evidence"), map(_alert, alerts))


def _row(name: str, summary: RunSummary | InputError) -> tuple[str, ...]:
    if isinstance(summary, InputError):
        return "", name, "", "", f"unreadable: {summary}", "", "", "", ""
    counts = (summary.grown, summary.pruned, summary.fossilized, summary.alerts)
    state = STATES[summary.state]
    return _when(summary.started), name, summary.task, str(summary.envs), state, *map(str, counts)


def _summary(run_dir: Path) -> RunSummary | InputError:
    try:
        return summary_of(run_dir)
    except InputError as error:
        return error


def _began(summary: RunSummary | InputError) -> float:
    return summary.started.timestamp() if isinstance(summary, RunSummary) and summary.started else 0.0


def _facts(summary: RunSummary) -> list[tuple[str, str]]:
    if summary.started is None:
        unknown = [(name, "not known") for name in ("run", "task", "time", "versions")]
        return [*unknown, ("state", STATES[summary.state]), *_losses(summary), *_notice(summary)]
    epochs = f"{summary.epochs or 'any number of'} epochs" if summary.task else "epochs not known"
    seed = "not known" if summary.rng_seed is None else summary.rng_seed
    return [
        ("run", summary.run_id),
        ("task", f"{summary.task or 'not known'}, {counted(summary.envs, 'env')}, {epochs}, rng seed {seed}"),
        ("state", STATES[summary.state]),
        ("time", f"{_when(summary.started)} to {_when(summary.ended) or 'now'}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or "not known"),
        ("seeds", f"{summary.grown} grown, {summary.pruned} pruned, {summary.fossilized} fossilised"),
        *_losses(summary),
        *_notice(summary),
    ]


def _notice(summary: RunSummary) -> list[tuple[str, str]]:
    return [("notice", summary.notice)] if summary.notice else []


def _losses(summary: RunSummary) -> list[tuple[str, str]]:
    return [
        ("lost", f"{summary.dropped_events} events and {summary.dropped_samples} samples were never written"),
        ("unreadable", ", ".join(f"{count} {cause}" for cause, count in summary.skipped.items()) or "0 events"),
    ]


def _life(life: dict[str, Any]) -> tuple[str, ...]:
    dead = life["died_epoch"] is not None
    return (
        str(life["env"]),
        life["slot"],
        life["seed"],
        life["blueprint"] + "*" * life["planted"],
        "–" if life["born_epoch"] is None else str(life["born_epoch"]),
        f"{life['last_ratio']:.3g}",
        f"pruned {life['died_epoch']}, {life['died_of']}" if dead else life["last_stage"].lower(),
        " → ".join(f"{stage['stage'].lower()} {stage['epoch']}" for stage in life["stages"]),
    )


def _alert(alert: dict[str, Any]) -> tuple[str, ...]:
    cleared = "open" if alert["cleared_epoch"] is None else str(alert["cleared_epoch"])
    return (
        alert["rule"],
        alert["severity"],
        str(alert["env"]),
        alert["slot"],
        alert["seed"],
        f"{alert['raised_epoch']} to {cleared}",
        f"{alert['value']:.3g}",
        alert["evidence"],
    )


def _print(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; what stands under a heading that ends in ">" is a number."""
    right = [heading.endswith(">") for heading in headings]
    for line in aligned([heading.removesuffix(">") for heading in headings], list(rows), right):
        say(line)


def _when(time: datetime | None) -> str:
    """In this machine's time zone, unless that is beyond the calendar."""
    if time is None:
        return ""
    with suppress(OverflowError):
        time = time.astimezone()
    return time.strftime("%Y-%m-%d %H:%M")
