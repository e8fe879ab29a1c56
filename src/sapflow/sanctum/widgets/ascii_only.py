"""What a terminal without Unicode gets: every strip that is drawn, by whichever widget, in ASCII of the same width."""

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from sapflow.sanctum.glyphs import to_ascii


class AsciiOnly(LineFilter):
    """Stands behind all widgets, those of Textual too: frames, scrollbars, notifications, the palette."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments in ASCII."""
        return [Segment(to_ascii(text), style, control) for text, style, control in segments]
