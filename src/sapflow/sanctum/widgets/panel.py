"""A part of a screen that draws what it is handed, at whatever size it has."""

from collections.abc import Callable, Hashable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Size

from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.span_view import SpanView


class Panel(SpanView):
    """Draws anew when it is handed another state, or has another size; not otherwise."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._state: Hashable = None
        self._draw: Callable[[int, int], Sequence[Line]] = lambda width, height: ()

    def show(self, state: Hashable, draw: Callable[[int, int], Sequence[Line]]) -> None:
        """Draws by `draw(width, height)`; as long as `state` stays equal, that would draw the same again."""
        if state != self._state:
            self._state, self._draw = state, draw
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The lines at `width` cells."""
        return self._draw(width, self.size.height)

    def on_resize(self, event: events.Resize) -> None:
        """What is drawn depends on the height, too."""
        super().redraw()


class TallPanel(Panel):
    """A panel that is as high as what it draws, for a container that scrolls."""

    def redraw(self) -> None:
        """Builds the lines anew; there may be more of them, or fewer."""
        super().redraw()
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The lines at `width` cells."""
        return len(self._lines_at(width))


class ScrollPanel(VerticalScroll, can_focus=False):
    """A panel that scrolls where it does not all fit."""

    def compose(self) -> ComposeResult:
        """The panel."""
        yield TallPanel()

    def show(self, state: Hashable, draw: Callable[[int], Sequence[Line]]) -> None:
        """As a Panel's, at any height."""
        self.query_one(TallPanel).show(state, lambda width, _: draw(width))

    def scroll_lines(self, lines: int) -> None:
        """Scrolls at once."""
        self.scroll_relative(y=lines, animate=False)
