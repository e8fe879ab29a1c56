"""Two envs, or two runs, side by side: accuracy, loss and the ratio of each slot, on one axis."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from sapflow.sanctum.comparison import NAMES, Side, comparison_lines, last_epoch_of, read_side, side_line
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel, ScrollPanel
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.telemetry.source import Source

LEAST_ROWS, MOST_ROWS = 6, 14  # of a chart, with its title
PAGE = 10  # lines
MOST_DIGITS = 9  # of an env's number


class CompareScreen(SnapshotScreen):
    """A is an env of this run, B another one of it, or one of the other run where the app was given two."""

    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back"),
        Binding("left,h", "turn(1, -1)", "other B", key_display="←→", tooltip="Another env as B"),
        Binding("right,l", "turn(1, 1)", "next B", show=False, tooltip="The next env as B"),
        Binding("left_square_bracket", "turn(0, -1)", "other A", key_display="[ ]", tooltip="Another env as A"),
        Binding("right_square_bracket", "turn(0, 1)", "next A", show=False, tooltip="The next env as A"),
        Binding("slash", "choose(1)", "B", key_display="/", tooltip="The env with a number as B"),
        Binding("backslash", "choose(0)", "A", key_display="\\", tooltip="The env with a number as A"),
        Binding("down,j", "scroll(1)", "scroll", key_display="↑↓", tooltip="Scroll down"),
        Binding("up,k", "scroll(-1)", "scroll up", show=False, tooltip="Scroll up"),
        Binding("pagedown", f"scroll({PAGE})", "page down", show=False, tooltip="A page down"),
        Binding("pageup", f"scroll(-{PAGE})", "page up", show=False, tooltip="A page up"),
    ]

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__()
        self._wanted: list[int | None] = [env_id, None]
        self._sides: list[Side] = [Side(run="", env_id=0), Side(run="", env_id=0)]
        self._choosing = 1
        self._read_for: list[tuple[object, ...]] = [(), ()]

    @property
    def subject(self) -> Subject:
        """A."""
        return Subject(self._sides[0].env_id)

    @property
    def sides(self) -> tuple[Side, Side]:
        """What is compared."""
        return self._sides[0], self._sides[1]

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader()
        yield Panel(id="sides")
        number = Input(type="integer", max_length=MOST_DIGITS, compact=True)
        number.display = False
        yield number
        yield ScrollPanel(id="charts")
        yield KeyBar()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws both as they are at the moment shown."""
        self.query_one(RunHeader).show(snapshot, notice)
        self._read()
        self._draw()

    def _sources(self) -> tuple[Source, Source]:
        app = shell(self)
        return app.source, app.other or app.source

    def _read(self) -> None:
        """Looks up what has changed; where one of the runs cannot be read, both stay as they are."""
        app, ends = shell(self), list[tuple[int, int]]()  # of each side: its env, and that one's last epoch
        for which, source in enumerate(self._sources()):
            with app.look_up(self, source):
                env_id = self._env_of(which, source.envs(), ends[0][0] if which else 0)
                ends.append((env_id, last_epoch_of(source, env_id, app.moment)))
            if len(ends) == which:
                return
        for which, source in enumerate(self._sources()):
            wanted = (*ends[which], min(last for _, last in ends))
            if wanted != self._read_for[which]:
                with app.look_up(self, source):
                    self._sides[which] = read_side(source, *wanted)
                    self._read_for[which] = wanted

    def _env_of(self, which: int, envs: tuple[int, ...], a: int) -> int:
        """The env that was chosen; else for A the first, for B the same one of the other run, or the one after A."""
        wanted = self._wanted[which]
        if wanted in envs or not envs:
            return wanted or 0
        if which == 0:
            return envs[0]
        if shell(self).other is not None:
            return a if a in envs else envs[0]
        return envs[(envs.index(a) + 1) % len(envs)] if a in envs else envs[0]

    def _draw(self) -> None:
        a, b = self.sides
        two_runs = shell(self).other is not None
        self.query_one("#sides", Panel).show(
            (a, b), lambda width, _: [side_line(0, a, two_runs, width), side_line(1, b, two_runs, width)]
        )
        charts = self.query_one("#charts", ScrollPanel)
        number = 2 + len({seed.slot_id for side in (a, b) for payload in side.epochs[-1:] for seed in payload.seeds})
        rows = min(max((self.size.height - 6) // number, LEAST_ROWS), MOST_ROWS)
        charts.show((a, b, rows), lambda width: comparison_lines(a, b, width, rows))

    def action_turn(self, which: int, steps: int) -> None:
        """Takes another env as A or B; of one run, the one that it is compared with is passed over."""
        source = self._sources()[which]
        with shell(self).look_up(self, source):
            envs = source.envs()
            now, other = self._sides[which].env_id, self._sides[1 - which].env_id
            if shell(self).other is None and now != other:
                envs = tuple(env_id for env_id in envs if env_id != other)
            if now in envs:
                self._take(which, envs[(envs.index(now) + steps) % len(envs)])

    def _take(self, which: int, env_id: int) -> None:
        self._wanted = [side.env_id for side in self._sides]
        self._wanted[which] = env_id
        self._read()
        self._draw()

    def action_choose(self, which: int) -> None:
        """Asks for the number of the env that is to be A or B."""
        number = self.query_one(Input)
        self._choosing = which
        number.value, number.placeholder, number.display = "", f"env to take as {NAMES[which]}", True
        number.focus()

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Takes that env, if there is one."""
        self._close_input()
        if not message.value:
            return
        number = message.value.lstrip("0") or "0"
        source = self._sources()[self._choosing]
        with shell(self).look_up(self, source):
            envs = source.envs()
            env_id = next((each for each in envs if str(each) == number), None)
            if env_id is None:
                self.notify(f"there is no env {number}", severity="warning", markup=False)
            elif shell(self).other is None and env_id == self._sides[1 - self._choosing].env_id:
                self.notify(f"env {env_id:02} is {NAMES[1 - self._choosing]}", severity="warning", markup=False)
            else:
                self._take(self._choosing, env_id)

    async def action_leave(self) -> None:
        """Closes the question for a number; without one, the screen."""
        if self.query_one(Input).display:
            self._close_input()
        else:
            await self.run_action("app.back")

    def _close_input(self) -> None:
        self.query_one(Input).display = False
        self.set_focus(None)

    def action_scroll(self, lines: int) -> None:
        """Scrolls through the charts."""
        self.query_one("#charts", ScrollPanel).scroll_lines(lines)
