"""The events log of the run, or of one env: searched, filtered and followed."""

from typing import ClassVar

from textual.binding import BindingType

from sapflow.sanctum.event_panels import log_filter_line
from sapflow.sanctum.log_book import LogBook, entry_key
from sapflow.sanctum.panels import log_row
from sapflow.sanctum.query import KINDS, LogFilter, Query
from sapflow.sanctum.schema import LogLine
from sapflow.sanctum.widgets.list_screen import ListScreen, choices, slot_width
from sapflow.sanctum.widgets.panel import Panel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.shell import Subject, shell

SEEN = 200  # entries: at least a screen


class EventScreen(ListScreen[LogLine]):
    """Entries from old to new; the cursor on the last one follows what comes."""

    BINDINGS: ClassVar[list[BindingType]] = choices(KINDS)

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__(env_id)
        self._book: LogBook | None = None
        self._moment: int | None = None

    def make_rows(self) -> RowList[LogLine]:
        """The log, which follows what comes."""
        return RowList[LogLine](entry_key, follows=True)

    def about(self, row: LogLine) -> Subject:
        """The seed, the slot or the env of an entry."""
        return Subject(row.env_id, row.slot_id, row.seed_id)

    def draw(self) -> None:
        """Draws the entries that are wanted."""
        book = self._current_book()
        with shell(self).look_up(self):
            book.look()
        slots = slot_width(entry.slot_id for entry in book.shown[-SEEN:]) + 1
        rows = self.rows
        rows.show(book.shown, lambda entry, width: log_row(entry, width, slots), "no event like that")
        place = (rows.cursor, len(rows.rows), rows.following)
        wanted = book.wanted
        self.query_one("#filter", Panel).show(
            (wanted, place), lambda width, _: [log_filter_line(wanted, *place, width)]
        )

    def _current_book(self) -> LogBook:
        """The book for what is wanted now; another kind or env, or another moment, needs another one."""
        moment = shell(self).moment
        wanted = LogFilter(query=Query.parse(self.text, self.env_id), kind=self.choice)
        if self._book is None or moment != self._moment or not self._book.holds(wanted):
            self._book, self._moment = LogBook(shell(self).source, wanted, moment), moment
        elif wanted != self._book.wanted:
            self._book.search(wanted)
        return self._book

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        """Above the first row come older ones."""
        if message.at_top and self._book is not None:
            self._book.want_more()
        super().on_row_list_moved(message)
