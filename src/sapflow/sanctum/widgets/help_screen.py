"""What the glyphs, the numbers and the keys mean: the numbers in the words of the telemetry records."""

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from sapflow.health.policy import record_band
from sapflow.sanctum.census import OF_STAGE, Kind
from sapflow.sanctum.glyphs import CONDITION_GLYPHS, CONDITION_STYLES, STAGE_GLYPHS, STAGE_STYLES
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.spans import DIM, Line, line
from sapflow.sanctum.widgets.key_bar import Key
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.records import Record, all_records
from sapflow.telemetry.vocabulary import SeedStage

_CONDITIONS = {
    Condition.HEALTHY: "healthy gradient flow",
    Condition.EXPLODING: "exploding risk: ratio above the band, or a non-finite pass",
    Condition.VANISHING: "vanishing risk: ratio below the healthy band",
    Condition.UNMEASURED: "no gradient data; the seed's card says why",
    Condition.NON_FINITE: "no pass of the epoch had finite gradients",
    Condition.ALERTED: "an alert is open",
    Condition.FAILED: "the env failed",
}
_OURS = (
    ("1× ───", "the healthy band, {band.lower} to {band.upper}; in the plot a row is a factor of 4"),
    ("‖ held", "a person or a rule holds the seed in its stage; r lets it go on"),
    ("passes/s", "of all envs that train, each over its last epochs; -- where none is known, or the trainer is quiet"),
    ("lagging", "how far behind the journal's newest event this screen is"),
    (
        "gaps",
        "places where events are missing; dropped: never written; skipped: not readable; came twice: shown once",
    ),
)
_NAME = 16  # cells
_MARKS = re.compile(r"[*`]|\[([^\]]*)\]\([^)]*\)")  # of Markdown


class HelpText(SpanView):
    """The text of the help."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__()
        self._keys = keys

    def build(self, width: int) -> Sequence[Line]:
        """All of it; it is drawn from the same tables as the screens are."""
        lines = [line for part in (self._glyphs, self._key_lines, self._numbers) for line in (*part(width), ())]
        if self.styles.height is None or self.styles.height.value != len(lines):
            self.styles.height = len(lines)
        return lines

    def _glyphs(self, width: int) -> Iterator[Line]:
        yield line(("Is this seed's gradient flow healthy?", "bold"))
        for condition, words in _CONDITIONS.items():
            yield line((f"{CONDITION_GLYPHS[condition]:<{_NAME}}", CONDITION_STYLES[condition]), words)
        yield ()
        stages = tuple((f"{STAGE_GLYPHS[stage]} {stage.lower()}  ", STAGE_STYLES[stage]) for stage in SeedStage)
        yield stages[:5]
        yield stages[5:]
        for kind in dict.fromkeys(OF_STAGE.values()):
            yield line((f"{kind.glyph} {kind.word:<{_NAME - 2}}", kind.style), f"counts {_stages_of(kind)}")

    def _key_lines(self, width: int) -> Iterator[Line]:
        yield line(("Keys of the screen below", "bold"))
        for key in self._keys:
            yield from _entry(" ".join(key.keys), key.sentence, width)

    def _numbers(self, width: int) -> Iterator[Line]:
        yield line(("Numbers", "bold"))
        for name, words in _OURS:
            yield from _entry(name, words.format(band=record_band()), width)
        for record in sorted(all_records(), key=lambda record: record.field != "grad_ratio"):  # that one first
            yield ()
            yield line((record.field, "bold"), (f"  {record.id}, {record.data.units}", DIM))
            yield from _entry("", record.purpose.question, width)
            for words in _meaning(record):
                yield from _entry("", words, width)


def _stages_of(kind: Kind) -> str:
    return ", ".join(stage.lower() for stage, counted in OF_STAGE.items() if counted is kind)


def _meaning(record: Record) -> list[str]:
    """What the record says the value means, without its markup: a paragraph, and the points of its list."""
    words = _MARKS.sub(r"\1", record.data.meaning)
    return [" ".join(part.split()) for part in re.split(r"\n(?=\s*-\s)", words) if part.strip()]


def _entry(name: str, words: str, width: int) -> Iterator[Line]:
    """A name, and its words beside it on as many lines as they take."""
    for number, part in enumerate(wrap(words, max(width - _NAME - 1, 20)) or [""]):
        yield line((f"{name if not number else '':<{_NAME}} ", "bold"), part)


class HelpScreen(ModalScreen[None]):
    """One page over whatever is shown; `keys` are those of the screen below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark", "app.back", "close"),
        Binding("q", "app.quit", "quit"),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
    ]

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        """The page."""
        with VerticalScroll():
            yield HelpText(self._keys)

    def action_scroll(self, lines: int) -> None:
        """Scrolls by so many lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)
