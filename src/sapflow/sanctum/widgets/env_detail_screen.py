"""One env: a card for each of its slots, its open alerts and its events."""

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, VerticalScroll
from textual.message import Message

from sapflow.errors import InputError
from sapflow.sanctum.formatting import card_height, seed_card
from sapflow.sanctum.hand import pending_lines
from sapflow.sanctum.panels import env_line
from sapflow.sanctum.schema import EnvState, SanctumSnapshot, SeedState
from sapflow.sanctum.spans import Line, fit
from sapflow.sanctum.widgets.event_log import EventLog
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import TallPanel
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.seed_detail_screen import SeedDetailScreen
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.mailbox import Mailbox, Request

MIN_CARD_WIDTH = 33
SMALL_PLOT, LARGE_PLOT = 3, 7  # rows
CARDS_SHARE = 55  # percent of the screen's lines that the cards may take by taller plots
SCROLL_STEP = 3  # lines
COPIED_WIDTH = 60  # cells of a card that is copied


class SeedCard(SpanView, can_focus=True):
    """One slot: the gradient line of TELE-557, and everything that stands behind it; chosen by enter or a click."""

    class Chosen(Message):
        """The person wants to see the slot's own screen."""

        def __init__(self, slot_id: str) -> None:
            super().__init__()
            self.slot_id = slot_id

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "seed", tooltip="The seed's own screen")]

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
        return seed_card(self.seed, width, self.plot_rows, self.has_focus)

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
        """Says that this slot was chosen."""
        self.post_message(self.Chosen(self.seed.slot_id))


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


class SeedCards(VerticalScroll, can_focus=False, inherit_bindings=False):
    """The cards in a grid; the arrows are the screen's, which moves the focus, too."""

    def compose(self) -> ComposeResult:
        """An empty grid."""
        yield Grid()


class EnvDetailScreen(SnapshotScreen):
    """Follows one env until escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "overview"),
        Binding("left,h", "move(-1, 0)", "move", key_display="←↓↑→", tooltip="To the card on the left"),
        Binding("right,l", "move(1, 0)", "right", show=False, tooltip="To the card on the right"),
        Binding("up,k", "move(0, -1)", "up", show=False, tooltip="Scroll up, or to the card above"),
        Binding("down,j", "move(0, 1)", "down", show=False, tooltip="Scroll down, or to the card below"),
    ]

    def __init__(self, env_id: int) -> None:
        super().__init__()
        self.env_id = env_id

    @property
    def subject(self) -> Subject:
        """The seed in focus."""
        seed = self._focused_seed
        return Subject(self.env_id, seed.slot_id, seed.seed_id) if seed else Subject(self.env_id)

    @property
    def card(self) -> Sequence[Line]:
        """The card in focus."""
        seed = self._focused_seed
        return seed_card(seed, COPIED_WIDTH) if seed else ()

    @property
    def _focused_seed(self) -> SeedState | None:
        return next((card.seed for card in self.query(SeedCard) if card.has_focus), None)

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield EnvLine(EnvState(env_id=self.env_id))
        yield SeedCards()
        yield TallPanel(id="asked")
        yield EventLog(f"events of env {self.env_id:02}")
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the env as it is in `snapshot`; before the env began, it has nothing."""
        self.query_one(RunHeader).show(snapshot, notice)
        env = snapshot.envs.get(self.env_id, EnvState(env_id=self.env_id))
        self.query_one(EnvLine).show(env)
        self.query_one(EventLog).show(env.log, env)
        self._show_requests(env)
        seeds = list(env.seeds.values())
        cards = list(self.query(SeedCard))
        for card in cards[len(seeds) :]:
            await card.remove()
        if len(seeds) > len(cards):
            await self.query_one(Grid).mount(*(SeedCard(seed) for seed in seeds[len(cards) :]))
        self._draw(seeds)
        focused = self._focused_seed
        self.offer_for(focused and (env.status, focused.seed_id, focused.stage, focused.paused))

    def _show_requests(self, env: EnvState) -> None:
        """What was asked of the env, by whomever, and not yet answered."""
        pending: list[Request] = []
        with suppress(InputError):  # a folder that cannot be read is said to who asks
            pending = Mailbox(shell(self).source.run_dir).pending()
        lines = pending_lines(pending, env)
        self.query_one("#asked", TallPanel).show(tuple(lines), lambda width, _: [fit(line, width) for line in lines])

    def _draw(self, seeds: Sequence[SeedState]) -> None:
        """As many columns, and as tall a plot, as there is room for."""
        columns = max(min(self.size.width // MIN_CARD_WIDTH, len(seeds)), 1)
        rows = -(-len(seeds) // columns) or 1
        room = self.size.height * CARDS_SHARE // 100 // rows - card_height(0)
        plot_rows = min(max((room - 1) // 2 * 2 + 1, SMALL_PLOT), LARGE_PLOT)
        cards = list(self.query(SeedCard))
        for card, seed in zip(cards, seeds, strict=True):
            card.show(seed, plot_rows)
        grid = self.query_one(Grid).styles
        grid.grid_size_columns = columns
        grid.grid_rows = str(card_height(plot_rows))
        if cards and self.focused is None:
            cards[0].focus(scroll_visible=False)

    async def on_seed_card_chosen(self, message: SeedCard.Chosen) -> None:
        """Opens the slot's own screen."""
        await shell(self).open(SeedDetailScreen(self.env_id, message.slot_id))

    def action_move(self, right: int, down: int) -> None:
        """Moves the focus over the cards; what is hidden of a card is scrolled into view first."""
        cards = list(self.query(SeedCard))
        at = next((n for n, card in enumerate(cards) if card.has_focus), None)
        if at is None:
            return
        view = self.query_one(SeedCards)
        card, seen = cards[at].region, view.content_region
        if (down > 0 and card.bottom > seen.bottom) or (down < 0 and card.y < seen.y):
            view.scroll_relative(y=SCROLL_STEP * down, animate=False)
            return
        columns = self.query_one(Grid).styles.grid_size_columns
        target = at + right + down * columns
        if 0 <= target < len(cards):
            cards[target].focus(scroll_visible=False)
            view.scroll_to_widget(cards[target], animate=False, top=down > 0)

    def on_resize(self, event: events.Resize) -> None:
        """There is more room, or less."""
        self._draw([card.seed for card in self.query(SeedCard)])
