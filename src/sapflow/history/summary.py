"""What a run is, in one row; without pyarrow, and without reading more of the journal than its index finds."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from sapflow.history.journal_rows import JournalRows, is_time
from sapflow.telemetry.events import RunStarted, TelemetryEvent
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import EventType

Moment = Annotated[datetime, Meta(tz=True)]


class RunSummary(Struct, frozen=True, kw_only=True):
    """A run as it stands: who it is, how far it came, and what of it is missing.

    `ended` is the time of the last event, None while the run is live; `epochs` is 0 where nobody knows how many there
    will be. `grown`, `pruned`, `fossilized` and `alerts` count over all envs. `dropped_*` never reached the journal;
    `skipped` counts, by cause, the events in it that this version cannot read.
    """

    run_id: str = ""
    task: str = ""
    state: RunState
    started: Moment | None = None
    ended: Moment | None = None
    envs: int = 0
    epochs: int = 0
    rng_seed: int | None = None
    versions: dict[str, str] = {}
    grown: int = 0
    pruned: int = 0
    fossilized: int = 0
    alerts: int = 0
    dropped_events: int = 0
    dropped_samples: int = 0
    skipped: dict[str, int] = {}
    notice: str = ""


def summarize(run_dir: Path, rows: JournalRows, skipped: Counter[str] | None = None) -> RunSummary:
    """The run whose journal that is.

    Raises:
        JournalError: it cannot be read.
    """
    with Source(run_dir) as source:
        status = source.status()
    start = beginning(rows)
    began = start.payload if start is not None and isinstance(start.payload, RunStarted) else None
    return RunSummary(
        run_id="" if start is None else start.run_id,
        task="" if began is None else began.task,
        state=status.state,
        started=None if start is None else moment(start.time),
        ended=None if status.state is RunState.LIVE else moment(status.last_event_time),
        envs=began.envs if began is not None and began.envs else len(rows.envs()),  # 0: nobody knew how many
        epochs=0 if began is None else began.epochs,
        rng_seed=None if began is None else began.rng_seed,
        versions={} if began is None else began.versions,
        grown=rows.count(EventType.SEED_GERMINATED),
        pruned=rows.count(EventType.SEED_PRUNED),
        fossilized=rows.count(EventType.SEED_FOSSILIZED),
        alerts=rows.count(EventType.ALERT_RAISED),
        dropped_events=status.dropped_events,
        dropped_samples=status.dropped_samples,
        skipped=dict(skipped or {}),
        notice=status.notice,
    )


def beginning(rows: JournalRows) -> TelemetryEvent | None:
    """The event that tells which run it is; None while there is none that can be read."""
    return _first(rows, EventType.RUN_STARTED) or next((event for _, event in rows.readable()), None)


def moment(seconds: float | None) -> datetime | None:
    """Unix seconds as a time in UTC; None where there is none that a calendar has."""
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None and is_time(seconds) else None


def _first(rows: JournalRows, event_type: EventType) -> TelemetryEvent | None:
    sql = "SELECT id FROM events WHERE env IS NULL AND type = ? ORDER BY id LIMIT 1"
    for (event_id,) in rows.rows(sql, event_type.value):
        for found, event in rows.readable(None, None, None, event_id - 1):
            return event if found == event_id else None
    return None
