"""What a slot went through: its epochs, passes and turns, read from the journal by index as far as they are shown."""

from collections.abc import Iterable, Sequence
from math import ceil, isfinite, isnan, nan
from typing import NamedTuple

from msgspec import Struct

from sapflow.sanctum.log import slot_of
from sapflow.telemetry.events import EpochCompleted, GradientSampled, SeedTelemetry, TelemetryEvent
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType

PASS_LIMIT = 4_000  # on a chart, shared by its epochs
LEAST_SHARE = 16  # of an epoch
SAMPLE_LIMIT = 2_000  # events of an epoch, all slots of the env
MOMENT_LIMIT = 256  # epochs that are read one and all; of more, only as many as there are columns
TURN_LIMIT = 1_000
TURNS = (
    EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED, EventType.SEED_PRUNED, EventType.SEED_FOSSILIZED,
    EventType.NON_FINITE_FOUND, EventType.ALERT_RAISED, EventType.ALERT_CLEARED, EventType.ACTION_TAKEN,
    EventType.REQUEST_ANSWERED,
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
    those that the journal has of them, or where there are too many the extremes among them; `turns` the events of the
    slot's seeds, oldest first.
    """

    first: int
    last: int
    epochs: tuple[tuple[int, SeedTelemetry], ...] = ()
    passes: tuple[Pass, ...] = ()
    turns: tuple[TelemetryEvent, ...] = ()


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


class SlotReader:
    """Reads the history of one slot, and what was read of finished epochs only once."""

    def __init__(self, source: Source, env_id: int, slot_id: str) -> None:
        self._source = source
        self._env_id = env_id
        self._slot_id = slot_id
        self._passes: dict[tuple[int, int], tuple[Pass, ...]] = {}  # by epoch, and how many of it were to be kept

    def read(self, first: int, done: int, columns: int, live: bool = True) -> SlotHistory:
        """The slot from epoch `first` to `done`, the last that ended, and where it is `live` to the one that runs.

        Raises:
            JournalError: the journal cannot be read.
        """
        epochs = tuple(self._epochs(first, done, columns))
        passes = self._passes_of(first, done, dict(epochs), live)
        turns = self._source.events(TURNS, self._env_id, last_epoch=done + live, limit=TURN_LIMIT)
        mine = tuple(turn for turn in turns if slot_of(turn.payload) == self._slot_id)
        return SlotHistory(first=first, last=max(done + live, first), epochs=epochs, passes=passes, turns=mine)

    def _epochs(self, first: int, done: int, columns: int) -> Iterable[tuple[int, SeedTelemetry]]:
        for event in epochs_of(self._source, self._env_id, first, done, columns):
            assert isinstance(event.payload, EpochCompleted)
            for seed in event.payload.seeds:
                if seed.slot_id == self._slot_id:
                    yield event.payload.epoch, seed

    def _passes_of(self, first: int, done: int, epochs: dict[int, SeedTelemetry], live: bool) -> tuple[Pass, ...]:
        """Of the epochs shown, those that are too far back left out, as many as a chart has room for."""
        first = max(first, done - MOMENT_LIMIT + 1)
        share = max(PASS_LIMIT // max(done - first + 1 + live, 1), LEAST_SHARE)
        expected = {epoch: seed.passes + seed.non_finite_passes for epoch, seed in epochs.items()}
        kept: dict[tuple[int, int], tuple[Pass, ...]] = {}
        for epoch in range(first, done + 1):
            known = self._passes.get((epoch, share))
            kept[epoch, share] = self._read_passes(epoch, expected.get(epoch, 0), share) if known is None else known
        self._passes = kept
        running = self._read_passes(done + 1, expected.get(done, 0), share) if live else ()
        return tuple(each for passes in kept.values() for each in passes) + running

    def _read_passes(self, epoch: int, expected: int, share: int) -> tuple[Pass, ...]:
        events = self._source.events([EventType.GRADIENT_SAMPLED], self._env_id, epoch, epoch, limit=SAMPLE_LIMIT)
        norms: dict[int, tuple[float, float]] = {}
        for event in events:
            sample = event.payload
            if isinstance(sample, GradientSampled) and sample.slot_id == self._slot_id:
                norms.update(zip(sample.pass_index, zip(sample.entering, sample.leaving, strict=False), strict=False))
        count = max([expected, *(index + 1 for index in norms)])
        passes = [
            Pass(epoch - 1 + (index + 0.5) / count, entering, leaving)
            for index, (entering, leaving) in sorted(norms.items())
            if index >= 0
        ]
        return thinned(passes, share)


def thinned(passes: Sequence[Pass], most: int) -> tuple[Pass, ...]:
    """The passes, or of each of equal parts the least, the greatest and the first non-finite ratio: about `most`."""
    size = ceil(2 * len(passes) / most)
    if size <= 2:
        return tuple(passes)
    kept: list[Pass] = []
    for begin in range(0, len(passes), size):
        part = passes[begin : begin + size]
        finite = [each for each in part if not isnan(each.ratio)]
        lost = next((each for each in part if isnan(each.ratio)), None)
        ends = (min(finite, key=_ratio), max(finite, key=_ratio)) if finite else ()
        kept += sorted({*ends, *((lost,) if lost is not None else ())})
    return tuple(kept)


def _ratio(each: Pass) -> float:
    return each.ratio
