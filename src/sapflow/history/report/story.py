"""What happened in a run, in at most ten lines of plain words, the worst first."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cached_property

from sapflow.history.plot.palette import shown
from sapflow.history.plot.places import Life, Row, lives_of, not_measured
from sapflow.history.report.tables import number
from sapflow.history.run import Run
from sapflow.telemetry.source import RunState
from sapflow.telemetry.vocabulary import EventType, Severity

MOST_LINES = 10
MOST_NAMED = 3
NEEDED = (
    "ratio", "status", "reason", "vanishing", "exploding", "non_finite", "masked", "accuracy", "accuracy_delta",
)  # fmt: skip
WORTH_A_WORD = 0.05  # percentage points of accuracy


class Mark(StrEnum):
    """How a line is meant; each has a shape of its own in the page."""

    ABOUT = "about"
    FACT = "fact"
    BAD = "bad"
    WARNING = "warning"
    GOOD = "good"


@dataclass(frozen=True)
class Line:
    """One finding."""

    mark: Mark
    text: str


class Facts:
    """What the findings are made of, each table read once."""

    def __init__(self, run: Run) -> None:
        self.run, self.summary = run, run.summary

    @cached_property
    def lives(self) -> list[Life]:
        """Every life with its epochs."""
        return lives_of(self.run, NEEDED)

    @cached_property
    def seeds(self) -> list[Row]:
        """A row for each life."""
        return list(self.run.seeds().to_pylist())

    @cached_property
    def alerts(self) -> list[Row]:
        """A row for each alert."""
        return list(self.run.alerts().to_pylist())

    @cached_property
    def events(self) -> list[Row]:
        """The events that findings quote."""
        wanted = {EventType.ENV_FAILED, EventType.NON_FINITE_FOUND}
        table = self.run.events(columns=["env", "epoch", "type", "text"])
        return [row for row in table.to_pylist() if row["type"] in wanted]

    @cached_property
    def last_rows(self) -> dict[tuple[int, str, str], Row]:
        """The last epoch of each life."""
        return {(life.env, life.slot, life.seed): life.rows[-1] for life in self.lives}

    @cached_property
    def standing(self) -> list[Row]:
        """The last epoch of each seed that stood in its slot when its env's last epoch ended."""
        died = {(row["env"], row["slot"], row["seed"]) for row in self.seeds if row["died_epoch"] is not None}
        return [
            row
            for key, row in self.last_rows.items()
            if key not in died and row["epoch"] == self.ends[row["env"]]["epoch"]
        ]

    @cached_property
    def ends(self) -> dict[int, Row]:
        """The last epoch of each env, and its accuracy."""
        rows = self.run.epochs(columns=["env", "epoch", "accuracy"]).to_pylist()
        return {row["env"]: row for row in sorted(rows, key=lambda row: row["epoch"])}


def story(run: Run) -> list[Line]:
    """What happened: who it was about, what went wrong, what is open or unknown, what helped."""
    facts = Facts(run)
    found = [line for finding in FINDINGS if (line := finding(facts)) is not None]
    if len(found) > MOST_LINES:
        found = [*found[: MOST_LINES - 1], Line(Mark.WARNING, "There is more: see the alerts and the tables below.")]
    return found


def headline(facts: Facts) -> Line:
    """What run it was, how long, and where it got to."""
    summary = facts.summary
    size = _count(summary.envs, "env") + (f" × {_count(summary.epochs, 'epoch')}" if summary.epochs else "")
    text = f"{shown(summary.task, 60) or 'A run without a beginning'}: {size}, {_state(facts)}"
    if summary.started is not None:
        text += f"; began {summary.started:%Y-%m-%d %H:%M} UTC"
        if summary.ended is not None:
            span = summary.ended - summary.started
            text += f", took {_duration(span)}" if span >= timedelta() else ", ended before that: a clock was set back"
    accuracies = _final_accuracies(facts)
    if accuracies:
        low, high = min(accuracies), max(accuracies)
        text += f"; accuracy at the end {low:.1f} %" + (f" to {high:.1f} %" if high - low >= 0.05 else "")
    return Line(Mark.ABOUT, text + ".")


