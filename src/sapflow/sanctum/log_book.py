"""The events log as far back as anybody looks, read from the journal by index, and on as events come."""

from collections.abc import Iterable, Sequence

from sapflow.sanctum.log import log_line
from sapflow.sanctum.query import LogFilter
from sapflow.sanctum.schema import LogLine
from sapflow.sanctum.stretch import Stretch
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import Source

PAGE = 500
MOST = 20_000  # entries in memory
ENOUGH = 100  # entries: more than a screen


class LogBook:
    """The entries of a kind, of one env or of all, the oldest first; and those of them that a search finds.

    Attributes:
        wanted: what is searched for now.
        shown: what it finds.
    """

    def __init__(self, source: Source, wanted: LogFilter, until_epoch: int | None = None) -> None:
        self.wanted = wanted
        self.shown: Sequence[LogLine] = []
        self._entries: list[LogLine] = []
        self._stretch = Stretch(source, wanted.types, wanted.query.env_id, until_epoch)
        self._page = PAGE
        self._aim = ENOUGH

    @property
    def complete(self) -> bool:
        """Whether there are no older entries, or no more of them are kept."""
        return self._stretch.complete or len(self._entries) >= MOST

    def holds(self, wanted: LogFilter) -> bool:
        """Whether this is the book in which to look for that."""
        return (wanted.kind, wanted.query.env_id) == (self.wanted.kind, self.wanted.query.env_id)

    def search(self, wanted: LogFilter) -> None:
        """Looks for something else, in what is known already; older entries are taken in by the next `look`."""
        self.wanted = wanted
        self.shown = self._found(self._entries)
        self.want_more()

    def want_more(self, enough: int = ENOUGH) -> None:
        """Have the next `look` take in older entries until it finds `enough` more."""
        self._aim = len(self.shown) + enough

    def look(self) -> None:
        """Takes in what has come, and older entries until as many are found as are wanted, or there are none.

        Raises:
            JournalError: the journal cannot be read; the next `look` goes on where this one ended.
        """
        self._take(newer=self._stretch.look_on())
        while not self.complete and len(self.shown) < self._aim:
            self._take(older=self._stretch.look_back(self._page))
            self._page = min(2 * self._page, MOST)  # what is seldom found is looked for in greater leaps

    def _take(self, older: Iterable[TelemetryEvent] = (), newer: Iterable[TelemetryEvent] = ()) -> None:
        """As they were written: by their times they would not be in order where the clock was set back."""
        before, behind = _entries(older), _entries(newer)
        if before or behind:
            self._entries = [*before, *self._entries, *behind][-MOST:]
        found_before, found_behind = map(self._found, (before, behind))
        if found_before or found_behind:  # a new list: what is shown of the old one must not change unseen
            self.shown = [*found_before, *self.shown, *found_behind][-MOST:]

    def _found(self, entries: Iterable[LogLine]) -> list[LogLine]:
        return [entry for entry in entries if self.wanted.lets_through(entry)]


def _entries(events: Iterable[TelemetryEvent]) -> list[LogLine]:
    return [entry for event in events if (entry := log_line(event)) is not None]


def entry_key(entry: LogLine) -> tuple[object, ...]:
    """What tells an entry from every other."""
    return (*entry.order, entry.kind, entry.slot_id)
