"""The tables `epochs`, a row for each slot and completed epoch, and `events`, a row for each event."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import nan

from sapflow.errors import UnreadableEventError
from sapflow.history.arrow import pa
from sapflow.history.columns import batch_of, in_batches, microseconds
from sapflow.history.journal_rows import MAX_INT32, MAX_INT64, JournalRows, Row, is_time
from sapflow.history.schemas import EPOCHS, EVENTS
from sapflow.history.selection import Selection
from sapflow.telemetry.events import EpochCompleted, Payload, SeedTelemetry, TelemetryEvent
from sapflow.telemetry.vocabulary import EventType, Measurement
from sapflow.telemetry.wording import describe

_Slot = tuple[TelemetryEvent, EpochCompleted, SeedTelemetry]


def epoch_batches(rows: JournalRows, selection: Selection, wanted: set[str]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the epochs that the journal's index finds for the selection."""
    for slots in in_batches(_slots(rows, selection)):
        yield _epoch_batch(slots, wanted)


def _slots(rows: JournalRows, selection: Selection) -> Iterator[_Slot]:
    for _, event in rows.readable((EventType.EPOCH_COMPLETED,), selection.env, selection.epochs):
        payload = event.payload
        if isinstance(payload, EpochCompleted) and event.env_id is not None:
            for seed in payload.seeds:
                if selection.slot in (None, seed.slot_id):
                    yield event, payload, seed


def _epoch_batch(slots: Sequence[_Slot], wanted: set[str]) -> pa.RecordBatch:
    events = [event for event, _, _ in slots]
    payloads = [payload for _, payload, _ in slots]
    seeds = [seed for _, _, seed in slots]
    columns = {
        "env": lambda: [event.env_id for event in events],
        "epoch": lambda: [payload.epoch for payload in payloads],
        "slot": lambda: [seed.slot_id for seed in seeds],
        "seed": lambda: [seed.seed_id for seed in seeds],
        "blueprint": lambda: [seed.blueprint_id for seed in seeds],
        "stage": lambda: [seed.stage.value for seed in seeds],
        "alpha": lambda: [seed.alpha for seed in seeds],
        "params": lambda: [seed.seed_params for seed in seeds],
        "ratio": lambda: [measured(seed, seed.grad_ratio) for seed in seeds],
        "min_ratio": lambda: [measured(seed, seed.min_ratio) for seed in seeds],
        "max_ratio": lambda: [measured(seed, seed.max_ratio) for seed in seeds],
        "last_ratio": lambda: [measured(seed, seed.last_ratio) for seed in seeds],
        "entering": lambda: [seed.entering_norm for seed in seeds],
        "leaving": lambda: [seed.leaving_norm for seed in seeds],
        "passes": lambda: [seed.passes for seed in seeds],
        "non_finite": lambda: [seed.non_finite_passes for seed in seeds],
        "vanishing": lambda: [seed.has_vanishing for seed in seeds],
        "exploding": lambda: [seed.has_exploding for seed in seeds],
        "status": lambda: [seed.measurement.value for seed in seeds],
        "reason": lambda: [seed.measurement_reason for seed in seeds],
        "fault": lambda: [None if seed.fault is None else seed.fault.value for seed in seeds],
        "evidence": lambda: [seed.evidence for seed in seeds],
        "accuracy_delta": lambda: [seed.accuracy_delta for seed in seeds],
        "masked": lambda: [seed.masked_values for seed in seeds],
        "paused": lambda: [seed.paused for seed in seeds],
        "histogram": lambda: [seed.ratio_histogram for seed in seeds],
        "accuracy": lambda: [payload.accuracy for payload in payloads],
        "train_loss": lambda: [payload.train_loss for payload in payloads],
        "validation_loss": lambda: [payload.validation_loss for payload in payloads],
        "time": lambda: [microseconds(event.time) for event in events],
    }
    return batch_of(EPOCHS, columns, wanted)


def measured(seed: SeedTelemetry, value: float) -> float:
    """A ratio of the seed; NaN where none was measured, which the event writes as 0.0."""
    return value if seed.measurement is Measurement.MEASURED else nan


def event_batches(rows: JournalRows, selection: Selection, wanted: set[str]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the events that the journal's index finds for the selection.

    Events that cannot be read are rows, too: with what the journal's own columns say, and no text.
    """
    for page in rows.pages(None, selection.env, selection.epochs):
        yield event_batch(page, payloads_of(page) if wanted & {"slot", "text"} else [], wanted)


def payloads_of(page: Sequence[Row], skipped: Counter[str] | None = None) -> list[Payload | None]:
    """What these rows say, None of those that cannot be read, which are counted by cause where that is asked for."""
    payloads: list[Payload | None] = []
    for row in page:
        try:
            payloads.append(row.event().payload)
        except UnreadableEventError as error:
            payloads.append(None)
            if skipped is not None:
                skipped[error.cause] += 1
    return payloads


def event_batch(page: Sequence[Row], payloads: Sequence[Payload | None], wanted: set[str]) -> pa.RecordBatch:
    """The wanted columns of these rows, which say that."""
    columns = {
        "id": lambda: [row.id for row in page],
        "env": lambda: [_integer(row.env, MAX_INT32) for row in page],
        "sequence": lambda: [_integer(row.sequence) for row in page],
        "epoch": lambda: [_integer(row.epoch, MAX_INT32) for row in page],
        "type": lambda: [_text(row.type) for row in page],
        "time": lambda: [_time(row.time) for row in page],
        "slot": lambda: [None if payload is None else slot_of(payload) for payload in payloads],
        "text": lambda: [None if payload is None else line(payload) for payload in payloads],
    }
    return batch_of(EVENTS, columns, wanted)


def slot_of(payload: Payload) -> str | None:
    """Of the seed that the payload is about, None where it is about none."""
    about = getattr(payload, "alert", payload)
    return getattr(about, "slot_id", None)


def line(payload: Payload) -> str:
    """What the events log says of it; "" of samples and epochs."""
    return " · ".join(part for part in describe(payload) if part)


def _integer(value: object, highest: int = MAX_INT64) -> int | None:
    """SQLite's columns take anything."""
    return value if isinstance(value, int) and -highest - 1 <= value <= highest else None


def _text(value: object) -> str:
    """Bytes that are no text are written as in Python."""
    return str(value).encode(errors="backslashreplace").decode()


def _time(value: object) -> int | None:
    return microseconds(value) if isinstance(value, float) and is_time(value) else None
