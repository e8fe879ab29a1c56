"""The rows of a journal in the order they were written, some by index, in pages: bounded, however large the run is."""

import json
import sqlite3
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, NamedTuple

from sapflow.errors import JournalError, UnreadableEventError
from sapflow.telemetry import codec
from sapflow.telemetry.events import GradientSampled, TelemetryEvent
from sapflow.telemetry.journal_file import JournalFile
from sapflow.telemetry.questions import MAX_EVENT_BYTES, SELECT_ENVS
from sapflow.telemetry.vocabulary import EventType

BUSY_MILLISECONDS = 5_000
PAGE_ROWS = 5_000
PAGE_BYTES = 16 * 2**20

# What the tables of a run have room for.
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999, which calendars have

_SELECT = f"""
    SELECT id, env, sequence, epoch, type, time, iif(typeof(body) = 'blob', length(body), -1),
        iif(typeof(body) = 'blob' AND length(body) <= {MAX_EVENT_BYTES}, body, NULL)
    FROM events
"""
_SELECT_BY_ID = f"{_SELECT} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"


class Row(NamedTuple):
    """An event as it lies in the journal; `body` is None where it is no bytes (`size` is -1), or too many."""

    id: int
    env: int | None
    sequence: int | None
    epoch: int | None
    type: str
    time: float
    size: int
    body: bytes | None

    def event(self) -> TelemetryEvent:
        """What the row says.

        Raises:
            UnreadableEventError: this version cannot read it, or its numbers are none that a run has.
        """
        if self.body is None:
            raise UnreadableEventError(
                "too large" if self.size > MAX_EVENT_BYTES else "malformed", f"{self.size} bytes"
            )
        event = codec.decode(self.body, self.type)
        if event.payload.type != self.type or event.env_id != self.env or event.epoch != self.epoch:
            raise UnreadableEventError("malformed", f"event {self.id} is not what its columns say")
        if not _in_range(event):
            raise UnreadableEventError("out of range", f"event {self.id}")
        return event


class JournalRows(JournalFile):
    """A journal that is asked for rows; several threads may read one after another, as they do a stream of Arrow's."""

    def last_id(self) -> int:
        """Of the newest event; 0 before the first."""
        return next((newest or 0 for (newest,) in self.rows("SELECT max(id) FROM events")), 0)

    def envs(self) -> tuple[int, ...]:
        """The ids of the envs that have said something."""
        return tuple(env for (env,) in self.rows(SELECT_ENVS))

    def count(self, event_type: EventType) -> int:
        """How many events of that type the envs have said."""
        counts = (
            next(self.rows("SELECT count(*) FROM events WHERE env = ? AND type = ?", env, event_type.value))[0]
            for env in self.envs()
        )
        return sum(counts)

    def pages(
        self,
        types: Collection[EventType] | None = None,
        env: int | None = None,
        epochs: tuple[int, int] | None = None,
        after: int = 0,
    ) -> Iterator[list[Row]]:
        """The rows behind the id `after` that the journal has now, in their order, as many at a time as memory bears.

        That is at most PAGE_ROWS, and none behind the one with which they reach PAGE_BYTES.

        Args:
            types: of the events; None: all.
            env: whose; None: of all envs and of the run itself.
            epochs: the first and the last, both included; an event without an epoch is in none.
            after: where to begin.
        """
        samples_alone = types is not None and set(types) == {EventType.GRADIENT_SAMPLED}
        if env is None and epochs is None and (types is None or samples_alone):  # most of the rows, or all
            return self._scanned("" if types is None else f"AND +type = '{EventType.GRADIENT_SAMPLED}'", after)
        return self._looked_up(types, env, epochs, after)

    def select(self, *selection: Any) -> Iterator[Row]:
        """What is on those pages, one by one."""
        return chain.from_iterable(self.pages(*selection))

    def readable(self, *selection: Any) -> Iterator[tuple[int, TelemetryEvent]]:
        """Like `select`, decoded, with their ids; what cannot be read is passed over."""
        for row in self.select(*selection):
            try:
                yield row.id, row.event()
            except UnreadableEventError:
                continue

    def unreadable(self, after: int) -> Counter[str]:
        """How many events behind the id `after` cannot be read, by cause."""
        causes: Counter[str] = Counter()
        for row in self.select(None, None, None, after):
            try:
                row.event()
            except UnreadableEventError as error:
                causes[error.cause] += 1
        return causes

    def rows(self, sql: str, *parameters: object) -> Generator[tuple[Any, ...], None, None]:
        """What `sql` finds; nothing while a trainer is still to make the journal.

        Raises:
            JournalError: it is damaged, or stays locked.
        """
        connection = self._connected()
        if connection is None:
            if self._found is not None and self._found.st_size:
                raise JournalError(f"{self.path} is locked by another program: try again when that is done")
            return
        try:
            with closing(connection.execute(sql, parameters)) as rows:
                yield from rows
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _page(self, sql: str, *parameters: object) -> list[Row]:
        page: list[Row] = []
        taken = 0
        with closing(self.rows(sql, *parameters)) as rows:
            for row in map(Row._make, rows):
                page.append(row)
                taken += row.size
                if taken >= PAGE_BYTES:
                    break
        return page

    def _scanned(self, condition: str, after: int) -> Iterator[list[Row]]:
        """The rows behind `after`, one after another."""
        last = self.last_id()
        sql = f"{_SELECT} WHERE id > ? AND id <= ? {condition} ORDER BY id LIMIT {PAGE_ROWS}"
        while page := self._page(sql, after, last):
            yield page
            after = page[-1].id

    def _looked_up(
        self, types: Collection[EventType] | None, env: int | None, epochs: tuple[int, int] | None, after: int
    ) -> Iterator[list[Row]]:
        """The rows behind `after` that the index finds; it is asked once, and takes 8 bytes a row."""
        lists: dict[str, Collection[object]] = {"env": self.envs() if env is None else [env]}
        if types is not None:
            lists["type"] = [event_type.value for event_type in types]
        terms = [f"{column} IN (SELECT value FROM json_each(?))" for column in lists]
        terms += [] if epochs is None else ["epoch BETWEEN ? AND ?"]
        sql = f"SELECT id FROM events WHERE {' AND '.join(terms)} AND id > ? ORDER BY id"
        found = self.rows(sql, *map(json.dumps, lists.values()), *(epochs or ()), after)
        ids = array("q", (event_id for (event_id,) in found))
        place = 0
        while page := self._page(_SELECT_BY_ID, json.dumps(ids[place : place + PAGE_ROWS].tolist())):
            yield page
            place = bisect_right(ids, page[-1].id)

    def _open(self, how: str) -> sqlite3.Connection:
        connection = super()._open(how)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}").fetchall()
        return connection


def is_time(seconds: float) -> bool:
    """Whether a calendar has such a time."""
    return FIRST_SECOND <= seconds < LAST_SECOND


def _in_range(event: TelemetryEvent) -> bool:
    """Journals come from strangers, and msgpack has wider numbers than tables have."""
    payload = event.payload
    if isinstance(payload, GradientSampled):
        passes = payload.pass_index
        if not len(passes) == len(payload.entering) == len(payload.leaving):
            return False
        if passes and not 0 <= min(passes) <= max(passes) <= MAX_INT64:
            return False
    return 0 <= (event.env_id or 0) <= MAX_INT32 and 0 <= (event.epoch or 0) <= MAX_INT32 and is_time(event.time)
