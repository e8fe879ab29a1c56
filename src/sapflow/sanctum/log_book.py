"""The events log as far back as anybody looks: the snapshot's newest entries, older ones from the journal by index."""

from collections.abc import Iterable, Sequence

from sapflow.sanctum.log import log_line
from sapflow.sanctum.query import LogFilter
from sapflow.sanctum.schema import LogLine
from sapflow.telemetry.source import Source

PAGE = 500
MOST = 20_000  # entries in memory
ENOUGH = 100  # entries: more than a screen


class LogBook:
    """The entries that a filter lets through, the oldest first.

    Attributes:
        shown: them.
        complete: whether the journal has no older ones.
    """

    def __init__(self, source: Source, wanted: LogFilter, until_epoch: int | None = None) -> None:
        self.wanted = wanted
        self.shown: Sequence[LogLine] = []
        self.complete = False
        self._source = source
        self._until_epoch = until_epoch
        self._known: set[tuple[object, ...]] = set()
        self._asked = 0

    def add(self, log: Iterable[LogLine]) -> None:
        """Takes in what the snapshot knows."""
        new = [entry for entry in log if self.wanted.lets_through(entry) and entry_key(entry) not in self._known]
        if new:
            self._known.update(map(entry_key, new))
            # A new list: what is shown of the old one must not change unseen.
            self.shown = sorted([*self.shown, *new], key=lambda entry: entry.order)[-MOST:]

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


def entry_key(entry: LogLine) -> tuple[object, ...]:
    """What tells an entry from every other."""
    return (*entry.order, entry.kind, entry.slot_id)
