"""How an env's own screen and the events log say what they say; lines of plain spans."""

from collections.abc import Iterable

from sapflow.sanctum.cells import env_foot
from sapflow.sanctum.glyphs import CONDITION_GLYPHS, CONDITION_STYLES, EVENT_MARKS, ORANGE, SKY_BLUE, VERMILLION
from sapflow.sanctum.numbers import clock, compact, humanised, known
from sapflow.sanctum.plots import accuracy_trend, loss_trend
from sapflow.sanctum.schema import Condition, EnvState, LogLine
from sapflow.sanctum.spans import DIM, Line, clean, fit, line, slot_column, spaced
from sapflow.telemetry.vocabulary import Severity
from sapflow.telemetry.wording import describe_alert

_SLOT_WIDTH = 12


def env_line(env: EnvState, width: int) -> Line:
    """The head of an env's own screen: everything that is said of the env as a whole."""
    accuracy = "--" if env.accuracy is None else f"{compact(env.accuracy)} %"
    condition = env.condition
    parts = (
        line((f"env {env.env_id:02} {CONDITION_GLYPHS[condition]}", f"bold {CONDITION_STYLES[condition]}")),
        line(f"acc {accuracy} ", (accuracy_trend(env.accuracy_history, 12).strip(), SKY_BLUE)),
        line(
            f"loss {known(env.train_loss)} / {known(env.validation_loss)} ",
            (loss_trend(env.loss_history, 12).strip(), SKY_BLUE),
        ),
        env_foot(env, 60),
        line((f"{clean(env.host, 30)}  {humanised(env.host_params)} params", DIM)),
        line(
            (f"{env.totals.germinated} germinated  {env.totals.pruned} pruned  {env.totals.fossilized} fossilized", DIM)
        ),
        line((_extra_work(env), DIM)),
    )
    return fit(spaced(parts), width)


def _extra_work(env: EnvState) -> str:
    """What growing costs: shadow forwards for each measured pass, and graphs that were compiled."""
    shadows = f"{env.totals.shadows / env.totals.passes:.2g} shadows a pass" if env.totals.passes else ""
    return shadows + (f"  {env.totals.recompiles} graphs compiled" if env.totals.recompiles else "")


def alert_lines(env: EnvState, width: int) -> list[Line]:
    """The env's open alerts, the newest first."""
    return [
        fit(
            line(
                (f"{'open':<9} ⚑ ", CONDITION_STYLES[Condition.ALERTED]),
                (f"{slot_column(alert.slot_id, _SLOT_WIDTH)} ", "bold"),
                (_joined(describe_alert(alert)), SEVERITY_STYLES[alert.severity]),
            ),
            width,
        )
        for alert in reversed(env.open_alerts)
    ]


SEVERITY_STYLES = {Severity.WARNING: ORANGE, Severity.CRITICAL: f"bold {VERMILLION}"}


def log_lines(log: Iterable[LogLine], width: int) -> list[Line]:
    """Entries of the events log, the newest first."""
    return [log_row(entry, width, _SLOT_WIDTH) for entry in reversed(tuple(log))]


def log_row(entry: LogLine, width: int, slot_width: int) -> Line:
    """One entry: when, what, where, and its words."""
    mark, style = EVENT_MARKS.get(entry.kind, ("·", DIM))
    place = "run   " if entry.env_id is None else f"env {entry.env_id:02}"
    slot = slot_column(entry.slot_id, slot_width) if entry.slot_id else " " * slot_width
    severity = SEVERITY_STYLES[entry.severity] if entry.severity else ""
    return fit(
        line(
            (f"{clock(entry.time)}  ", DIM),
            (f"{mark} ", style),
            (f"{place} ", "bold"),
            f"{slot} ",
            (_joined(entry.parts), severity),
        ),
        width,
    )


def _joined(parts: Iterable[str]) -> str:
    return "  ".join(clean(part, 300) for part in parts if part)
