"""The events log of the run, or of one env: searched, filtered and followed."""

from contextlib import suppress
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from sapflow.errors import InputError
from sapflow.sanctum.event_panels import log_filter_line, log_row
from sapflow.sanctum.log_book import LogBook, entry_key
from sapflow.sanctum.query import KINDS, LogFilter, Query
from sapflow.sanctum.schema import LogLine, SanctumSnapshot
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.search_screen import SearchScreen
from sapflow.sanctum.widgets.seed_detail_screen import SeedDetailScreen
from sapflow.sanctum.widgets.shell import Subject, shell

SLOT_WIDTHS = 4, 20


class EventScreen(SearchScreen):
    """Entries from old to new; the cursor on the last one follows what comes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(str(number), f"kind('{kind}')", kind, show=False, tooltip=f"Show {kind}")
        for number, kind in enumerate(KINDS, start=1)
    ]

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__(env_id)
        self._kind = "all"
        self._book: LogBook | None = None
        self._moment: int | None = None
        self._snapshot = SanctumSnapshot()

    @property
    def subject(self) -> Subject:
        """What the entry under the cursor is about."""
        entry = self._list.chosen
        return Subject() if entry is None else Subject(entry.env_id, entry.slot_id)

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield Panel(id="filter")
        yield self.search_input()
        yield RowList[LogLine](entry_key, follows=True)
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the log as it is in `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        self._snapshot = snapshot
        self.draw()

    def focus_list(self) -> None:
        """The entries."""
        self._list.focus()

    @property
    def _list(self) -> RowList[LogLine]:
        return self.query_one(RowList)

    def draw(self) -> None:
        """Draws the entries that are wanted."""
        book = self._current_book()
        env_id = book.wanted.query.env_id
        env = None if env_id is None else self._snapshot.envs.get(env_id)
        book.add(self._snapshot.log if env_id is None else env.log if env else ())
        least, most = SLOT_WIDTHS
        slot_width = min(max([least, *(len(entry.slot_id) for entry in book.shown[-200:])]), most)
        rows = self._list
        rows.show(book.shown, lambda entry, width: log_row(entry, width, slot_width), "no event like that")
        place = (rows.cursor, len(rows.rows), rows.following)
        wanted = book.wanted
        self.query_one("#filter", Panel).show(
            (wanted, place), lambda width, _: [log_filter_line(wanted, *place, width)]
        )

    def _current_book(self) -> LogBook:
        """The book for what is wanted now; another kind or env, or another moment, needs another one."""
        moment = shell(self).moment
        wanted = LogFilter(query=Query.parse(self.text, self.env_id), kind=self._kind)
        if self._book is None or moment != self._moment or not self._book.holds(wanted):
            self._book, self._moment = LogBook(shell(self).source, wanted, moment), moment
            self._look_back()
        elif wanted != self._book.wanted:
            self._book.search(wanted)
            self._look_back()
        return self._book

    def _look_back(self) -> None:
        """Reads older entries; that the journal cannot be read is said in the header."""
        if self._book is not None:
            with suppress(InputError):
                self._book.look_back()

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        """Above the first row come older ones."""
        if message.at_top:
            self._look_back()
        self.draw()

    async def on_row_list_chosen(self) -> None:
        """Opens the seed that the entry is about."""
        entry = self._list.chosen
        if entry is not None and entry.env_id is not None and entry.slot_id:
            await shell(self).open(SeedDetailScreen(entry.env_id, entry.slot_id))

    def action_kind(self, kind: str) -> None:
        """Shows events of a kind alone."""
        self._kind = kind
        self.draw()
