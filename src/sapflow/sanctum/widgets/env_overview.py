"""The overview: every env of the run, the one most in need of a look first; sorted, filtered and searched."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Input

from sapflow.sanctum.arrangement import Order, arranged
from sapflow.sanctum.cells import env_card
from sapflow.sanctum.census import Kind
from sapflow.sanctum.query import HINT
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.spans import DIM, Line, clean, line
from sapflow.sanctum.widgets.count_strip import KINDS, CountStrip
from sapflow.sanctum.widgets.env_grid import Density, EnvGrid
from sapflow.sanctum.widgets.event_log import EventLog
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.search_line import SearchLine
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen

COPIED_WIDTH = 48  # cells of a card that is copied


class OverviewScreen(SnapshotScreen):
    """The run's header, the counts, the grid of its envs, and the latest events."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "filter", key_display="/", tooltip=f"Search: {HINT}"),
        Binding("s", "sort", "sort", tooltip="Sort: worst first, by env, accuracy, loss or ratio"),
        Binding("v", "density", "view", tooltip="View: cards while they fit, always cards, or always dense"),
        Binding("escape", "clear", "clear", tooltip="Show all envs again"),
        *(
            Binding(str(n), f"only({n})", kind.word, show=False, tooltip=f"Only envs with seeds: {kind.word}")
            for n, kind in enumerate(KINDS, 1)
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.order = Order.WORST
        self.density = Density.AUTO
        self.kind: Kind | None = None
        self.search = ""

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        yield RunHeader(trouble=False)
        yield CountStrip()
        yield Panel(id="view-line")
        yield EnvGrid()
        yield EventLog("events")
        with Horizontal(id="search"):
            yield SearchLine(HINT)
        yield KeyBar()

    async def on_mount(self) -> None:
        """The grid has the focus, and the search is not open."""
        self.query_one("#search").display = False
        self.query_one(EnvGrid).focus()

    @property
    def subject(self) -> Subject:
        """The env in focus."""
        return Subject(self.query_one(EnvGrid).cursor)

    @property
    def card(self) -> Sequence[Line]:
        """The card of the env in focus."""
        env = self.query_one(EnvGrid).focused_env
        return () if env is None else env_card(env, COPIED_WIDTH, len(env.seeds))

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws `snapshot`."""
        census = shell(self).census
        envs = arranged(snapshot, census, self.order, self.kind, self.search)
        self.query_one(RunHeader).show(snapshot, notice)
        self.query_one(CountStrip).show(census.total, self.kind)
        view = self._view(len(envs), len(snapshot.envs))
        self.query_one("#view-line", Panel).show(view, lambda width, _: [view])
        self.query_one(EventLog).show(snapshot.log)
        self.query_one(EnvGrid).show(envs, self.density, len(snapshot.envs), self._nothing)

    def _view(self, shown: int, there: int) -> Line:
        """What is shown, and why not all of it."""
        only = f"  only {self.kind.word}" if self.kind else ""
        search = f"  only with “{clean(self.search, 40)}”" if self.search else ""
        some = f"{shown} of {there} envs" if shown < there else f"{there} envs" if there != 1 else "1 env"
        style = "bold" if only or search else DIM
        return line((f"{some}  {self.order}{only}{search}", style))

    @property
    def _nothing(self) -> str:
        """What the grid says where no env is left."""
        wanted = [*([self.kind.word] if self.kind else ()), *([f"“{clean(self.search, 40)}”"] if self.search else ())]
        return f"no env matches {' and '.join(wanted)}"

    async def _again(self) -> None:
        """Draws once more, since the person wants to see it otherwise."""
        self.refresh_bindings()
        app = shell(self)
        await self.show(app.shown, app.notice)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is something to clear only where something is left out; what is being typed is not opened again."""
        if action == "search":
            return not self._searching
        return bool(self.kind or self.search or self._searching) if action == "clear" else True

    async def action_sort(self) -> None:
        """The next order."""
        self.order = self.order.next
        await self._again()

    async def action_density(self) -> None:
        """The next density."""
        self.density = self.density.next
        self.notify(f"view: {self.density}", timeout=2)
        await self._again()

    async def action_only(self, number: int) -> None:
        """Shows only the envs that the n-th count counts; all of them again the second time."""
        kind = KINDS[number - 1]
        self.kind = None if kind is self.kind else kind
        await self._again()

    async def on_count_strip_chosen(self, message: CountStrip.Chosen) -> None:
        """As its key does."""
        await self.action_only(KINDS.index(message.kind) + 1)

    @property
    def _searching(self) -> bool:
        return bool(self.query_one("#search").display)

    def action_search(self) -> None:
        """Opens the search."""
        self.query_one("#search").display = True
        self.query_one(Input).focus()
        self.refresh_bindings()

    async def action_clear(self) -> None:
        """Shows all envs again."""
        self.kind, self.search = None, ""
        self._close_search()
        self.query_one(Input).value = ""
        await self._again()

    async def on_input_changed(self, message: Input.Changed) -> None:
        """Shows at every letter what is found."""
        self.search = message.value
        await self._again()

    def on_input_submitted(self) -> None:
        """Keeps what is found, and goes back to the grid."""
        self._close_search()
        self.refresh_bindings()

    def _close_search(self) -> None:
        self.query_one("#search").display = False
        self.query_one(EnvGrid).focus()

    def on_env_grid_moved(self) -> None:
        """Other keys may work for another env."""
        self.refresh_bindings()
