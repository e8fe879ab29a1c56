"""The events log as far back as anybody looks: the snapshot's newest entries, older ones from the journal by index."""

from collections.abc import Iterable, Sequence

from sapflow.sanctum.log import log_line
from sapflow.sanctum.query import LogFilter, Query
from sapflow.sanctum.schema import LogLine
from sapflow.telemetry.source import Source

PAGE = 500
MOST = 20_000  # entries in memory
ENOUGH = 100  # entries: more than a screen


class LogBook:
    """The entries of a kind, of one env or of all, the oldest first; and those of them that a search finds.

    Attributes:
        wanted: what is searched for now.
        shown: what it finds.
        complete: whether the journal has no older ones.
    """

    def __init__(self, source: Source, wanted: LogFilter, until_epoch: int | None = None) -> None:
        self.wanted = wanted
        self.shown: Sequence[LogLine] = []
        self.complete = False
        self._every = LogFilter(query=Query(env_id=wanted.query.env_id), kind=wanted.kind)
        self._entries: list[LogLine] = []
        self._source = source
        self._until_epoch = until_epoch
        self._known: set[tuple[object, ...]] = set()
        self._asked = 0

    def holds(self, wanted: LogFilter) -> bool:
        """Whether this is the book in which to look for that."""
        return (wanted.kind, wanted.query.env_id) == (self.wanted.kind, self.wanted.query.env_id)

    def search(self, wanted: LogFilter) -> None:
        """Looks for something else, in what is known already."""
        self.wanted = wanted
        self.shown = [entry for entry in self._entries if wanted.lets_through(entry)]

    def add(self, log: Iterable[LogLine]) -> None:
        """Takes in what the snapshot knows."""
        new = [entry for entry in log if entry_key(entry) not in self._known and self._every.lets_through(entry)]
        if not new:
            return
        self._known.update(map(entry_key, new))
        self._entries = _in_order([*self._entries, *new])
        found = [entry for entry in new if self.wanted.lets_through(entry)]
        if found:  # a new list: what is shown of the old one must not change unseen
            self.shown = _in_order([*self.shown, *found])

    def look_back(self, enough: int = ENOUGH) -> None:
        """Takes in older entries from the journal, until `enough` more are found or there are none.

        Raises:
            JournalError: the journal cannot be read.
        """
        aim = len(self.shown) + enough
        while not self.complete and len(self.shown) < aim:
            self._look_farther()

    def _look_farther(self) -> None:
        self._asked = min(max(2 * self._asked, PAGE), MOST)
        events = self._source.events(
            self.wanted.types, self.wanted.query.env_id, last_epoch=self._until_epoch, limit=self._asked
        )
        self.complete = len(events) < self._asked or self._asked == MOST
        self.add(entry for event in events if (entry := log_line(event)) is not None)


def _in_order(entries: Iterable[LogLine]) -> list[LogLine]:
    return sorted(entries, key=lambda entry: entry.order)[-MOST:]


def entry_key(entry: LogLine) -> tuple[object, ...]:
    """What tells an entry from every other."""
    return (*entry.order, entry.kind, entry.slot_id)
