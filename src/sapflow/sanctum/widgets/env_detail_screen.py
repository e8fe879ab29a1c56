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
from sapflow.sanctum.widgets.panel import Panel, TallPanel
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


class SeedCard(SpanView):
    """One slot: the gradient line of TELE-557, and everything that stands behind it; a click opens it.

    The screen knows which card its keys are about, and the card shows it: Textual's focus would leave the card
    whenever the time bar opens or the terminal's window is not the one in front.
    """

    class Clicked(Message):
        """The person wants to see the slot's own screen."""

        def __init__(self, card: "SeedCard") -> None:
            super().__init__()
            self.card = card

    def __init__(self, seed: SeedState) -> None:
        super().__init__()
        self.seed = seed
        self.plot_rows = SMALL_PLOT
        self.chosen = False

    def show(self, seed: SeedState, plot_rows: int, chosen: bool) -> None:
        """Draws `seed`, if anything about it changed; the chosen card has a heavy frame."""
        if seed is not self.seed or (plot_rows, chosen) != (self.plot_rows, self.chosen):
            self.seed, self.plot_rows, self.chosen = seed, plot_rows, chosen
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The card at `width` cells."""
        return seed_card(self.seed, width, self.plot_rows, self.chosen)

    def on_click(self) -> None:
        """Says so."""
        self.post_message(self.Clicked(self))


class SeedCards(VerticalScroll, can_focus=False, inherit_bindings=False):
    """The cards in a grid; the arrows are the screen's, which goes from card to card, too."""

    def compose(self) -> ComposeResult:
        """An empty grid."""
        yield Grid()


class EnvDetailScreen(SnapshotScreen):
    """Follows one env until escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "seed", tooltip="The seed's own screen"),
        Binding("escape", "app.back", "overview"),
        Binding("left,h", "move(-1, 0)", "move", key_display="←↓↑→", tooltip="To the card on the left"),
        Binding("right,l", "move(1, 0)", "right", show=False, tooltip="To the card on the right"),
        Binding("up,k", "move(0, -1)", "up", show=False, tooltip="Scroll up, or to the card above"),
        Binding("down,j", "move(0, 1)", "down", show=False, tooltip="Scroll down, or to the card below"),
        Binding("tab", "slot(1)", "next", show=False, tooltip="The next card"),
        Binding("shift+tab", "slot(-1)", "before", show=False, tooltip="The card before"),
    ]

    def __init__(self, env_id: int) -> None:
        super().__init__()
        self.env_id = env_id
        self._slot_id = ""  # as the person chose it; at a moment without that slot the first one stands in

    @property
    def subject(self) -> Subject:
        """The chosen seed."""
        chosen = self._chosen
        return Subject(self.env_id, chosen.seed.slot_id, chosen.seed.seed_id) if chosen else Subject(self.env_id)

    @property
    def card(self) -> Sequence[Line]:
        """The chosen card."""
        chosen = self._chosen
        return seed_card(chosen.seed, COPIED_WIDTH) if chosen else ()

    @property
    def _chosen(self) -> SeedCard | None:
        return next((card for card in self.query(SeedCard) if card.chosen), None)

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield Panel(id="env-line")
        yield SeedCards()
        yield TallPanel(id="asked")
        yield EventLog(f"events of env {self.env_id:02}")
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the env as it is in `snapshot`; before the env began, it has nothing."""
        self.query_one(RunHeader).show(snapshot, notice)
        env = snapshot.envs.get(self.env_id, EnvState(env_id=self.env_id))
        self.query_one("#env-line", Panel).show(env, lambda width, _: [env_line(env, width)])
        self.query_one(EventLog).show(env.log, env)
        self._show_requests(env)
        seeds = list(env.seeds.values())
        cards = list(self.query(SeedCard))
        for card in cards[len(seeds) :]:
            await card.remove()
        if len(seeds) > len(cards):
            await self.query_one(Grid).mount(*(SeedCard(seed) for seed in seeds[len(cards) :]))
        self._draw(seeds)
        chosen = self._chosen.seed if self._chosen is not None else None
        self.offer_for(chosen and (env.status, chosen.seed_id, chosen.stage, chosen.paused))

    def _show_requests(self, env: EnvState) -> None:
        """What was asked of the env, by whomever, and not yet answered."""
        pending: list[Request] = []
        app = shell(self)
        if app.moment is None:  # what waits, waits for the end of the epoch that runs
            with suppress(InputError):  # a folder that cannot be read is said to who asks
                pending = Mailbox(app.source.run_dir).pending()
        lines = pending_lines(pending, env)
        self.query_one("#asked", TallPanel).show(tuple(lines), lambda width, _: [fit(line, width) for line in lines])

    def _draw(self, seeds: Sequence[SeedState]) -> None:
        """As many columns, and as tall a plot, as there is room for."""
        columns = max(min(self.size.width // MIN_CARD_WIDTH, len(seeds)), 1)
        rows = -(-len(seeds) // columns) or 1
        room = self.size.height * CARDS_SHARE // 100 // rows - card_height(0)
        plot_rows = min(max((room - 1) // 2 * 2 + 1, SMALL_PLOT), LARGE_PLOT)
        slots = [seed.slot_id for seed in seeds]
        chosen = slots.index(self._slot_id) if self._slot_id in slots else 0
        for n, (card, seed) in enumerate(zip(self.query(SeedCard), seeds, strict=True)):
            card.show(seed, plot_rows, n == chosen)
        grid = self.query_one(Grid).styles
        grid.grid_size_columns = columns
        grid.grid_rows = str(card_height(plot_rows))

    async def on_seed_card_clicked(self, message: SeedCard.Clicked) -> None:
        """Opens the slot's own screen."""
        self._choose(message.card)
        await self.action_open()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """An env without slots has no seed to open."""
        return action != "open" or self._chosen is not None

    async def action_open(self) -> None:
        """Opens the chosen slot's own screen."""
        if self._chosen is not None:
            await shell(self).open(SeedDetailScreen(self.env_id, self._chosen.seed.slot_id))

    def action_move(self, right: int, down: int) -> None:
        """Goes from card to card; what is hidden of a card is scrolled into view first."""
        cards, chosen = list(self.query(SeedCard)), self._chosen
        if chosen is None:
            return
        view = self.query_one(SeedCards)
        card, seen = chosen.region, view.content_region
        if (down > 0 and card.bottom > seen.bottom) or (down < 0 and card.y < seen.y):
            view.scroll_relative(y=SCROLL_STEP * down, animate=False)
            return
        columns = self.query_one(Grid).styles.grid_size_columns
        target = cards.index(chosen) + right + down * columns
        if 0 <= target < len(cards):
            self._choose(cards[target], top=down > 0)

    def action_slot(self, steps: int) -> None:
        """Goes on to the next card, from the last one to the first."""
        cards, chosen = list(self.query(SeedCard)), self._chosen
        if chosen is not None:
            self._choose(cards[(cards.index(chosen) + steps) % len(cards)])

    def _choose(self, card: SeedCard, top: bool = False) -> None:
        self._slot_id = card.seed.slot_id
        self._draw([each.seed for each in self.query(SeedCard)])
        self.query_one(SeedCards).scroll_to_widget(card, animate=False, top=top)
        self.refresh_bindings()

    def on_resize(self, event: events.Resize) -> None:
        """There is more room, or less."""
        self._draw([card.seed for card in self.query(SeedCard)])
