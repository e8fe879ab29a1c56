"""The time bar: any moment of the run, by keys and by clicks, while the run goes on."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.spans import Line
from sapflow.sanctum.stretch import Stretch
from sapflow.sanctum.time_line import MARK_LIMIT, RANKS, TimeLine, time_lines
from sapflow.sanctum.widgets.shell import shell
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import RunState

SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # epochs a second
LEAP = 10  # epochs


class TimeBar(SpanView, can_focus=True):
    """Shows where the moment lies; what moves it is the app's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "step", key_display="←→", tooltip="One epoch back"),
        Binding("right,l", "step(1)", "on", show=False, tooltip="One epoch on"),
        Binding("pageup", f"step(-{LEAP})", "leap back", show=False, tooltip=f"{LEAP} epochs back"),
        Binding("pagedown", f"step({LEAP})", "leap on", show=False, tooltip=f"{LEAP} epochs on"),
        Binding("left_square_bracket", "mark(-1)", "mark before", show=False, tooltip="To the mark before"),
        Binding("right_square_bracket", "mark(1)", "next mark", show=False, tooltip="To the next mark"),
        Binding("home", "go(0)", "begin", show=False, tooltip="To the beginning"),
        Binding("end", "app.live", "live", show=False, tooltip="Back to what happens now"),
        Binding("plus,equals_sign,greater_than_sign", "speed(1)", "faster", show=False, tooltip="Play faster"),
        Binding("minus,less_than_sign", "speed(-1)", "slower", show=False, tooltip="Play slower"),
        Binding("escape", "app.time_bar", "close the time bar", show=False, tooltip="Close the time bar"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._time = TimeLine(last=0, expected=0, moment=None, speed=0.0)
        self._marks: Sequence[TelemetryEvent] = ()
        self._stretch: Stretch | None = None

    def on_mount(self) -> None:
        """The arrows are for it, and what scrolls makes room."""
        self.screen.add_class("timed")
        self.focus()

    def on_unmount(self) -> None:
        """There is room again."""
        self.screen.remove_class("timed")

    def show(self, snapshot: SanctumSnapshot) -> None:
        """Draws where the moment shown lies in the run as it is now."""
        app = shell(self)
        live = app.snapshot
        last = max((env.epoch for env in live.envs.values()), default=0)
        expected = live.expected_epochs or max((env.epochs for env in live.envs.values()), default=0)
        running = live.status is None or live.status.state is RunState.LIVE
        time = TimeLine(last=last, expected=expected, moment=app.moment, speed=app.speed, running=running)
        if self._look_for_marks() or time != self._time:
            self._time = time
            self.redraw()

    def _look_for_marks(self) -> bool:
        """Looks up what is to be marked and not yet known; returns whether there was any."""
        app, known = shell(self), self._marks
        with app.look_up(self):
            if self._stretch is None:
                stretch = Stretch(app.source, tuple(RANKS), None)
                self._marks, self._stretch = stretch.look_back(MARK_LIMIT), stretch
            new = self._stretch.look_on()
            if new:
                self._marks = [*self._marks, *new][-MARK_LIMIT:]
        return self._marks is not known

    def build(self, width: int) -> Sequence[Line]:
        """The bar at `width` cells."""
        return time_lines(self._time, self._marks, max(width, 1))

    def on_click(self, event: events.Click) -> None:
        """Goes to the epoch that was clicked at."""
        width = self.content_size.width
        shell(self).go_to(self._time.epoch_at(event.x - self.styles.padding.left, width))

    def action_step(self, epochs: int) -> None:
        """Moves by so many epochs, and stands still."""
        self.action_go(self._time.shown + epochs)

    def action_go(self, epoch: int) -> None:
        """Goes to the end of an epoch."""
        shell(self).play(0.0)
        shell(self).go_to(epoch)

    def action_mark(self, direction: int) -> None:
        """Goes to the next epoch in which something is marked, if there is one."""
        shown = self._time.shown
        ahead = [mark.epoch or 0 for mark in self._marks if ((mark.epoch or 0) - shown) * direction > 0]
        if ahead:
            self.action_go(min(ahead, key=lambda epoch: abs(epoch - shown)))

    def action_speed(self, steps: int) -> None:
        """Plays faster or slower; what stands still begins to play."""
        app = shell(self)
        at = SPEEDS.index(app.speed) + steps if app.speed in SPEEDS else SPEEDS.index(2.0)
        app.play(SPEEDS[min(max(at, 0), len(SPEEDS) - 1)])
