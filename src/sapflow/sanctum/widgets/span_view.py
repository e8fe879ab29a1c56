"""The base of all that Sanctum draws: a widget whose lines are plain spans, built once for a width and a state."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from sapflow.sanctum.glyphs import terminal_has_unicode, to_ascii
from sapflow.sanctum.spans import DIM, Line, fit, line


class SpanView(Widget):
    """Draws the lines that `build` makes. Nothing in their texts is ever read as markup."""

    unicode = terminal_has_unicode()

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: Sequence[Line] = ()
        self._built_for = -1

    def build(self, width: int) -> Sequence[Line]:
        """The lines at `width` cells."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Builds the lines anew when they are next needed."""
        self._built_for = -1
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """The strip of line `y`, in the widget's own colours where a span has no style."""
        lines = self._lines_at(self.size.width)
        spans = fit(lines[y] if y < len(lines) else (), self.size.width)
        base = self.rich_style
        return Strip([Segment(self._shown(text), base + Style.parse(style)) for text, style in spans if text])

    def _lines_at(self, width: int) -> Sequence[Line]:
        if self._built_for != width:
            try:
                self._lines = self.build(width)
            except Exception as error:  # one thing that cannot be drawn must not take the screen down
                self.log.error(error)
                self._lines = [line((f"cannot draw this: {type(error).__name__}", DIM))]
            self._built_for = width
        return self._lines

    def _shown(self, text: str) -> str:
        return text if self.unicode else to_ascii(text)
