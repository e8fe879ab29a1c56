"""The terminal app: follows a run directory and shows it."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from io import StringIO
from pathlib import Path, PurePath
from typing import ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme as TextualTheme
from textual.timer import Timer

from sapflow.errors import InputError, SapflowError
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.census import Census
from sapflow.sanctum.glyphs import ORANGE, SKY_BLUE, VERMILLION
from sapflow.sanctum.hand import why_not
from sapflow.sanctum.playhead import Playhead
from sapflow.sanctum.rewind import opened, recall
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.screenshot import save, without_web
from sapflow.sanctum.spans import clean
from sapflow.sanctum.themes import DEFAULT, THEMES, Theme
from sapflow.sanctum.widgets.commands import COMMANDS, HAND, screen_for, time_bar
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.sanctum.widgets.env_overview import OverviewScreen
from sapflow.sanctum.widgets.help_screen import HelpScreen
from sapflow.sanctum.widgets.key_bar import working_keys
from sapflow.sanctum.widgets.shell import Subject
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import Source

BATCH = 2_000  # events between two looks at the keyboard
RECALL_SECONDS = 0.03  # between two looks, for what was opened in brief
PLAYED = 2.0  # epochs a second


class SanctumApp(App[None]):
    """Shows what `source` has, and what comes; never writes anything. What it is for its screens: `widgets/shell.py`.

    `clock` gives Unix seconds; with `read_only` nothing can be asked of the trainer. `aggregator` has what is
    known of the run before `source` is read on.
    """

    TITLE = "Sanctum"
    # From here, for subclasses too.
    CSS_PATH: ClassVar[list[str | PurePath]] = [
        Path(__file__).with_name(name) for name in ("sanctum.tcss", "screens.tcss")
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        *(command.binding for command in COMMANDS),
        Binding("ctrl+c", "quit", show=False),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

    def __init__(
        self,
        source: Source,
        poll_seconds: float = 0.25,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        theme: str = DEFAULT,
        aggregator: SanctumAggregator | None = None,
        other: Source | None = None,
    ) -> None:
        super().__init__()
        for each in THEMES.values():
            self.register_theme(as_textual(each))
        self.ansi_theme_dark = self.ansi_theme_light = THEMES[theme].ansi
        self.theme = theme
        self.source = source
        self.other = other
        self.clock = clock
        self.read_only = read_only
        self.poll_seconds = poll_seconds
        self.aggregator = aggregator or SanctumAggregator()
        self.census = Census()
        self._playhead = Playhead(source, self.aggregator.snapshot)
        self._player: Timer | None = None
        self._error = ""
        self._failure = ""
        self._left_out = 0

    @property
    def snapshot(self) -> SanctumSnapshot:
        """The run as far as it was read."""
        return self.aggregator.snapshot()

    @property
    def shown(self) -> SanctumSnapshot:
        """The run at the moment shown."""
        return self._playhead.shown

    @property
    def pace(self) -> float | None:
        """Passes a second now, None while nothing is known."""
        return self.snapshot.passes_per_second or None

    @property
    def lag(self) -> float:
        """Seconds from the newest event that was read to the newest that the journal has."""
        return self.snapshot.lag

    @property
    def moment(self) -> int | None:
        """The epoch shown, None for live."""
        return self._playhead.moment

    @property
    def speed(self) -> float:
        """Epochs a second that are played; 0.0 while paused."""
        return self._playhead.speed

    @property
    def notice(self) -> str:
        """What a person should know about following the run: what just went wrong, else the source's own notice."""
        status = self.snapshot.status
        left_out = f"{self._left_out} events say what cannot be, and are left out" if self._left_out else ""
        return self._error or left_out or (status.notice if status else "")

    @property
    def subject(self) -> Subject:
        """What the person looks at."""
        return self.screen.subject if isinstance(self.screen, SnapshotScreen) else Subject()

    def get_default_screen(self) -> Screen[None]:
        """The overview is what everything else lies upon."""
        return OverviewScreen()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """What the style sheet takes from our themes."""
        return as_textual(THEMES[DEFAULT]).variables

    async def on_ready(self) -> None:
        """Begins to follow."""
        self.theme_changed_signal.subscribe(self, self._recolour)
        # After Ctrl-Z and fg the terminal's other screen is empty, and Textual draws only what changes.
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        if self.other is not None:
            await self.action_compare()
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
            until = time.monotonic() + RECALL_SECONDS
            while not events and recall(self.source, self.aggregator) and time.monotonic() < until:
                pass
        except InputError as error:
            self._error = str(error)
            return False
        self._error = ""
        for event in events:
            self._take_in(event)
        self.aggregator.apply_status(status)
        return bool(events)

    def _take_in(self, event: TelemetryEvent) -> None:
        """One event; one that says what cannot be is left out, and that is said."""
        try:
            self.aggregator.apply(event)
        except Exception as error:
            self.log.error(error)
            self._left_out += 1

    async def show(self) -> None:
        """Draws the moment shown on the topmost screen that follows it; one that fails says so, and the app goes on."""
        stack = reversed(self.screen_stack)  # empty while the app goes down
        active = next((screen for screen in stack if isinstance(screen, SnapshotScreen)), None)
        if active is None:
            return
        try:
            self.census.take(self.shown.envs)
            await active.show(self.shown, self.notice)
            active.show_time(self.shown)
            self._failure = ""
        except Exception as error:
            self.log.error(error)
            if str(error) != self._failure:  # said once, not at every poll
                self.notify(f"this cannot be shown: {type(error).__name__}", severity="error", markup=False)
            self._failure = str(error)

    def go_to(self, epoch: int) -> None:
        """Shows the run as it stood at the end of `epoch`, at least 0 and at most the last one."""
        self._travel(lambda: self._playhead.go_to(epoch))

    def go_live(self) -> None:
        """Shows the newest that is known, and goes on with the run."""
        self._travel(self._playhead.go_live)

    def play(self, speed: float) -> None:
        """Plays `speed` epochs a second from the moment shown on, until the last one, then goes live; 0.0 pauses."""
        self._travel(lambda: self._playhead.play(speed))

    def _travel(self, move: Callable[[], None]) -> None:
        """Moves the playhead and shows where it stands; a moment that cannot be read leaves it where it was."""
        try:
            move()
        except InputError as error:
            self._playhead.speed = 0.0
            self.notify(str(error), severity="error", markup=False)
        if self._player is not None:
            self._player.stop()
        self._player = self.set_timer(1 / self.speed, self._tick) if self.speed else None
        self.call_later(self.show)
        self.refresh_bindings()

    def _tick(self) -> None:
        if self.screen_stack:  # none is left while the app goes down
            self._travel(self._playhead.tick)

    async def on_env_grid_chosen(self, message: EnvGrid.Chosen) -> None:
        """Opens the env's own screen."""
        await self.open(EnvDetailScreen(message.env_id))

    async def open(self, screen: Screen[None]) -> None:
        """Lays `screen` upon the others, and shows the run on it."""
        await self.push_screen(screen)
        await self.show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether the key does something now; what does nothing is not shown."""
        if action == "request":
            return not self._why_not(str(parameters[0]))
        if action == "live":
            return self.moment is not None
        if action == "copy":
            return isinstance(self.screen, SnapshotScreen) and bool(self.screen.card)
        return True

    def _why_not(self, action: str) -> str:
        """Why the trainer cannot be asked to do that to what is looked at; "" if it can."""
        env_id, _, seed_id = self.subject
        return why_not(action, env_id, seed_id, self.snapshot, self.moment, self.read_only)

    def on_key(self, event: events.Key) -> None:
        """A key of the operator's hand that does nothing here says why."""
        action = HAND.get(event.key)
        if action is not None and isinstance(self.screen, SnapshotScreen):
            self.notify(f"cannot {action} here: {self._why_not(action)}", severity="warning", markup=False)

    async def action_back(self) -> None:
        """Closes the screen on top."""
        await self.pop_screen()
        await self.show()

    @property
    def _listed_env(self) -> int | None:
        """Whose events and alerts are listed: those of the run from the overview, else of the env that is looked at."""
        return None if isinstance(self.screen, OverviewScreen) else self.subject.env_id

    async def action_events(self) -> None:
        """Opens the log of events."""
        await self.open(screen_for("event_screen", "EventScreen", self._listed_env))

    async def action_alerts(self) -> None:
        """Opens the alerts."""
        await self.open(screen_for("alert_screen", "AlertScreen", self._listed_env))

    async def action_compare(self) -> None:
        """Opens the comparison."""
        await self.open(screen_for("compare_screen", "CompareScreen", self.subject.env_id))

    async def action_request(self, action: str) -> None:
        """Asks the person whether the trainer is to do this."""
        await self.open(screen_for("request_dialog", "RequestDialog", action, self.subject))

    async def action_time_bar(self) -> None:
        """Shows the time bar, or takes it away."""
        if isinstance(self.screen, SnapshotScreen):
            await self.screen.toggle_time_bar(time_bar)
            await self.show()

    def action_step(self, epochs: int) -> None:
        """Moves by so many epochs."""
        self._travel(lambda: self._playhead.step(epochs))

    def action_play(self) -> None:
        """Plays, or pauses what plays; live, it pauses at the last epoch."""
        self.play(0.0 if self.speed or self.moment is None else PLAYED)

    def action_live(self) -> None:
        """Back to what happens now."""
        self.go_live()

    def action_copy(self) -> None:
        """Puts the card in focus on the clipboard, by way of the terminal."""
        if isinstance(self.screen, SnapshotScreen):
            lines = ["".join(text for text, _ in spans).rstrip() for spans in self.screen.card]
            self.copy_to_clipboard("\n".join(lines) + "\n")
            self.notify(f"{len(lines)} lines copied", timeout=2)

    def action_save(self) -> None:
        """Saves a picture of the screen where Sanctum was started, or hands it to the browser."""
        svg = without_web(self.export_screenshot())
        name = f"sanctum-{clean(self.snapshot.run_id, 40).replace('/', '-') or 'run'}"
        if self.is_web:
            self.deliver_text(StringIO(svg), save_filename=f"{name}.svg")
            return
        try:
            path = save(svg, Path.cwd(), name)
        except OSError as error:
            self.notify(f"no picture could be saved: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"saved {path}", markup=False)

    def action_theme(self) -> None:
        """The next theme."""
        names = list(THEMES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        self.notify(f"theme: {self.theme}", timeout=2)

    def _recolour(self, theme: TextualTheme) -> None:
        """What is drawn keeps its strips: all of it is drawn anew in the new colours."""
        self.ansi_theme_dark = self.ansi_theme_light = THEMES[theme.name].ansi
        for screen in self.screen_stack:
            for view in (*screen.query(SpanView), *screen.query(EnvGrid)):
                view.redraw()

    def action_help(self) -> None:
        """Explains the glyphs, the numbers and the keys."""
        self.push_screen(HelpScreen(working_keys(self.screen)))

    def get_system_commands(self, screen: Screen[None]) -> Iterable[SystemCommand]:
        """What the palette offers: everything that works now."""
        for key in working_keys(screen):
            if key.action != "command_palette":
                yield SystemCommand(key.sentence, f"key {key.keys[0]}", partial(self.run_action, key.action, key.node))


def as_textual(theme: Theme) -> TextualTheme:
    """A theme as Textual takes it."""
    return TextualTheme(
        name=theme.name,
        primary=theme.style(SKY_BLUE),
        warning=theme.style(ORANGE),
        error=theme.style(VERMILLION),
        foreground=theme.text,
        background=theme.ground,
        surface=theme.ground,
        panel=theme.bar,
        dark=theme.dark,
        variables={"bar": theme.bar, "rule": theme.rule},
    )


def run(run_dir: Path, read_only: bool = False, theme: str = DEFAULT, other: Path | None = None) -> None:
    """Opens the run in `run_dir`, live or finished, until the person quits; beside the run in `other`, if one is given.

    Raises:
        RunDirectoryError, JournalError: there is no run that can be read.
        SapflowError: the app broke down; it has said how.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Source(run_dir))
        beside = stack.enter_context(Source(other)) if other is not None else None
        app = SanctumApp(source, read_only=read_only, theme=theme, aggregator=opened(source), other=beside)
        app.run()
    if app.return_code:
        raise SapflowError("Sanctum broke down; the run itself is not touched by that")
