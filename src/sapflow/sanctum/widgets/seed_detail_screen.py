"""One slot: its ratio, pass by pass and epoch by epoch, its norms, their spread, its alerts and its life."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid

from sapflow.sanctum.formatting import card_height, seed_card
from sapflow.sanctum.schema import EnvState, EnvStatus, SanctumSnapshot, SeedState
from sapflow.sanctum.slot_history import SlotHistory, SlotReader
from sapflow.sanctum.slot_panels import both_fit, history_lines, slot_line, spread_panel, story_lines
from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel, ScrollPanel
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen

WINDOWS = (128, 32, 8, 2)  # epochs
WIDE = 140  # cells from which on the card stands beside the charts
CARD_WIDTH = 46
COPIED_WIDTH = 60  # of the card, where it is copied
PLOT_ROWS = 3


class SeedDetailScreen(SnapshotScreen):
    """Follows one slot until escape; what is older than the snapshot comes from the journal by index."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "back"),
        Binding("plus,equals_sign", "zoom(1)", "zoom", key_display="+-", tooltip="Fewer epochs"),
        Binding("minus", "zoom(-1)", "wider", show=False, tooltip="More epochs"),
        Binding("left,h", "pan(-1)", "pan", key_display="←→", tooltip="Earlier epochs"),
        Binding("right,l", "pan(1)", "later epochs", show=False, tooltip="Later epochs"),
        Binding("tab", "slot(1)", "slot", tooltip="The next slot of the env"),
        Binding("shift+tab", "slot(-1)", "previous slot", show=False, tooltip="The slot before"),
        Binding("n", "norms", "norms", tooltip="The norms in place of the ratio, where only one has room"),
        Binding("down,j", "scroll(1)", "scroll", show=False, tooltip="Scroll down"),
        Binding("up,k", "scroll(-1)", "scroll up", show=False, tooltip="Scroll up"),
    ]

    def __init__(self, env_id: int, slot_id: str) -> None:
        super().__init__()
        self.env_id = env_id
        self.slot_id = slot_id
        self._seed = SeedState(slot_id=slot_id)
        self._env = EnvState(env_id=env_id)
        self._window = 0  # epochs that are shown, 0 for all of them
        self._end: int | None = None  # the last epoch of a window that was panned; else it goes on with the run
        self._norms = False
        self._reader: SlotReader | None = None
        self.history = SlotHistory(first=1, last=1)
        self._read_for: tuple[object, ...] = ()

    @property
    def subject(self) -> Subject:
        """The seed."""
        return Subject(self.env_id, self.slot_id, self._seed.seed_id)

    @property
    def card(self) -> Sequence[Line]:
        """The seed's."""
        return seed_card(self._seed, COPIED_WIDTH)

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield Panel(id="slot-line")
        with Grid():
            yield Panel(id="history")
            yield Panel(id="card")
            yield Panel(id="spread")
            yield ScrollPanel(id="story")
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the slot as it is in `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        self._env = snapshot.envs.get(self.env_id, self._env)
        self._seed = self._env.seeds.get(self.slot_id, SeedState(slot_id=self.slot_id))
        self._read()
        self._draw()

    def _read(self) -> None:
        """Looks up what is shown and not yet known."""
        first, done, live = self._epochs()
        wanted = (self.slot_id, first, done, live, self._seed.newest_sample, self._env.last_sequence, self.size.width)
        if wanted == self._read_for:
            return
        if self._reader is None:
            self._reader = SlotReader(shell(self).source, self.env_id, self.slot_id)
        with shell(self).look_up(self):
            self.history = self._reader.read(first, done, max(self.size.width, 2), live)
            if self.history.whole:  # else the next look reads on
                self._read_for = wanted

    def _epochs(self) -> tuple[int, int, bool]:
        """The first and the last epoch that are shown, and whether the one that runs is, too."""
        newest = self._newest
        last = newest if self._end is None else max(min(self._end, newest), min(self._window, newest))
        live = last > self._env.epoch
        return (max(last - self._window + 1, 1) if self._window else 1), last - live, live

    @property
    def _newest(self) -> int:
        """The last epoch there is, the one that runs included."""
        running = shell(self).moment is None and self._env.status is EnvStatus.TRAINING
        return self._env.epoch + running

    def _draw(self) -> None:
        env, seed, history, norms = self._env, self._seed, self.history, self._norms
        first, done, live = self._epochs()
        window = f"epochs {first} – {max(done + live, first)}"
        mine = tuple(alert for alert in env.open_alerts if alert.slot_id == self.slot_id)
        self._panel("slot-line").show((seed, window), lambda width, _: [slot_line(env.env_id, seed, window, width)])
        self._panel("history").show((history, norms), lambda w, h: history_lines(history, w, h, norms))
        self._panel("card").show(seed, lambda width, _: seed_card(seed, width, PLOT_ROWS))
        self._panel("spread").show((history, seed), lambda w, h: spread_panel(history, seed, w, h))
        story = self.query_one("#story", ScrollPanel)
        self.offer_for((self._windows, self._window, len(env.seeds), env.status, seed.seed_id, seed.stage, seed.paused))
        story.show((history, mine), lambda width: story_lines(env.env_id, history, mine, width))

    def _panel(self, name: str) -> Panel:
        return self.query_one(f"#{name}", Panel)

    def on_resize(self, event: events.Resize) -> None:
        """Where there is room, the card and the rest stand beside the charts; else below them, without the card."""
        wide = event.size.width >= WIDE
        room = max(event.size.height - 4, 1)
        card = self._panel("card")
        card.display = wide
        spans = self._panel("history").styles
        grid = self.query_one(Grid).styles
        grid.grid_size_columns = 2
        if wide:
            spread = min(max(room - card_height(PLOT_ROWS) - 10, 5), 9)
            grid.grid_columns, grid.grid_rows = f"1fr {CARD_WIDTH}", f"{card_height(PLOT_ROWS)} {spread} 1fr"
            spans.row_span, spans.column_span = 3, 1
        else:
            charts = max(room - 7, 12) if room < 24 else room * 2 // 3
            grid.grid_columns, grid.grid_rows = "2fr 3fr", f"{charts} 1fr"
            spans.row_span, spans.column_span = 1, 2
        self.call_after_refresh(self.refresh_bindings)  # once the charts have their room

    @property
    def _windows(self) -> list[int]:
        """The windows that show less than all epochs, behind the one that shows all."""
        return [0, *(window for window in WINDOWS if window < self._env.epoch)]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what would change something is offered."""
        offered = {
            "zoom": len(self._windows) > 1,
            "pan": 0 < self._window < self._env.epoch,
            "slot": len(self._env.seeds) > 1,
            "norms": not both_fit(self._panel("history").size.height),
        }
        return offered.get(action, True)

    def action_zoom(self, steps: int) -> None:
        """Shows fewer epochs, or more."""
        windows = self._windows
        at = windows.index(self._window) if self._window in windows else 0
        self._window = windows[min(max(at + steps, 0), len(windows) - 1)]
        if not self._window:
            self._end = None
        self._again()

    def action_pan(self, steps: int) -> None:
        """Moves through the epochs by half of what is shown."""
        _, done, live = self._epochs()
        end = done + live + steps * max(self._window // 2, 1)
        self._end = max(end, self._window) if end < self._newest else None
        self._again()

    def action_slot(self, steps: int) -> None:
        """Goes on to the next slot of the env."""
        slots = list(self._env.seeds)
        if self.slot_id in slots:
            self.slot_id = slots[(slots.index(self.slot_id) + steps) % len(slots)]
            self._seed = self._env.seeds[self.slot_id]
            self._reader = None
            self._again()

    def action_norms(self) -> None:
        """Shows the norms in place of the ratio, or the ratio again."""
        self._norms = not self._norms
        self._draw()

    def action_scroll(self, lines: int) -> None:
        """Scrolls through alerts and events."""
        self.query_one("#story", ScrollPanel).scroll_lines(lines)

    def _again(self) -> None:
        self._read()
        self._draw()
