"""The table `gradients`: a row for each pass of each sample, the seed's stage among its columns."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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

SAID_ONCE = ("env", "slot", "seed", "blueprint", "stage", "epoch", "vanishing", "exploding", "status", EVENT)

STAGE_EVENTS = (
    EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED, EventType.SEED_PRUNED, EventType.SEED_FOSSILIZED
)  # fmt: skip


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
    taken = _Samples()
    for event_id, event in rows.readable((EventType.GRADIENT_SAMPLED,), selection.env, selection.epochs, after):
        payload, env = event.payload, event.env_id
        if not isinstance(payload, GradientSampled) or env is None or not payload.pass_index:
            continue
        if selection.slot not in (None, payload.slot_id):
            continue
        taken.add(event_id, env, timeline.at(event_id, env, payload) if timeline else None, payload)
        if len(taken.passes) >= BATCH_ROWS:
            yield taken.batch(wanted)
            taken = _Samples()
    if taken.passes:
        yield taken.batch(wanted)


class _Samples:
    """What samples say, one row a pass: what a sample says once is repeated for its passes.

    No event is kept: an array has its numbers in a third of the time that a tuple of them takes, kept until the end.
    """

    def __init__(self) -> None:
        self.passes, self._entering, self._leaving = array("q"), array("d"), array("d")
        self._ends = array("i")  # of each sample: how many passes there are up to its last
        self._said: list[tuple[Any, ...]] = []

    def add(self, event_id: int, env: int, stage: str | None, payload: GradientSampled) -> None:
        self.passes.extend(payload.pass_index)
        self._entering.extend(payload.entering)
        self._leaving.extend(payload.leaving)
        self._ends.append(len(self.passes))
        health = payload.health
        self._said.append(
            (env, payload.slot_id, payload.seed_id, payload.blueprint_id, stage, payload.epoch, health.has_vanishing,
             health.has_exploding, health.measurement.value, event_id)
        )  # fmt: skip

    def batch(self, wanted: set[str]) -> pa.RecordBatch:
        """The wanted columns of all samples that were added."""
        ends, passes = _array_of(self._ends, pa.int32()), _array_of(self.passes, pa.int64())
        entering, leaving = (_array_of(norms, pa.float64()) for norms in (self._entering, self._leaving))

        def repeated(place: int, name: str) -> pa.Array:
            values = pa.array([said[place] for said in self._said], WITH_EVENT.field(name).type)
            return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, values))

        columns: dict[str, Callable[[], pa.Array]] = {
            "pass": lambda: passes,
            "ratio": lambda: ratio(entering, leaving),
            "entering": lambda: entering,
            "leaving": lambda: leaving,
            **{name: partial(repeated, place, name) for place, name in enumerate(SAID_ONCE)},
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
