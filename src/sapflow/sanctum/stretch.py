"""A stretch of the journal that grows at both ends: what there is of some types of events, with nothing left out."""

from collections.abc import Collection

from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType


class Stretch:
    """Events of an env, or of all and of the run itself (None), from where `source` stands back and on.

    With `until_epoch`, as things stood when that epoch had ended. What cannot be read is passed over.

    Attributes:
        complete: whether the journal has no older ones.
    """

    def __init__(
        self, source: Source, types: Collection[EventType], env_id: int | None, until_epoch: int | None = None
    ) -> None:
        self.complete = False
        self._source = source
        self._which = types, env_id, until_epoch
        self._newest = source.cursor  # places
        self._oldest = source.cursor + 1

    def look_back(self, count: int) -> list[TelemetryEvent]:
        """The next older ones, about `count`, the oldest first.

        Raises:
            JournalError: the journal cannot be read now; nothing is lost by that.
        """
        with self._source.held_still():
            places = self._source.places_before(self._oldest, *self._which, count)
            events = [event for _, event in self._source.at(places)]
        self.complete = len(places) < count
        self._oldest = min(places, default=self._oldest)
        return events

    def look_on(self) -> list[TelemetryEvent]:
        """Those that `source` has come to meanwhile, the oldest first.

        Raises:
            JournalError: as `look_back`.
        """
        until = self._source.cursor
        if until == self._newest:
            return []
        with self._source.held_still():
            places = self._source.places_after(self._newest, *self._which)
            events = [event for _, event in self._source.at(places)]
        self._newest = until
        return events
