"""The base of the screens that list things: rows, and a search that narrows them while it is typed."""

from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from sapflow.sanctum.query import HINT
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import Panel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.run_header import RunHeader
from sapflow.sanctum.widgets.search_line import SearchLine
from sapflow.sanctum.widgets.seed_detail_screen import SeedDetailScreen
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen

Row = TypeVar("Row")
LEAST_SLOT, MOST_SLOT = 4, 20  # cells


class ListScreen(SnapshotScreen, Generic[Row]):
    """Its Input is there while it is used; `text` is what is searched for, `env_id` None for all envs.

    What a row is, how it is drawn and what it is about, a subclass says; and which `choices` there are of rows.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "forget", "clear search", tooltip="Forget the search"),
        Binding("escape", "leave", "back"),
        Binding("slash", "search", "search", key_display="/", tooltip=f"Search: {HINT}"),
        Binding("0", "everywhere", "all envs", show=False, tooltip="All envs"),
    ]

    AUTO_FOCUS = "RowList"

    def __init__(self, env_id: int | None = None) -> None:
        super().__init__()
        self.env_id = env_id
        self.text = ""
        self.choice = "all"
        self.snapshot = SanctumSnapshot()

    def make_rows(self) -> RowList[Row]:
        """A list for the rows."""
        raise NotImplementedError

    def below(self) -> Iterable[Widget]:
        """What stands below the list."""
        return ()

    def about(self, row: Row) -> Subject:
        """What a row is about."""
        raise NotImplementedError

    def draw(self) -> None:
        """Draws what is found now."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        """From the top to the bottom."""
        search = SearchLine(HINT)
        search.display = False
        yield RunHeader()
        yield Panel(id="filter")
        yield search
        yield self.make_rows()
        yield from self.below()
        yield KeyBar()

    @property
    def rows(self) -> RowList[Row]:
        """The rows."""
        return self.query_one(RowList)

    @property
    def subject(self) -> Subject:
        """What the row under the cursor is about."""
        row = self.rows.chosen
        return Subject() if row is None else self.about(row)

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws what is found in `snapshot`."""
        self.query_one(RunHeader).show(snapshot, notice)
        self.snapshot = snapshot
        self.draw()

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        """Another row has the cursor."""
        self.draw()

    async def on_row_list_chosen(self) -> None:
        """Opens the seed that the row is about."""
        env_id, slot_id, _ = self.subject
        envs = self.snapshot.envs
        if env_id is not None and (slot_id or (env_id in envs and slot_id in envs[env_id].seeds)):
            await shell(self).open(SeedDetailScreen(env_id, slot_id))

    def action_search(self) -> None:
        """Opens the search."""
        search = self.query_one(Input)
        search.display = True
        search.focus()
        self.refresh_bindings()

    def on_input_changed(self, event: Input.Changed) -> None:
        """What is typed is searched for at once."""
        self.text = event.value
        self.draw()

    def on_input_submitted(self) -> None:
        """Back to what was found."""
        self.rows.focus()
        self.query_one(Input).display = bool(self.text)
        self.refresh_bindings()

    def action_only(self, choice: str) -> None:
        """Shows rows of that choice alone."""
        self.choice = choice
        self.draw()

    def action_everywhere(self) -> None:
        """Shows all envs."""
        self.env_id = None
        self.draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Escape forgets the search while there is one; what is being typed is not opened again."""
        lines = self.query(Input)  # none before the screen is there
        if action == "search":
            return not any(search.has_focus for search in lines)
        if action in ("forget", "leave"):
            return any(search.display for search in lines) is (action == "forget")
        return True

    def action_forget(self) -> None:
        """Closes the search and forgets it."""
        search = self.query_one(Input)
        search.value = ""
        search.display = False
        self.rows.focus()
        self.refresh_bindings()

    async def action_leave(self) -> None:
        """Closes the screen."""
        await self.run_action("app.back")


def choices(names: Iterable[str], of: str = "") -> list[BindingType]:
    """The keys 1, 2 ... for the choices of these names."""
    return [
        Binding(str(number), f"only('{name}')", name, show=False, tooltip=f"Show {name}{of}")
        for number, name in enumerate(names, start=1)
    ]


def slot_width(slot_ids: Iterable[str]) -> int:
    """Cells for a column of slots."""
    return min(max([LEAST_SLOT, *map(len, slot_ids)]), MOST_SLOT)
