"""What a slot went through: its epochs, passes and turns, read from the journal by index as far as they are shown."""

from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import groupby
from math import ceil, isfinite, isnan, nan
from typing import NamedTuple

from msgspec import Struct

from sapflow.sanctum.log import slot_of
from sapflow.telemetry.events import EpochCompleted, GradientSampled, SeedTelemetry, TelemetryEvent
from sapflow.telemetry.questions import LATEST_PLACE
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType

PASS_LIMIT = 4_000  # on a chart, shared by its epochs
LEAST_SHARE = 16  # of an epoch
PARTS = 256  # of an epoch, of which the extremes are kept: about as many as a chart has columns of dots
MOST_KEPT = 2_048  # passes of an epoch, from which on it is parted
READ_AT_ONCE = 600  # samples, of all slots of the env: two or three hundredths of a second
LOOK_COSTS = 10  # samples that could be read while an epoch is looked up
MOMENT_LIMIT = 256  # epochs that are read one and all; of more, only as many as there are columns
TURN_LIMIT = 1_000  # events of all slots of the env; of stages as many as of all else, which an alert may fill
STAGES = (EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED)
INCIDENTS = (
    EventType.SEED_PRUNED, EventType.SEED_FOSSILIZED, EventType.NON_FINITE_FOUND, EventType.ALERT_RAISED,
    EventType.ALERT_CLEARED, EventType.ACTION_TAKEN, EventType.REQUEST_ANSWERED,
)  # fmt: skip


class Pass(NamedTuple):
    """One backward pass: its place on an axis on which epoch n takes the room from n - 1 to n, and its norms."""

    at: float
    entering: float
    leaving: float

    @property
    def ratio(self) -> float:
        """leaving / entering; NaN where one of them is not finite, or nothing entered."""
        if not (isfinite(self.entering) and isfinite(self.leaving)):
            return nan
        return self.leaving / self.entering if self.entering > 0 else nan


class SlotHistory(Struct, frozen=True, kw_only=True):
    """A slot from the end of epoch `first` - 1 to that of epoch `last`, the running one included.

    `epochs` holds the slot at the ends of epochs, oldest first: all of them, or some where there are too many; `passes`
    those that the journal has of them, or where there are too many the extremes among them, and where it is not `whole`
    those that have been read so far; `turns` the events of the slot's seeds, oldest first.
    """

    first: int
    last: int
    epochs: tuple[tuple[int, SeedTelemetry], ...] = ()
    passes: tuple[Pass, ...] = ()
    turns: tuple[TelemetryEvent, ...] = ()
    whole: bool = True


def epochs_of(source: Source, env_id: int, first: int, last: int, columns: int) -> list[TelemetryEvent]:
    """The env's EPOCH_COMPLETED from `first` to `last`, oldest first; of very many, as many as there are columns.

    Raises:
        JournalError: the journal cannot be read.
    """
    count = last - first + 1
    if count <= MOMENT_LIMIT:
        moments = source.moments(env_id, last, count) if count > 0 else []
        return [moment for moment in moments if (moment.epoch or 0) >= first]
    chosen = sorted({first + round(n * (count - 1) / (columns - 1)) for n in range(columns)})
    found = {moment.epoch: moment for epoch in chosen if (moment := source.moment(env_id, epoch)) is not None}
    return list(found.values())


