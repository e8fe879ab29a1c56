"""The alerts of the run, or of one env: open and closed, with what was done about each and what came of it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from sapflow.errors import InputError
from sapflow.sanctum.alert_history import ALERT_EVENTS, AlertLife, alert_lives
from sapflow.sanctum.alert_panels import alert_details, alert_row
from sapflow.sanctum.event_panels import alert_filter_line
from sapflow.sanctum.query import STATES, AlertFilter, Query
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.slot_panels import title_line
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel, ScrollPanel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.search_screen import SearchScreen
from sapflow.sanctum.widgets.seed_detail_screen import SeedDetailScreen
from sapflow.sanctum.widgets.shell import Subject, shell

EVENT_LIMIT = 5_000


class AlertScreen(SearchScreen):
    """The open alerts first; the one under the cursor is shown in full below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(str(number), f"state('{state}')", state, show=False, tooltip=f"Show {state} alerts")
        for number, state in enumerate(STATES, start=1)
    ]

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__(env_id)
        self._state = "all"
        self._lives: Sequence[AlertLife] = ()
        self._read_for: tuple[object, ...] = ()
        self._snapshot = SanctumSnapshot()

    @property
    def subject(self) -> Subject:
        """What the alert under the cursor is about."""
        life = self._list.chosen
        return Subject() if life is None else Subject(life.env_id, life.alert.slot_id, life.alert.seed_id)

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield Panel(id="filter")
        yield self.search_input()
        yield RowList[AlertLife](lambda life: life.key)
        yield ScrollPanel(id="details")
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the alerts as they are in `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        self._snapshot = snapshot
        self.draw()

    def focus_list(self) -> None:
        """The alerts."""
        self._list.focus()

    @property
    def _list(self) -> RowList[AlertLife]:
        return self.query_one(RowList)

    def draw(self) -> None:
        """Draws the alerts that are wanted, and one of them in full."""
        wanted = AlertFilter(query=Query.parse(self.text, self.env_id), state=self._state)
        self._read(wanted)
        slot_width = min(max([4, *(len(life.alert.slot_id) for life in self._lives[:200])]), 20)
        rows = self._list
        rows.show(self._lives, lambda life, width: alert_row(life, width, slot_width), "no alert like that")
        place = (rows.cursor, len(rows.rows))
        self.query_one("#filter", Panel).show(
            (wanted, place), lambda width, _: [alert_filter_line(wanted, *place, width)]
        )
        self._show_details()

    def _show_details(self) -> None:
        life = self._list.chosen
        title = "" if life is None else f"alert of env {life.env_id:02}" if life.env_id is not None else "alert"
        self.query_one("#details", ScrollPanel).show(
            life, lambda width: [title_line(title, width), *alert_details(life, width)] if life else ()
        )

    def _read(self, wanted: AlertFilter) -> None:
        """Looks the alerts up when there is another one, another filter or another moment."""
        told = [entry.order for entry in self._snapshot.log if entry.kind in ALERT_EVENTS]
        standing = tuple((env.env_id, alert) for env in self._snapshot.envs.values() for alert in env.open_alerts)
        read_for = (wanted, shell(self).moment, told[-1:], standing)
        if read_for == self._read_for:
            return
        with suppress(InputError):  # that the journal cannot be read is said in the header
            events = shell(self).source.events(
                ALERT_EVENTS, wanted.query.env_id, last_epoch=shell(self).moment, limit=EVENT_LIMIT
            )
            self._lives = [life for life in alert_lives(events, standing) if wanted.lets_through(life)]
            self._read_for = read_for

    def on_row_list_moved(self) -> None:
        """Another alert is shown in full."""
        self.draw()

    async def on_row_list_chosen(self) -> None:
        """Opens the seed that the alert is about."""
        life = self._list.chosen
        if life is not None and life.env_id is not None:
            await shell(self).open(SeedDetailScreen(life.env_id, life.alert.slot_id))

    def action_state(self, state: str) -> None:
        """Shows open, closed, or all alerts."""
        self._state = state
        self.draw()
