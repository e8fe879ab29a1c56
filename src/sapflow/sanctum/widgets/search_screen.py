"""The base of the screens that list things: a search that narrows the list while it is typed."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from sapflow.sanctum.query import HINT
from sapflow.sanctum.widgets.search_line import SearchLine
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen


class SearchScreen(SnapshotScreen):
    """Has an Input, which is there while it is used; `text` is what is searched for, `env_id` None for all envs."""

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

    def draw(self) -> None:
        """Draws what is found now."""
        raise NotImplementedError

    def focus_list(self) -> None:
        """Gives the focus back to the list."""
        raise NotImplementedError

    def search_input(self) -> Input:
        """The Input, hidden at first."""
        search = SearchLine(HINT)
        search.display = False
        return search

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
        self.focus_list()
        self.query_one(Input).display = bool(self.text)
        self.refresh_bindings()

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
        self.focus_list()
        self.refresh_bindings()

    async def action_leave(self) -> None:
        """Closes the screen."""
        await self.run_action("app.back")
