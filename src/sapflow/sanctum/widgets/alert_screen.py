"""The alerts of the run, or of one env: open and closed, with what was done about each and what came of it."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from sapflow.sanctum.alert_history import ALERT_EVENTS, AlertLife, alert_lives
from sapflow.sanctum.alert_panels import alert_details, alert_row
from sapflow.sanctum.event_panels import alert_filter_line
from sapflow.sanctum.query import STATES, AlertFilter, Query
from sapflow.sanctum.slot_panels import title_line
from sapflow.sanctum.spans import slot_name
from sapflow.sanctum.stretch import Stretch
from sapflow.sanctum.widgets.list_screen import MOST_SLOT, ListScreen, choices, slot_width
from sapflow.sanctum.widgets.panel import Panel, ScrollPanel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.telemetry.events import TelemetryEvent

EVENT_LIMIT = 5_000
SEEN = 200  # rows: at least a screen


class AlertScreen(ListScreen[AlertLife]):
    """The open alerts first; the one under the cursor is shown in full below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "scroll(-1)", "scroll", key_display="[ ]", tooltip="Scroll the alert up"),
        Binding("right_square_bracket", "scroll(1)", "scroll down", show=False, tooltip="Scroll the alert down"),
        *choices(STATES, " alerts"),
    ]

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__(env_id)
        self._lives: Sequence[AlertLife] = ()
        self._stretch: Stretch | None = None
        self._events: list[TelemetryEvent] | None = None  # None: still to be looked up
        self._shown_for: tuple[int | None, int | None] = (None, None)
        self._read_for: tuple[object, ...] = ()

    def make_rows(self) -> RowList[AlertLife]:
        """The alerts."""
        return RowList[AlertLife](lambda life: life.key)

    def below(self) -> Iterable[Widget]:
        """The alert under the cursor, in full."""
        yield ScrollPanel(id="details")

    def about(self, row: AlertLife) -> Subject:
        """The seed that the alert is about."""
        return Subject(row.env_id, row.alert.slot_id, row.alert.seed_id)

    def draw(self) -> None:
        """Draws the alerts that are wanted, and one of them in full."""
        wanted = AlertFilter(query=Query.parse(self.text, self.env_id), state=self.choice)
        self._read(wanted)
        slots = slot_width(slot_name(life.alert.slot_id, MOST_SLOT) for life in self._lives[:SEEN])
        rows = self.rows
        rows.show(self._lives, lambda life, width: alert_row(life, width, slots), "no alert like that")
        place = (rows.cursor, len(rows.rows))
        self.query_one("#filter", Panel).show(
            (wanted, place), lambda width, _: [alert_filter_line(wanted, *place, width)]
        )
        self._show_details()

    def _show_details(self) -> None:
        life = self.rows.chosen
        title = "" if life is None else f"alert of env {life.env_id:02}" if life.env_id is not None else "alert"
        self._details.show(life, lambda width: [title_line(title, width), *alert_details(life, width)] if life else ())
        self.call_after_refresh(lambda: self.offer_for(self._scrolls))

    @property
    def _details(self) -> ScrollPanel:
        return self.query_one("#details", ScrollPanel)

    @property
    def _scrolls(self) -> bool:
        """Whether the alert under the cursor takes more lines than there are for it."""
        return any(details.max_scroll_y > 0 for details in self.query(ScrollPanel))  # none before it is there

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        """Another alert is read from its beginning."""
        self._details.scroll_home(animate=False)
        super().on_row_list_moved(message)

    def _read(self, wanted: AlertFilter) -> None:
        """Looks up what has come; all of it where another env or another moment is shown."""
        app, env_id = shell(self), wanted.query.env_id
        standing = tuple((env.env_id, alert) for env in self.snapshot.envs.values() for alert in env.open_alerts)
        shown_for = (env_id, app.moment)
        if self._stretch is None or shown_for != self._shown_for:
            self._stretch, self._shown_for = Stretch(app.source, ALERT_EVENTS, *shown_for), shown_for
            self._events = None
        told = self._events
        with app.look_up(self):
            if self._events is None:
                self._events = self._stretch.look_back(EVENT_LIMIT)
            new = self._stretch.look_on()
            if new:
                self._events = [*self._events, *new][-EVENT_LIMIT:]
        if self._events is not told or (wanted, standing) != self._read_for:
            self._read_for = (wanted, standing)
            self._lives = [life for life in alert_lives(self._events or (), standing) if wanted.lets_through(life)]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The alert is scrolled where it does not all fit."""
        return self._scrolls if action == "scroll" else super().check_action(action, parameters)

    def action_scroll(self, lines: int) -> None:
        """Scrolls through the alert under the cursor."""
        self._details.scroll_lines(lines)
