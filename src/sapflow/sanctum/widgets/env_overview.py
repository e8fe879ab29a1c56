"""The overview: every env of the run on a card, the one most in need of a look first."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, VerticalScroll
from textual.message import Message
from textual.widgets import Footer

from sapflow.sanctum.panels import env_card
from sapflow.sanctum.schema import EnvState, SanctumSnapshot
from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.event_log import EventLog
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.sanctum.widgets.span_view import SpanView

MIN_CARD_WIDTH = 32


class EnvCard(SpanView, can_focus=True):
    """One env; chosen by enter or a click."""

    class Chosen(Message):
        """The person wants to see the env's own screen."""

        def __init__(self, env_id: int) -> None:
            super().__init__()
            self.env_id = env_id

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "detail")]

    def __init__(self, env: EnvState, rows: int) -> None:
        super().__init__()
        self.env = env
        self.rows = rows

    def show(self, env: EnvState, rows: int) -> None:
        """Draws `env` with room for `rows` slots, if anything about it changed."""
        if env is not self.env or rows != self.rows:
            self.env, self.rows = env, rows
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The card at `width` cells."""
        return env_card(self.env, width, self.rows, self.has_focus)

    def on_focus(self) -> None:
        """A focused card has a heavy frame."""
        self.redraw()

    def on_blur(self) -> None:
        """Back to the light frame."""
        self.redraw()

    def on_click(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """Says that this env was chosen."""
        self.post_message(self.Chosen(self.env.env_id))


class EnvOverview(VerticalScroll, can_focus=False):
    """The cards in a grid; the n-th card shows the n-th env of the order, the focus stays with its env."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1, 0)", "move", key_display="←↓↑→"),
        Binding("right,l", "move(1, 0)", show=False),
        Binding("up,k", "move(0, -1)", show=False),
        Binding("down,j", "move(0, 1)", show=False),
    ]

    def compose(self) -> ComposeResult:
        """An empty grid."""
        yield Grid()

    async def show(self, snapshot: SanctumSnapshot) -> None:
        """Draws the envs of `snapshot`, worst first."""
        envs = [snapshot.envs[env_id] for env_id in snapshot.worst_first()]
        rows = max((len(env.seeds) for env in envs), default=1)
        cards = self.cards
        focused = next((card.env.env_id for card in cards if card.has_focus), None)
        for card, env in zip(cards, envs, strict=False):
            card.show(env, rows)
        if len(envs) > len(cards):
            await self.grid.mount(*(EnvCard(env, rows) for env in envs[len(cards) :]))
        self._arrange(rows)
        self._focus_env(focused)

    @property
    def grid(self) -> Grid:
        """The grid of the cards."""
        return self.query_one(Grid)

    @property
    def cards(self) -> list[EnvCard]:
        """The cards in their order on the screen."""
        return list(self.query(EnvCard))

    def action_move(self, right: int, down: int) -> None:
        """Moves the focus over the grid, as far as there are cards."""
        cards = self.cards
        if not cards:
            return
        at = next((n for n, card in enumerate(cards) if card.has_focus), None)
        target = 0 if at is None else at + right + down * self._columns(len(cards))
        if 0 <= target < len(cards):
            cards[target].focus()

    def on_resize(self, event: events.Resize) -> None:
        """As many columns as there is room for."""
        if self.cards:
            self._arrange(self.cards[0].rows)

    def _columns(self, cards: int) -> int:
        return max(min(self.size.width // MIN_CARD_WIDTH, cards), 1)

    def _arrange(self, rows: int) -> None:
        cards = len(self.cards)
        self.grid.styles.grid_size_columns = self._columns(cards)
        self.grid.styles.grid_rows = str(rows + 3)

    def _focus_env(self, env_id: int | None) -> None:
        """Keeps the focus on the env, wherever its card went; on the first card at the beginning."""
        cards = self.cards
        card = next((card for card in cards if card.env.env_id == env_id), cards[0] if cards else None)
        if card is not None and not card.has_focus:
            card.focus(scroll_visible=env_id is None)


class OverviewScreen(SnapshotScreen):
    """The run's header, the grid of its envs, and the latest events."""

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield EnvOverview()
        yield EventLog("events")
        yield Footer()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        self.query_one(EventLog).show(snapshot.log)
        await self.query_one(EnvOverview).show(snapshot)
