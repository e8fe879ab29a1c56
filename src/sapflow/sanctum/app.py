"""The terminal app: what can be done while a run is followed, by keys and by the palette, and in which colours."""

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from io import StringIO
from pathlib import Path, PurePath
from typing import ClassVar

from textual import events
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.theme import Theme as TextualTheme

from sapflow.errors import SapflowError
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.following import FollowingApp
from sapflow.sanctum.glyphs import ORANGE, SKY_BLUE, VERMILLION, terminal_has_unicode
from sapflow.sanctum.hand import why_not
from sapflow.sanctum.rewind import opened
from sapflow.sanctum.screenshot import save, without_web
from sapflow.sanctum.spans import clean
from sapflow.sanctum.themes import DEFAULT, THEMES, Theme
from sapflow.sanctum.widgets.alert_screen import AlertScreen
from sapflow.sanctum.widgets.ascii_only import AsciiOnly
from sapflow.sanctum.widgets.commands import COMMANDS, HAND
from sapflow.sanctum.widgets.compare_screen import CompareScreen
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.sanctum.widgets.env_overview import OverviewScreen
from sapflow.sanctum.widgets.event_screen import EventScreen
from sapflow.sanctum.widgets.help_screen import HelpScreen
from sapflow.sanctum.widgets.key_bar import working_keys
from sapflow.sanctum.widgets.request_dialog import RequestDialog
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.source import Source

PLAYED = 2.0  # epochs a second
MINDING_SECONDS = 2.0  # between two looks whether the terminal is there
GC_THRESHOLD = 50_000  # objects: a look at a large run makes as many, and next to none of them lie in cycles


class SanctumApp(FollowingApp):
    """Shows what `source` has, and what comes; never writes anything.

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
        # Over dialogs and the palette, too, which keep all other keys of the app from it.
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
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
        super().__init__(source, poll_seconds, clock, aggregator or SanctumAggregator())
        for each in THEMES.values():
            self.register_theme(as_textual(each))
        self.ansi_theme_dark = self.ansi_theme_light = THEMES[theme].ansi
        self.theme = theme
        self._ascii = AsciiOnly(enabled=not terminal_has_unicode())
        self.other = other
        self.read_only = read_only

    @property
    def offers(self) -> tuple[object, ...]:
        """Why the operator's hand can do nothing, action by action, and the moment shown."""
        return (*super().offers, *(self._why_not(action) for action in HAND.values()))

    def get_default_screen(self) -> Screen[None]:
        """The overview is what everything else lies upon."""
        return OverviewScreen()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """What the style sheet takes from our themes."""
        return as_textual(THEMES[DEFAULT]).variables

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's own, and ours where the terminal has no Unicode."""
        return [*super().get_line_filters(), *([self._ascii] if self._ascii.enabled else ())]

    def get_key_display(self, binding: Binding) -> str:
        """Enter has a name, as on every keyboard."""
        return binding.key if binding.key == "enter" else super().get_key_display(binding)

    async def on_ready(self) -> None:
        """Begins to follow."""
        self.theme_changed_signal.subscribe(self, self._recolour)
        if not (self.is_headless or self.is_web):
            self.set_interval(MINDING_SECONDS, _mind_the_terminal)
        # After Ctrl-Z and fg the terminal's other screen is empty, and Textual draws only what changes.
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        if self.other is not None:
            await self.action_compare()
        await self.follow()

    async def on_env_grid_chosen(self, message: EnvGrid.Chosen) -> None:
        """Opens the env's own screen."""
        await self.open(EnvDetailScreen(message.env_id))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether the key does something now; what does nothing is not shown."""
        if action == "request":
            return not self._why_not(str(parameters[0]))
        if action == "live":
            return self.moment is not None
        if action == "copy":
            return self.looked_at is not None and bool(self.looked_at.card)
        return True

    def _why_not(self, action: str) -> str:
        """Why the trainer cannot be asked to do that to what is looked at; "" if it can."""
        env_id, _, seed_id = self.subject
        return why_not(action, env_id, seed_id, self.snapshot, self.moment, self.read_only)

    def on_key(self, event: events.Key) -> None:
        """A key of the operator's hand that does nothing here says why."""
        action = HAND.get(event.key)
        reason = self._why_not(action) if action is not None and isinstance(self.screen, SnapshotScreen) else ""
        if reason:
            self.notify(f"cannot {action} here: {reason}", severity="warning", markup=False)

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
        await self.open(EventScreen(self._listed_env))

    async def action_alerts(self) -> None:
        """Opens the alerts."""
        await self.open(AlertScreen(self._listed_env))

    async def action_compare(self) -> None:
        """Opens the comparison."""
        await self.open(CompareScreen(self.subject.env_id))

    async def action_request(self, action: str) -> None:
        """Asks the person whether the trainer is to do this."""
        await self.open(RequestDialog(action, self.subject))

    async def action_time_bar(self) -> None:
        """Shows the time bar, or takes it away."""
        if isinstance(self.screen, SnapshotScreen):
            await self.screen.toggle_time_bar()
            await self.show()

    def action_step(self, epochs: int) -> None:
        """Moves by so many epochs."""
        self.step(epochs)

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


def _mind_the_terminal() -> None:
    """Hangs up where the terminal did so unheard: a process that was detached from it is not told."""
    if sys.__stdin__ is None or not sys.__stdin__.isatty():
        signal.raise_signal(signal.SIGHUP)


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
    gc.set_threshold(GC_THRESHOLD)
    with ExitStack() as stack:
        source = stack.enter_context(Source(run_dir))
        beside = stack.enter_context(Source(other)) if other is not None else None
        app = SanctumApp(source, read_only=read_only, theme=theme, aggregator=opened(source), other=beside)
        app.run()
    if app.return_code:
        raise SapflowError("Sanctum broke down; the run itself is not touched by that")
