"""A long list of which the rows that fit are drawn: with a cursor, and where it is asked to, following its end."""

from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from sapflow.sanctum.spans import DIM, Line, line
from sapflow.sanctum.widgets.span_view import SpanView

Row = TypeVar("Row")
WHEEL = 3  # rows


class RowList(SpanView, Generic[Row], can_focus=True):
    """Rows of any kind; `cursor` is the chosen one's place, -1 in an empty list.

    With `follows`, a cursor on the last row stays on the last, whatever comes; else it stays on its row.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "move", key_display="↑↓", tooltip="One row up"),
        Binding("down,j", "move(1)", "down", show=False, tooltip="One row down"),
        Binding("pageup", "page(-1)", "page up", show=False, tooltip="A page up"),
        Binding("pagedown", "page(1)", "page down", show=False, tooltip="A page down"),
        Binding("home,g", "jump(0)", "first", show=False, tooltip="The first row"),
        Binding("end,G", "jump(-1)", "last", show=False, tooltip="The last row"),
        Binding("enter", "choose", "open", tooltip="What the row is about"),
    ]

    class Moved(Message):
        """The cursor is on another row; `at_top` says that somebody wants to go on above the first."""

        def __init__(self, at_top: bool) -> None:
            super().__init__()
            self.at_top = at_top

    class Chosen(Message):
        """The row under the cursor was chosen."""

    def __init__(self, key: Callable[[Row], Hashable], follows: bool = False, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: Sequence[Row] = ()
        self.cursor = -1
        self.following = follows
        self._follows = follows
        self._key = key
        self._draw: Callable[[Row, int], Line] = lambda row, width: ()
        self._nothing = ""
        self._top = 0

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    def show(self, rows: Sequence[Row], draw: Callable[[Row, int], Line], nothing: str) -> None:
        """Draws `rows`, each by `draw(row, width)`; `nothing` stands there where there are none."""
        if rows is self.rows and nothing == self._nothing:
            return
        before = self.chosen
        self.rows, self._draw, self._nothing = rows, draw, nothing
        if self.following:
            self.cursor = len(rows) - 1
        else:
            self.cursor = self._place_of(before)
        self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The rows that fit, the cursor's among them."""
        height = max(self.size.height, 1)
        if not self.rows:
            return [line((self._nothing, DIM))]
        lowest = max(len(self.rows) - height, 0)
        self._top = min(max(min(self._top, self.cursor), self.cursor - height + 1), lowest)
        shown = self.rows[self._top : self._top + height]
        return [self._marked(self._draw(row, width - 2), self._top + n == self.cursor) for n, row in enumerate(shown)]

    def _marked(self, spans: Line, chosen: bool) -> Line:
        if not chosen:
            return line("  ", *spans)
        return line(("▌ ", "bold"), *((text, f"{style} bold" if style != DIM else "") for text, style in spans))

    def on_resize(self, event: events.Resize) -> None:
        """More rows, or fewer."""
        self.redraw()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves the cursor."""
        self.action_move(-WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves the cursor."""
        self.action_move(WHEEL)

    def on_click(self, event: events.Click) -> None:
        """A click moves the cursor to the row; one on the cursor's row chooses it."""
        at = self._top + event.y
        if at == self.cursor:
            self.action_choose()
        elif at < len(self.rows):
            self._go(at)

    def action_move(self, rows: int) -> None:
        """Moves the cursor."""
        self._go(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Moves the cursor by what fits."""
        self._go(self.cursor + pages * max(self.size.height - 1, 1))

    def action_jump(self, place: int) -> None:
        """To the first row, or to the last."""
        self._go(place % max(len(self.rows), 1))

    def action_choose(self) -> None:
        """Says that the row was chosen."""
        if self.rows:
            self.post_message(self.Chosen())

    def _go(self, place: int) -> None:
        last = len(self.rows) - 1
        self.cursor = min(max(place, 0), last)
        self.following = self._follows and self.cursor == last
        self.redraw()
        self.post_message(self.Moved(at_top=place < 0 or self.cursor == 0))

    def _place_of(self, row: Row | None) -> int:
        """Where the row is now; where it is gone, as near as can be."""
        if row is not None:
            key = self._key(row)
            for place, other in enumerate(self.rows):
                if self._key(other) == key:
                    return place
        return min(max(self.cursor, 0), len(self.rows) - 1)
