"""The base of all that Sanctum draws: a widget whose lines are plain spans, built once for a width and a state."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from sapflow.sanctum.spans import DIM, Line, fit, line
from sapflow.sanctum.themes import DEFAULT, THEMES


class SpanView(Widget):
    """Draws the lines that `build` makes. Nothing in their texts is ever read as markup."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
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
        shown = fit(lines[y] if y < len(lines) else (), self.size.width)
        return strip_of(shown, self.rich_style, self.app.theme)

    def _lines_at(self, width: int) -> Sequence[Line]:
        if self._built_for != width:
            self._lines = built(lambda: self.build(width), self)
            self._built_for = width
        return self._lines


def built(build: Callable[[], Sequence[Line]], widget: Widget) -> Sequence[Line]:
    """What `build` makes: one thing that cannot be drawn says so, and does not take the screen down."""
    try:
        return build()
    except Exception as error:
        widget.log.error(error)
        return [line((f"cannot draw this: {type(error).__name__}", DIM))]


def strip_of(spans: Line, base: Style, theme: str) -> Strip:
    """The spans as Textual takes them, in a theme; in the style `base` where a span has none."""
    return Strip([Segment(text, _style(base, style, theme)) for text, style in spans if text])


@lru_cache(4096)
def _style(base: Style, style: str, theme: str) -> Style:
    return base + Style.parse(THEMES.get(theme, THEMES[DEFAULT]).style(style))
