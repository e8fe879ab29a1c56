"""Two envs, or two runs, side by side: accuracy, loss and the ratio of each slot, on one axis."""

from contextlib import suppress
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from sapflow.errors import InputError
from sapflow.sanctum.comparison import Side, comparison_lines, last_epoch_of, read_side, side_line
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel, ScrollPanel
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.telemetry.source import Source

LEAST_ROWS, MOST_ROWS = 6, 14  # of a chart, with its title
PAGE = 10  # lines


class CompareScreen(SnapshotScreen):
    """A is an env of this run, B another one of it, or one of the other run where the app was given two."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "back"),
        Binding("left,h", "turn(1, -1)", "other B", key_display="←→", tooltip="Another env as B"),
        Binding("right,l", "turn(1, 1)", "next B", show=False, tooltip="The next env as B"),
        Binding("left_square_bracket", "turn(0, -1)", "other A", key_display="[ ]", tooltip="Another env as A"),
        Binding("right_square_bracket", "turn(0, 1)", "next A", show=False, tooltip="The next env as A"),
        Binding("down,j", "scroll(1)", "scroll", key_display="↑↓", tooltip="Scroll down"),
        Binding("up,k", "scroll(-1)", "scroll up", show=False, tooltip="Scroll up"),
        Binding("pagedown", f"scroll({PAGE})", "page down", show=False, tooltip="A page down"),
        Binding("pageup", f"scroll(-{PAGE})", "page up", show=False, tooltip="A page up"),
    ]

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__()
        self._wanted: list[int | None] = [env_id, None]
        self._sides: list[Side] = [Side(run="", env_id=0), Side(run="", env_id=0)]
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
        """Looks up what has changed; a journal that cannot be read is said in the header."""
        with suppress(InputError):
            for which, source in enumerate(self._sources()):
                env_id = self._env_of(which, source.envs())
                last = last_epoch_of(source, env_id, shell(self).moment)
                if (env_id, last) != self._read_for[which]:
                    self._sides[which] = read_side(source, env_id, last)
                    self._read_for[which] = (env_id, last)

    def _env_of(self, which: int, envs: tuple[int, ...]) -> int:
        """The env that was chosen; else for A the first, and for B the same one of the other run, or the next."""
        wanted = self._wanted[which]
        if wanted in envs or not envs:
            return wanted or 0
        if which == 0:
            return envs[0]
        a = self._sides[0].env_id
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
        """Takes another env as A or B."""
        with suppress(InputError):
            envs = self._sources()[which].envs()
            now = self._sides[which].env_id
            if now in envs:
                self._wanted = [side.env_id for side in self._sides]
                self._wanted[which] = envs[(envs.index(now) + steps) % len(envs)]
        self._read()
        self._draw()

    def action_scroll(self, lines: int) -> None:
        """Scrolls through the charts."""
        self.query_one("#charts", ScrollPanel).scroll_lines(lines)