def _state(facts: Facts) -> str:
    reached = max((row["epoch"] for row in facts.ends.values()), default=0)
    match facts.summary.state:
        case RunState.COMPLETED:
            return "completed" + ("" if facts.summary.epochs else f" after {_count(reached, 'epoch')}")
        case RunState.LIVE:
            return f"still running, at epoch {reached}"
        case _:
            return f"cut off after epoch {reached}: its trainer ended without completing it"


def _final_accuracies(facts: Facts) -> list[float]:
    accuracies = [row["accuracy"] for row in facts.ends.values()]
    return [accuracy for accuracy in accuracies if accuracy is not None and not math.isnan(accuracy)]


def failed(facts: Facts) -> Line | None:
    """Envs that an error stopped."""
    rows = [row for row in facts.events if row["type"] == EventType.ENV_FAILED]
    named = [f"env {row['env']} in epoch {row['epoch']} ({shown(row['text'] or '', 90)})" for row in rows]
    return _line(Mark.BAD, "Failed", named)


def pruned_for(what: str, holds: Callable[[Row], bool]) -> Callable[[Facts], Line | None]:
    """Seeds that were pruned, and of whose last epoch this holds."""

    def finding(facts: Facts) -> Line | None:
        named = []
        for seed in facts.seeds:
            last = facts.last_rows.get((seed["env"], seed["slot"], seed["seed"]))
            if seed["died_epoch"] is None or not holds(last or {}):
                continue
            ratio = "" if last is None or math.isnan(last["ratio"]) else f", ratio {number(last['ratio'])}"
            planted = ", planted," if seed["planted"] else ""
            rule = f", by “{shown(seed['died_of'], 30)}”" if seed["died_of"] else ""
            named.append(f"{_who(seed)}{planted} after epoch {seed['died_epoch']}{rule}{ratio}")
        return _line(Mark.BAD, what, named)

    return finding


def _of_nothing(row: Row) -> bool:
    return not (_broke(row) or row.get("exploding") or row.get("vanishing"))


def _broke(row: Row) -> bool:
    return bool(row and (row["non_finite"] > 0 or row["masked"] > 0))


def not_finite(facts: Facts) -> Line | None:
    """NaN and infinity: where they were found."""
    rows = [row for row in facts.events if row["type"] == EventType.NON_FINITE_FOUND]
    named = [f"env {row['env']} epoch {row['epoch']}: {shown(row['text'] or '', 170)}" for row in rows]
    if not named:
        counts: Counter[str] = Counter()  # the seeds of a slot may be of one blueprint
        for life in facts.lives:
            counts[_who(life.rows[0])] += sum(row["non_finite"] for row in life.rows)
        named = [f"{who} in {_count(passes, 'pass')}" for who, passes in counts.items() if passes]
    return _line(Mark.BAD, "Not finite", named)


def flagged(facts: Facts) -> Line | None:
    """Seeds that stand at the end and are flagged."""
    named = [
        f"{_who(row)} {_how(row)}"
        for row in sorted(facts.standing, key=lambda row: -_distance(row))
        if row["exploding"] or row["vanishing"]
    ]
    return _line(Mark.WARNING, "Flagged at the end", named, f"{len(named)} of {_count(len(facts.standing), 'seed')}")


def _how(row: Row) -> str:
    if row["non_finite"] > 0:
        ratio = "" if math.isnan(row["ratio"]) else f", else ratio {number(row['ratio'])}"
        return f"has {_count(row['non_finite'], 'pass')} that were not finite{ratio}"
    return f"{'explodes' if row['exploding'] else 'vanishes'}, ratio {number(row['ratio'])}"


def _distance(row: Row) -> float:
    ratio = row["ratio"]
    return math.inf if not ratio > 0 or math.isinf(ratio) else abs(math.log2(ratio))


def open_alerts(facts: Facts) -> Line | None:
    """Alerts that nobody and nothing has closed."""
    rows = [row for row in facts.alerts if row["cleared_epoch"] is None]
    rows.sort(key=lambda row: (row["severity"] != Severity.CRITICAL, row["since_epoch"]))
    critical = sum(row["severity"] == Severity.CRITICAL for row in rows)
    named = [f"“{shown(row['rule'], 30)}” {_who(row)} since epoch {row['since_epoch']}" for row in rows]
    total = f"{len(named)}, critical: {critical}"
    return _line(Mark.BAD if critical else Mark.WARNING, "Alerts open at the end", named, total)


