"""The terminal app: follows a run directory and shows it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from sapflow.errors import InputError, SapflowError
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.glyphs import TERMINAL_COLOURS
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.sanctum.widgets.env_overview import EnvCard, OverviewScreen
from sapflow.sanctum.widgets.help_screen import HelpScreen
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.telemetry.source import Source

BATCH = 2_000  # events between two looks at the keyboard


class SanctumApp(App[None]):
    """Shows what `source` has, and what comes; never writes anything. `clock` gives Unix seconds."""

    TITLE = "Sanctum"
    CSS_PATH = "sanctum.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

    def __init__(self, source: Source, poll_seconds: float = 0.25, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.source = source
        self.clock = clock
        self.poll_seconds = poll_seconds
        self.ansi_theme_dark = TERMINAL_COLOURS
        self.aggregator = SanctumAggregator()
        self._error = ""

    @property
    def snapshot(self) -> SanctumSnapshot:
        """The run as far as it was read."""
        return self.aggregator.snapshot()

    @property
    def notice(self) -> str:
        """What a person should know about following the run: what just went wrong, else the source's own notice."""
        status = self.snapshot.status
        return self._error or (status.notice if status else "")

    def get_default_screen(self) -> Screen[None]:
        """The overview is what everything else lies upon."""
        return OverviewScreen()

    async def on_ready(self) -> None:
        """Begins to follow."""
        await self.follow()

    async def follow(self) -> None:
        """Reads on and shows it; comes again at once while there is more, else after `poll_seconds`."""
        more = self.read_batch()
        await self.show()
        if more:
            self.call_later(self.follow)
        else:
            self.set_timer(self.poll_seconds, self.follow)

    def read_batch(self) -> bool:
        """Takes in the next events, at most BATCH; returns whether there may be more."""
        try:
            events = self.source.read(limit=BATCH)
            status = self.source.status()
        except InputError as error:
            self._error = str(error)
            return False
        self._error = ""
        for event in events:
            self.aggregator.apply(event)
        self.aggregator.apply_status(status)
        return bool(events)

    async def show(self) -> None:
        """Draws the newest snapshot on the active screen."""
        active = self.screen_stack[-1] if self.screen_stack else None  # none is left while the app goes down
        if isinstance(active, SnapshotScreen):
            await active.show(self.snapshot, self.notice)

    async def on_env_card_chosen(self, message: EnvCard.Chosen) -> None:
        """Opens the env's own screen."""
        await self.push_screen(EnvDetailScreen(message.env_id))
        await self.show()

    async def action_back(self) -> None:
        """Closes the screen on top."""
        await self.pop_screen()
        await self.show()

    def action_help(self) -> None:
        """Explains the glyphs and the numbers."""
        self.push_screen(HelpScreen())


def run(run_dir: Path) -> None:
    """Opens the run in `run_dir`, live or finished, until the person quits.

    Raises:
        RunDirectoryError, JournalError: there is no run that can be read.
        SapflowError: the app broke down; it has said how.
    """
    with Source(run_dir) as source:
        app = SanctumApp(source)
        app.run()
    if app.return_code:
        raise SapflowError("Sanctum broke down; the run itself is not touched by that")
