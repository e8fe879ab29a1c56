"""Reading a run: follow its journal by cursor, look back by index; live, finished or killed, never writing to it."""

import json
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from enum import StrEnum
from pathlib import Path
from typing import Self

from msgspec import Struct

from sapflow.errors import UnreadableEventError
from sapflow.telemetry import codec, questions
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.journal_file import JournalFile
from sapflow.telemetry.run_directory import REQUESTS_NAME, network_warning, trainer_is_alive
from sapflow.telemetry.vocabulary import EventType

# Journals come from strangers too: no single read may take the reader's memory.
MAX_READ_BYTES = 64 * 2**20

REPLACED = "another journal has taken the place of this one: leave, and open it anew ({})"


class RunState(StrEnum):
    """How a run stands; ENDED is cut off: not completed, and no trainer holds its directory."""

    LIVE = "LIVE"
    COMPLETED = "COMPLETED"
    ENDED = "ENDED"


class RunStatus(Struct, frozen=True, kw_only=True):
    """A run as a reader sees it now.

    `last_event_time` is in Unix seconds, None before the first event. `dropped_*` never reached the journal, `skipped`
    this reader could not read, and about `unread` it has not come to yet. `takes_requests`: there is a folder for what
    people ask (see `mailbox.py`). `notice` is a line for the person who looks, or empty.
    """

    state: RunState
    last_event_time: float | None = None
    dropped_events: int = 0
    dropped_samples: int = 0
    skipped: int = 0
    unread: int = 0
    takes_requests: bool = False
    notice: str = ""