class EpochPasses:
    """What has been read of an epoch's passes: all of them, or of each of equal parts the extremes.

    Attributes:
        newest: the place in the journal of the newest sample that was read.
        gaps: places between which there may be samples that were not read yet.
        closed: whether all are read, and there will be no others.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.gaps: list[tuple[int, int]] = []
        self.closed = False
        self._count = 0
        self._size = 1  # passes of a part
        self._kept: list[Pass] = []  # each at its index
        self._drawn: dict[tuple[int, int, int], tuple[Pass, ...]] = {}

    def add(self, sample: GradientSampled) -> None:
        """Takes the passes of a sample in."""
        norms = zip(sample.pass_index, sample.entering, sample.leaving, strict=False)
        self._kept += [Pass(float(index), entering, leaving) for index, entering, leaving in norms if index >= 0]
        self._count = max([self._count, *(index + 1 for index in sample.pass_index)])
        self._drawn.clear()
        if len(self._kept) > MOST_KEPT:
            self._thin()

    def close(self) -> None:
        """There are no others."""
        self.closed = True
        if len(self._kept) > 2 * PARTS:
            self._thin()

    def _thin(self) -> None:
        while len({each.at // self._size for each in self._kept}) > PARTS:
            self._size *= 2
        parts = groupby(sorted(self._kept), lambda each: each.at // self._size)
        self._kept = [each for _, part in parts for each in extremes(list(part))]

    def drawn(self, epoch: int, expected: int, most: int) -> tuple[Pass, ...]:
        """About `most` of them in their places on the axis, if `expected` passes are to fill the room of the epoch."""
        count = max(expected, self._count)
        wanted = (epoch, count, most)
        if wanted not in self._drawn:
            shown = thinned(sorted(self._kept), most)
            self._drawn = {wanted: tuple(each._replace(at=epoch - 1 + (each.at + 0.5) / count) for each in shown)}
        return self._drawn[wanted]


class SlotReader:
    """Reads the history of one slot: at once its epochs, and its passes a few at a time, the newest epochs first.

    An event that was read is kept; whether there are more to read of what was asked for last, `behind` says.
    """

    def __init__(self, source: Source, env_id: int, slot_id: str) -> None:
        self.behind = False
        self._source = source
        self._env_id = env_id
        self._slot_id = slot_id
        self._passes: dict[int, EpochPasses] = {}
        self._turns: dict[int, TelemetryEvent] = {}  # by their places

    def read(self, first: int, done: int, columns: int, live: bool = True) -> SlotHistory:
        """The slot from epoch `first` to `done`, the last that ended, and where it is `live` to the one that runs.

        Raises:
            JournalError: the journal cannot be read.
        """
        epochs = tuple(self._epochs(first, done, columns))
        passes = self._passes_of(max(first, done - MOMENT_LIMIT + 1), done, dict(epochs), live)
        turns = self._turns_until(done + live)
        last = max(done + live, first)
        return SlotHistory(first=first, last=last, epochs=epochs, passes=passes, turns=turns, whole=not self.behind)

    def _epochs(self, first: int, done: int, columns: int) -> Iterable[tuple[int, SeedTelemetry]]:
        for event in epochs_of(self._source, self._env_id, first, done, columns):
            assert isinstance(event.payload, EpochCompleted)
            for seed in event.payload.seeds:
                if seed.slot_id == self._slot_id:
                    yield event.payload.epoch, seed

    def _turns_until(self, last: int) -> tuple[TelemetryEvent, ...]:
        found = (self._source.places(types, (self._env_id,), None, last, TURN_LIMIT) for types in (STAGES, INCIDENTS))
        places = [place for of_types in found for place in nlargest(TURN_LIMIT, of_types)]
        self._turns.update(self._source.at([place for place in places if place not in self._turns]))
        turns = (self._turns[place] for place in sorted(places) if place in self._turns)
        return tuple(turn for turn in turns if slot_of(turn.payload) == self._slot_id)

    def _passes_of(self, first: int, done: int, epochs: dict[int, SeedTelemetry], live: bool) -> tuple[Pass, ...]:
        """Those of the epochs shown that are known so far, as many as a chart has room for."""
        shown = range(first, done + live + 1)
        self._read_on(shown, done)
        # In powers of two, so that what is drawn of an epoch is thinned anew only now and then.
        share = max(1 << (PASS_LIMIT // max(len(shown), 1)).bit_length() - 1, LEAST_SHARE)
        expected = {epoch: seed.passes + seed.non_finite_passes for epoch, seed in epochs.items()}
        if live:
            expected[done + 1] = expected.get(done, 0)
        known = ((epoch, self._passes[epoch]) for epoch in shown if epoch in self._passes)
        return tuple(each for epoch, it in known for each in it.drawn(epoch, expected.get(epoch, 0), share))

    def _read_on(self, shown: range, done: int) -> None:
        """Takes READ_AT_ONCE samples in, those of the newest epochs first."""
        if len(self._passes) > 2 * MOMENT_LIMIT:
            self._passes = {epoch: self._passes[epoch] for epoch in shown if epoch in self._passes}
        left = READ_AT_ONCE
        for epoch in reversed(shown):
            passes = self._passes.get(epoch)
            if passes is not None and passes.closed:
                continue
            if left <= 0:
                break
            passes = self._passes.setdefault(epoch, EpochPasses())
            left -= LOOK_COSTS + self._take_in(passes, epoch, left)
            if epoch <= done and not passes.gaps:
                passes.close()
        self.behind = any(epoch not in self._passes or self._passes[epoch].gaps for epoch in shown)

    def _take_in(self, passes: EpochPasses, epoch: int, most: int) -> int:
        """Reads at most so many of the epoch's samples, the newest first; returns how many."""
        taken = 0
        gaps = [*passes.gaps, (passes.newest, LATEST_PLACE)]
        while gaps and taken < most:
            (after, before), limit = gaps.pop(), most - taken
            places = self._source.places_between(EventType.GRADIENT_SAMPLED, self._env_id, epoch, after, before, limit)
            found = self._source.at(places)
            if len(places) == limit:
                gaps.append((after, places[-1]))
            for _, event in found:
                if isinstance(event.payload, GradientSampled) and event.payload.slot_id == self._slot_id:
                    passes.add(event.payload)
            passes.newest, passes.gaps = max([passes.newest, *places[:1]]), list(gaps)
            taken += len(places)
        return taken


def thinned(passes: Sequence[Pass], most: int) -> tuple[Pass, ...]:
    """The passes, or of each of equal parts the least, the greatest and the first non-finite ratio: about `most`."""
    size = ceil(2 * len(passes) / most)
    if size <= 2:
        return tuple(passes)
    parts = (passes[begin : begin + size] for begin in range(0, len(passes), size))
    return tuple(each for part in parts for each in extremes(part))


def extremes(passes: Sequence[Pass]) -> Sequence[Pass]:
    """Of more than one the least, the greatest and the first non-finite ratio, in their order."""
    if len(passes) < 2:
        return passes
    finite, lost = [], []
    for each in passes:
        ratio = each.ratio
        if isnan(ratio):
            lost.append(each)
        else:
            finite.append((ratio, each))
    ends = (min(finite)[1], max(finite)[1]) if finite else ()
    return sorted({*ends, *lost[:1]})
