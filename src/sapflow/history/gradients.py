"""The table `gradients`: a row for each pass of each sample, the seed's stage among its columns."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sapflow.history.arrow import pa, pc
from sapflow.history.columns import BATCH_ROWS, batch_of
from sapflow.history.journal_rows import JournalRows
from sapflow.history.schemas import GRADIENTS
from sapflow.history.selection import Selection
from sapflow.telemetry.events import (
    GradientSampled,
    SeedFossilized,
    SeedGerminated,
    SeedPayload,
    SeedPruned,
    SeedStageChanged,
)
from sapflow.telemetry.vocabulary import EventType, SeedStage

EVENT: str = "event"  # the id of the event that a row is from; kept in Parquet, no part of the public table
WITH_EVENT: pa.Schema = GRADIENTS.append(pa.field(EVENT, pa.int64()))

STAGE_EVENTS = (
    EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED, EventType.SEED_PRUNED, EventType.SEED_FOSSILIZED
)  # fmt: skip


class _Sample(NamedTuple):
    """One event of the table, whose passes are rows."""

    event: int
    env: int
    stage: str | None
    payload: GradientSampled


class StageTimeline:
    """In which stage a seed stood when an event was written, by what the journal says of stages."""

    def __init__(self, rows: JournalRows, env: int | None) -> None:
        self._changes: dict[tuple[int | None, str, str], tuple[list[int], list[str]]] = {}
        for event_id, event in rows.readable(STAGE_EVENTS, env):
            payload = event.payload
            assert isinstance(payload, SeedPayload)
            ids, stages = self._changes.setdefault((event.env_id, payload.slot_id, payload.seed_id), ([], []))
            ids.append(event_id)
            stages.append(stage_after(payload).value)

    def at(self, event_id: int, env: int | None, payload: SeedPayload) -> str | None:
        """None where nothing was said of the seed's stage by then."""
        ids, stages = self._changes.get((env, payload.slot_id, payload.seed_id), ((), ()))
        position = bisect_right(ids, event_id)
        return stages[position - 1] if position else None


def stage_after(payload: SeedPayload) -> SeedStage:
    """Where a seed stands after one of the STAGE_EVENTS."""
    match payload:
        case SeedGerminated():
            return SeedStage.GERMINATED
        case SeedStageChanged():
            return payload.to_stage
        case SeedPruned():
            return SeedStage.PRUNED
        case SeedFossilized():
            return SeedStage.FOSSILIZED
    raise AssertionError(payload)


def gradient_batches(
    rows: JournalRows, selection: Selection, wanted: set[str], after: int = 0
) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the samples that the journal's index finds for the selection, some 65,536 rows a batch."""
    timeline = StageTimeline(rows, selection.env) if "stage" in wanted else None
    samples: list[_Sample] = []
    passes = 0
    for event_id, event in rows.readable((EventType.GRADIENT_SAMPLED,), selection.env, selection.epochs, after):
        payload, env = event.payload, event.env_id
        if not isinstance(payload, GradientSampled) or env is None or not payload.pass_index:
            continue
        if selection.slot not in (None, payload.slot_id):
            continue
        samples.append(_Sample(event_id, env, timeline.at(event_id, env, payload) if timeline else None, payload))
        passes += len(payload.pass_index)
        if passes >= BATCH_ROWS:
            yield _batch(samples, wanted)
            samples, passes = [], 0
    if samples:
        yield _batch(samples, wanted)


def _batch(samples: Sequence[_Sample], wanted: set[str]) -> pa.RecordBatch:
    """One row a pass: what a sample says once is repeated for its passes."""
    payloads = [sample.payload for sample in samples]
    whose = array("i")
    for position, payload in enumerate(payloads):
        whose.extend([position] * len(payload.pass_index))
    repeat = _array_of(whose, pa.int32())
    entering = _array_of(array("d", (x for payload in payloads for x in payload.entering)), pa.float64())
    leaving = _array_of(array("d", (x for payload in payloads for x in payload.leaving)), pa.float64())

    def repeated(values: list[object], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(repeat)

    columns = {
        "env": lambda: repeated([sample.env for sample in samples], pa.int32()),
        "slot": lambda: repeated([payload.slot_id for payload in payloads], pa.string()),
        "seed": lambda: repeated([payload.seed_id for payload in payloads], pa.string()),
        "blueprint": lambda: repeated([payload.blueprint_id for payload in payloads], pa.string()),
        "stage": lambda: repeated([sample.stage for sample in samples], pa.string()),
        "epoch": lambda: repeated([payload.epoch for payload in payloads], pa.int32()),
        "pass": lambda: _array_of(array("q", (x for payload in payloads for x in payload.pass_index)), pa.int64()),
        "ratio": lambda: ratio(entering, leaving),
        "entering": lambda: entering,
        "leaving": lambda: leaving,
        "vanishing": lambda: repeated([payload.health.has_vanishing for payload in payloads], pa.bool_()),
        "exploding": lambda: repeated([payload.health.has_exploding for payload in payloads], pa.bool_()),
        "status": lambda: repeated([payload.health.measurement.value for payload in payloads], pa.string()),
        EVENT: lambda: repeated([sample.event for sample in samples], pa.int64()),
    }
    return batch_of(WITH_EVENT, columns, wanted)


def ratio(entering: pa.Array, leaving: pa.Array) -> pa.Array:
    """leaving / entering, element by element; NaN where that is not finite, or nothing entered."""
    quotient = pc.divide(leaving, entering)
    known = pc.and_(pc.is_finite(quotient), pc.and_(pc.is_finite(entering), pc.greater(entering, 0.0)))
    return pc.if_else(known, quotient, float("nan"))


def _array_of(values: "array[Any]", kind: pa.DataType) -> pa.Array:
    """The numbers as Arrow, without copying them."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