class Source:
    """A reader of the run at `path`, a run directory or its journal; to be used from one thread.

    It follows (`read`), and it looks things up by index, wherever the cursor stands. A live run whose journal is still
    to be made is waited for: it has no events yet. `skipped` counts, by cause, the events that could not be read as
    they were followed; a look-up passes over such events. No answer takes more than MAX_READ_BYTES and one event.

    Raises:
        JournalError: there is no journal at `path`, it is damaged, or a newer Sapflow wrote it. Every method raises it
            when that shows only later.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self.path = self._file.path
        self.run_dir = self._file.run_dir
        self.skipped: Counter[str] = Counter()
        self._notice = network_warning(self.run_dir)
        self._status = RunStatus(state=RunState.LIVE, notice=self._notice)  # until the journal tells more
        self._cursor = 0

    def read(self, limit: int = 5_000, max_bytes: int = MAX_READ_BYTES) -> list[TelemetryEvent]:
        """The next events in the order they were written; empty when there is nothing new.

        At most `limit`, and none behind the one with which they reach `max_bytes` in the journal.
        """
        return list(self.stream(limit, max_bytes))

    def stream(self, limit: int = 5_000, max_bytes: int = MAX_READ_BYTES) -> Generator[TelemetryEvent, None, None]:
        """What `read` gives, one by one: who keeps none of them needs no more memory than one takes, and less time."""
        given = taken = 0
        with closing(self._file.rows(questions.SELECT_NEXT, self._cursor)) as rows:
            for row_id, body, name in rows:
                self._cursor = row_id
                try:
                    event = _event(body, name)
                except UnreadableEventError as error:
                    self.skipped[error.cause] += 1
                    continue
                yield event
                given += 1
                taken += len(body)
                if given == limit or taken >= max_bytes:
                    break

    def skip_to_end(self) -> None:
        """Set the cursor behind the newest event: `read` goes on with what is written from now on."""
        for (newest,) in self._file.rows(questions.SELECT_END):
            self._cursor = newest or 0

    def held_still(self) -> AbstractContextManager[None]:
        """Inside, the journal is seen as it was at one moment, whatever the trainer writes meanwhile."""
        return self._file.held_still()

    def envs(self) -> tuple[int, ...]:
        """The ids of the envs that have said something, in order, at most MAX_ENVS."""
        return tuple(env_id for (env_id,) in self._file.rows(questions.SELECT_ENVS))

    def last_epoch(self) -> int:
        """The last epoch that any env has completed; 0 before the first."""
        return next((int(epoch or 0) for (epoch,) in self._file.rows(questions.SELECT_LAST_EPOCH)), 0)

    @property
    def cursor(self) -> int:
        """The place behind what `read` has given so far: 0 at the start; for `start_after`, in another process too."""
        return self._cursor

    def start_after(self, cursor: int) -> None:
        """Have `read` go on behind `cursor`, or behind the last event if a crash of the machine took some."""
        for (newest,) in self._file.rows(questions.SELECT_END):
            cursor = min(cursor, newest or 0)
        self._cursor = cursor

    def at_end(self) -> bool:
        """Whether there is nothing behind the cursor now; False where that cannot be told for the moment."""
        return any(nothing for (nothing,) in self._file.rows(questions.SELECT_AT_END, self._cursor))

    def moment(self, env_id: int, epoch: int | None = None) -> TelemetryEvent | None:
        """The env's last readable EPOCH_COMPLETED at or before `epoch` (None: of all)."""
        return next(iter(self.moments(env_id, epoch, 1)), None)

    def moments(self, env_id: int, until_epoch: int | None = None, count: int = 64) -> list[TelemetryEvent]:
        """The env's last readable EPOCH_COMPLETED at or before `until_epoch` (None: of all), at most `count`.

        The oldest comes first; of an epoch that was written twice, the later one counts.
        """
        newest_first: dict[int | None, TelemetryEvent] = {}
        epoch = questions.LATEST_EPOCH if until_epoch is None else until_epoch
        with closing(self._file.rows(questions.SELECT_MOMENT, env_id, epoch)) as rows:
            for _, event in _readable(rows):
                newest_first.setdefault(event.epoch, event)
                if len(newest_first) >= count:
                    break
        return list(newest_first.values())[::-1]

    def events(
        self,
        types: Collection[EventType],
        env_id: int | None = None,
        first_epoch: int | None = None,
        last_epoch: int | None = None,
        limit: int = 500,
    ) -> list[TelemetryEvent]:
        """The newest readable events of these types, at most `limit`, in the order they were written.

        Args:
            types: to look for.
            env_id: whose; None: of all envs and of the run itself.
            first_epoch: of the events, if they are to have one.
            last_epoch: likewise. Events of a whole run or env have no epoch: with a bound they are not found.
            limit: of the answer.
        """
        sql, values = questions.select_newest(types, env_id, questions.of_epochs(first_epoch, last_epoch), limit=limit)
        return [event for _, event in self.at([place for (place,) in self._file.rows(sql, *values)])]

    def places(
        self,
        types: Collection[EventType],
        whose: Iterable[int | None],
        first_epoch: int | None = None,
        last_epoch: int | None = None,
        limit: int = 500,
    ) -> Iterator[int]:
        """Where the events of these types are in the journal, at most the newest `limit` of each env and type.

        `whose` are the envs, None for the run itself; epochs as in `events`. What is written later has a greater place.
        """
        bounded = first_epoch is not None or last_epoch is not None
        bounds = (first_epoch or 0, questions.LATEST_EPOCH if last_epoch is None else last_epoch) if bounded else ()
        sql = questions.SELECT_IDS_OF_EPOCHS if bounded else questions.SELECT_IDS
        for env in whose:
            for event_type in types:
                for (place,) in self._file.rows(sql, env, event_type.value, *bounds, limit):
                    yield place

    def places_between(
        self, kind: EventType, env_id: int, epoch: int, after: int, before: int, limit: int
    ) -> list[int]:
        """Where the env's events of that type and epoch are, between two places: the newest `limit`, newest first."""
        rows = self._file.rows(questions.SELECT_IDS_BETWEEN, env_id, kind.value, epoch, after, before, limit)
        return [place for (place,) in rows]

    def at(self, places: Sequence[int]) -> list[tuple[int, TelemetryEvent]]:
        """The readable events at these places, each with its place, by place; of too much the first are left out."""
        with closing(self._file.rows(questions.SELECT_BY_ID, json.dumps(list(places)))) as rows:
            return list(_readable(rows))[::-1]

    def places_before(
        self, place: int, types: Collection[EventType], env_id: int | None, until_epoch: int | None, limit: int
    ) -> list[int]:
        """Where the newest events of these types are before `place`, at most `limit`, the newest first.

        Of the env, or of all envs and the run itself. With `until_epoch`, as things stood when that epoch had ended:
        events up to it, and what begins the run and its envs.

        Raises:
            JournalError: also where the journal is locked for the moment; an answer tells of all that there is.
        """
        bounds = questions.until_epoch(until_epoch)
        return self._file.answer(*questions.select_newest(types, env_id, bounds, place, limit))

    def places_after(
        self, place: int, types: Collection[EventType], env_id: int | None, until_epoch: int | None
    ) -> list[int]:
        """Where the events of these types are after `place`, as far as `read` has come, the oldest first.

        The rest as `places_before`.
        """
        bounds = questions.until_epoch(until_epoch)
        return self._file.answer(*questions.select_between(types, env_id, bounds, place, self._cursor))

    def status(self) -> RunStatus:
        """How the run stands now, which may be further than `read` has come."""
        # Asked before the journal is: a trainer that is gone by then has written all it ever will.
        alive = trainer_is_alive(self.run_dir)
        if alive:
            self._file.expect_news()
        rows = self._file.rows(questions.SELECT_STATUS)
        for newest, completed, last_event_time, dropped_events, dropped_samples in rows:
            replaced = self._file.was_replaced
            unfinished = RunState.LIVE if alive and not replaced else RunState.ENDED
            self._status = RunStatus(
                state=RunState.COMPLETED if completed else unfinished,
                last_event_time=last_event_time,
                dropped_events=dropped_events,
                dropped_samples=dropped_samples,
                skipped=self.skipped.total(),
                unread=max(newest - self._cursor, 0),
                takes_requests=not replaced and (self.run_dir / REQUESTS_NAME).is_dir(),
                notice=REPLACED.format(self.path) if replaced else self._notice,
            )
        return self._status

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _event(body: bytes | int, name: str) -> TelemetryEvent:
    if isinstance(body, int):
        raise UnreadableEventError("malformed" if body < 0 else "too large", f"{body} bytes")
    return codec.decode(body, name)


def _readable(rows: Iterator[tuple[int, bytes, str]]) -> Iterator[tuple[int, TelemetryEvent]]:
    """Those of the rows that can be read, with their ids, until they have taken MAX_READ_BYTES."""
    taken = 0
    for row_id, body, name in rows:
        try:
            yield row_id, _event(body, name)
        except UnreadableEventError:
            continue
        taken += len(body)
        if taken >= MAX_READ_BYTES:
            return
