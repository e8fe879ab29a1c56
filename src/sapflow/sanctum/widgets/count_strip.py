"""The counts of the overview, each with the number of its key; a click or the key shows only those envs."""

from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len
from textual import events
from textual.message import Message

from sapflow.sanctum.census import Kind
from sapflow.sanctum.spans import DIM, Line, Span
from sapflow.sanctum.widgets.span_view import SpanView

KINDS = tuple(Kind)


class CountStrip(SpanView):
    """One line: key, glyph, number and, where there is room, the word of every kind; each keeps its place."""

    class Chosen(Message):
        """The person wants to see the envs of this kind only."""

        def __init__(self, kind: Kind) -> None:
            super().__init__()
            self.kind = kind

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[Kind] = Counter()
        self._chosen: Kind | None = None
        self._ends: list[int] = []  # the column behind each kind

    def show(self, counts: Counter[Kind], chosen: Kind | None) -> None:
        """Draws the counts; the chosen kind stands out."""
        if (counts, chosen) != (self._counts, self._chosen):
            self._counts, self._chosen = counts.copy(), chosen
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The line at `width` cells: with words, with short words, or with glyphs alone."""
        for letters in (12, 5, 0):
            cells = [self._cell(number, kind, letters) for number, kind in enumerate(KINDS, 1)]
            lengths = [sum(cell_len(text) for text, _ in cell) for cell in cells]
            if sum(lengths) <= width:
                break
        self._ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
        return [tuple(span for cell in cells for span in cell)]

    def _cell(self, number: int, kind: Kind, letters: int) -> tuple[Span, ...]:
        count = self._counts[kind]
        style = kind.style if count else DIM
        if kind is self._chosen:
            style = f"reverse {style}".replace(" dim", "")
        word = f" {kind.word[:letters]}" if letters else ""
        return ((f"{number}", DIM), (f" {kind.glyph} {count:>2}{word}", style), ("  ", ""))

    def on_click(self, event: events.Click) -> None:
        """Chooses the kind that was clicked."""
        x = event.x - self.styles.padding.left
        kind = next((kind for kind, end in zip(KINDS, self._ends, strict=True) if x < end), None)
        if kind is not None and x >= 0:
            self.post_message(self.Chosen(kind))