def unmeasured(facts: Facts) -> Line | None:
    """Epochs in which a seed trained and its ratio is not known, and why."""
    everything = [row for life in facts.lives for row in life.rows]
    reasons: dict[str, list[Row]] = {}
    for row in everything:
        if not_measured(row):
            reason = f": {shown(row['reason'], 80)}" if row["reason"] else ""
            reasons.setdefault(f"{row['status']}{reason}", []).append(row)
    named = [f"{reason} ({_count(len(rows), 'epoch')}, first {_who(rows[0])})" for reason, rows in reasons.items()]
    missing = sum(map(len, reasons.values()))
    return _line(Mark.WARNING, "Not measured", named, f"{missing} of {_count(len(everything), 'epoch')} of seeds")


def lost(facts: Facts) -> Line | None:
    """What never reached the journal, and what in it could not be read."""
    summary = facts.summary
    skipped = sum(summary.skipped.values())
    causes = ", ".join(f"{shown(cause)} {count}" for cause, count in summary.skipped.items())
    named = [
        *([f"{_count(summary.dropped_events, 'event')} never written"] if summary.dropped_events else []),
        *([f"{_count(summary.dropped_samples, 'sample')} never written"] if summary.dropped_samples else []),
        *([f"{_count(skipped, 'event')} could not be read ({causes})"] if skipped else []),
    ]
    return _line(Mark.BAD, "Missing from this report", named)


def complete(facts: Facts) -> Line | None:
    """That nothing is missing is worth a word, too."""
    if lost(facts) is not None or unmeasured(facts) is not None or not facts.lives:
        return None
    epochs = _count(sum(len(life.rows) for life in facts.lives), "epoch")
    return Line(Mark.GOOD, f"Nothing is missing: all {epochs} of seeds were measured, no event was dropped.")


def helped(facts: Facts) -> Line | None:
    """What the accuracy would lose without a seed, as measured in its last epoch."""
    rows = [row for row in facts.standing if (row["accuracy_delta"] or 0) >= WORTH_A_WORD]
    rows.sort(key=lambda row: -row["accuracy_delta"])
    named = [f"{_who(row)}, without it {row['accuracy_delta']:.1f} points less" for row in rows]
    return _line(Mark.GOOD, "Helped at the end", named)


def cost(facts: Facts) -> Line | None:
    """Seeds that the host would do better without."""
    rows = [row for row in facts.standing if (row["accuracy_delta"] or 0) <= -WORTH_A_WORD]
    rows.sort(key=lambda row: row["accuracy_delta"])
    named = [f"{_who(row)}, without it {-row['accuracy_delta']:.1f} points more" for row in rows]
    return _line(Mark.WARNING, "Cost accuracy at the end", named)


FINDINGS: tuple[Callable[[Facts], Line | None], ...] = (
    headline,
    failed,
    lost,
    not_finite,
    pruned_for("Broke (NaN or infinity) and pruned", _broke),
    pruned_for("Exploded and pruned", lambda row: not _broke(row) and bool(row.get("exploding"))),
    pruned_for("Vanished and pruned", lambda row: not _broke(row) and bool(row.get("vanishing"))),
    pruned_for("Pruned for other reasons", _of_nothing),
    open_alerts,
    flagged,
    unmeasured,
    cost,
    helped,
    complete,
)


def _line(mark: Mark, what: str, named: Sequence[str], total: str = "") -> Line | None:
    if not named:
        return None
    more = len(named) - MOST_NAMED
    total = total or (str(len(named)) if len(named) > 1 else "")
    total = f" ({total})" if total else ""
    rest = f"; and {more} more" if more > 0 else ""
    return Line(mark, f"{what}{total}: {'; '.join(named[:MOST_NAMED])}{rest}.")


def _who(row: Row) -> str:
    blueprint = f" ({shown(row['blueprint'])})" if row["blueprint"] else ""
    return f"env {row['env']} {shown(row['slot'])}{blueprint}"


def _count(number_of: int, what: str) -> str:
    plural = "" if number_of == 1 else "es" if what.endswith("s") else "s"
    return f"{number_of:,} {what}{plural}"


def _duration(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
