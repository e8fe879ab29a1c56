"""How alerts look: a row each, and one of them in full with its evidence, its actions and what came of them."""

from sapflow.sanctum.alert_history import AlertLife
from sapflow.sanctum.formatting import NOTHING
from sapflow.sanctum.glyphs import BLUISH_GREEN, CONDITION_GLYPHS, CONDITION_STYLES, SKY_BLUE, VERMILLION
from sapflow.sanctum.numbers import clock
from sapflow.sanctum.panels import SEVERITY_STYLES
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.spans import DIM, Line, clean, fit, labelled, line, padded, slot_column, slot_name
from sapflow.telemetry.events import ActionTaken

LABEL_WIDTH = 10
RULE_WIDTH = 17


def alert_row(life: AlertLife, width: int, slot_width: int) -> Line:
    """One alert on one line: whether it is open, where, which rule, at which value, since when, and what was done."""
    alert = life.alert
    mark = (f"{CONDITION_GLYPHS[Condition.ALERTED]} open   ", CONDITION_STYLES[Condition.ALERTED])
    closed = (f"{CONDITION_GLYPHS[Condition.HEALTHY]} closed ", BLUISH_GREEN)
    return fit(
        line(
            mark if life.is_open else closed,
            ("run    " if life.env_id is None else f"env {life.env_id:02} ", "bold"),
            f"{slot_column(alert.slot_id, slot_width)} ",
            (f"{padded(alert.rule, RULE_WIDTH)} ", SEVERITY_STYLES[alert.severity] if life.is_open else ""),
            f"{alert.value:>8.3g}  ",
            (f"{_epochs(life):<9} ", DIM),
            *_outcomes(life),
        ),
        width,
    )


def _epochs(life: AlertLife) -> str:
    """From the epoch in which it began to that in which it was cleared."""
    until = "" if life.is_open else "?" if life.cleared_epoch is None else life.cleared_epoch
    return f"ep {life.alert.since_epoch}–{until}"


def _outcomes(life: AlertLife) -> Line:
    if life.actions:
        return line(*(span for taken in life.actions for span in (*_outcome(taken), ("  ", ""))))
    wanted = ", ".join(clean(action, 40) for action in life.alert.actions)
    return line((f"→ {wanted}", DIM) if wanted else NOTHING)


def _outcome(taken: ActionTaken) -> Line:
    """An action, and whether it was done."""
    glyph, style = (CONDITION_GLYPHS[Condition.HEALTHY], BLUISH_GREEN) if taken.done else ("✕", f"bold {VERMILLION}")
    return line((f"{clean(taken.action, 40)} ", SKY_BLUE), (glyph, style))


def alert_details(life: AlertLife, width: int) -> list[Line]:
    """All that is known of one alert, its texts in full."""
    alert = life.alert
    raised = "" if life.raised_epoch is None else f", raised in epoch {life.raised_epoch} at {clock(life.raised_at)}"
    seed = f"{clean(alert.blueprint_id, 60)} {clean(alert.seed_id, 60)} in {slot_name(alert.slot_id, 80)}"
    rows = [
        ("rule", f"{clean(alert.rule, 100)} ({alert.severity}), at value {alert.value:.6g}", "bold"),
        ("seed", seed, ""),
        ("since", f"epoch {alert.since_epoch}{raised}", ""),
        ("evidence", clean(alert.evidence, 2_000) or "none was given", ""),
        *((_action_label(taken), f"{clean(taken.action, 100)}: {_came_of(taken)}", "") for taken in life.actions),
    ]
    if not life.actions:
        wanted = ", ".join(clean(action, 100) for action in alert.actions)
        rows.append(("action", f"{wanted}: nothing is known to have been done" if wanted else "none asked for", DIM))
    rows.append(("cleared", _ending(life), CONDITION_STYLES[Condition.ALERTED] if life.is_open else ""))
    return [
        drawn for label, text, style in rows for drawn in labelled((f"{label:<{LABEL_WIDTH}}", DIM), text, style, width)
    ]


def _ending(life: AlertLife) -> str:
    """When and why it was cleared."""
    if life.is_open:
        return "still open"
    if life.cleared_epoch is None:
        return "it no longer stands; when that ended is not known"
    return f"in epoch {life.cleared_epoch}: {clean(life.cleared_reason, 500) or 'no reason was given'}"


def _action_label(taken: ActionTaken) -> str:
    return "done" if taken.done else "failed"


def _came_of(taken: ActionTaken) -> str:
    return f"{clean(taken.outcome, 1_000) or 'done'} (epoch {taken.epoch})"
