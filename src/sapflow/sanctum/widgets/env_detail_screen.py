"""One env: a card for each of its slots, its open alerts and its events."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, VerticalScroll
from textual.widgets import Footer

from sapflow.sanctum.formatting import card_height, seed_card
from sapflow.sanctum.panels import env_line
from sapflow.sanctum.schema import EnvState, SanctumSnapshot, SeedState
from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.event_log import EventLog
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.sanctum.widgets.span_view import SpanView

MIN_CARD_WIDTH = 33
SMALL_PLOT, LARGE_PLOT = 3, 7  # rows
ROOM_FOR_LARGE_PLOT = 45  # lines of screen


class SeedCard(SpanView):
    """One slot: the gradient line of TELE-557, and everything that stands behind it."""

    def __init__(self, seed: SeedState) -> None:
        super().__init__()
        self.seed = seed
        self.plot_rows = SMALL_PLOT

    def show(self, seed: SeedState, plot_rows: int) -> None:
        """Draws `seed`, if anything about it changed."""
        if seed is not self.seed or plot_rows != self.plot_rows:
            self.seed, self.plot_rows = seed, plot_rows
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The card at `width` cells."""
        return seed_card(self.seed, width, self.plot_rows)


class EnvLine(SpanView):
    """What is said of the env as a whole."""

    def __init__(self, env: EnvState) -> None:
        super().__init__()
        self.env = env

    def show(self, env: EnvState) -> None:
        """Draws `env`, if anything about it changed."""
        if env is not self.env:
            self.env = env
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """One line at `width` cells."""
        return [env_line(self.env, width)]


class EnvDetailScreen(SnapshotScreen):
    """Follows one env until escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "overview"),
        Binding("down,j", "scroll_cards(1)", "scroll", key_display="↑↓"),
        Binding("up,k", "scroll_cards(-1)", show=False),
    ]

    def __init__(self, env_id: int) -> None:
        super().__init__()
        self.env_id = env_id

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        empty = EnvState(env_id=self.env_id)
        yield RunHeader()
        yield EnvLine(empty)
        with VerticalScroll(can_focus=False):
            yield Grid()
        yield EventLog(f"events of env {self.env_id:02}")
        yield Footer()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the env as it is in `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        env = snapshot.envs[self.env_id]
        self.query_one(EnvLine).show(env)
        self.query_one(EventLog).show(env.log, env)
        seeds = list(env.seeds.values())
        cards = list(self.query(SeedCard))
        for card in cards[len(seeds) :]:
            await card.remove()
        if len(seeds) > len(cards):
            await self.query_one(Grid).mount(*(SeedCard(seed) for seed in seeds[len(cards) :]))
        for card, seed in zip(self.query(SeedCard), seeds, strict=True):
            card.show(seed, self._plot_rows)
        self._arrange(len(seeds))

    def action_scroll_cards(self, lines: int) -> None:
        """Scrolls the cards where they do not all fit."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def on_resize(self, event: events.Resize) -> None:
        """As many columns, and as tall a plot, as there is room for."""
        cards = list(self.query(SeedCard))
        for card in cards:
            card.show(card.seed, self._plot_rows)
        self._arrange(len(cards))

    @property
    def _plot_rows(self) -> int:
        return LARGE_PLOT if self.size.height >= ROOM_FOR_LARGE_PLOT else SMALL_PLOT

    def _arrange(self, cards: int) -> None:
        grid = self.query_one(Grid)
        grid.styles.grid_size_columns = max(min(self.size.width // MIN_CARD_WIDTH, cards), 1)
        grid.styles.grid_rows = str(card_height(self._plot_rows))
