"""What the glyphs and the numbers mean."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from sapflow.health.policy import record_band
from sapflow.sanctum.glyphs import CONDITION_GLYPHS, CONDITION_STYLES, STAGE_GLYPHS, STAGE_STYLES
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.spans import Line, line
from sapflow.sanctum.widgets.span_view import SpanView
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
_NUMBERS = (
    ("entering", "norm of the gradient at the seed's output"),
    ("leaving", "norm of the gradient at its input, on its way to the host"),
    ("ratio", "leaving / entering in this epoch; healthy from {band.lower} to {band.upper}"),
    ("min max last", "the ratios of single passes"),
    ("1× ───", "the healthy band; in the plot a row is a factor of 4"),
    ("Alpha", "blend weight; -- while the host does not see the seed"),
    ("Acc Δ", "validation accuracy with the seed minus without, in points"),
    ("gaps", "missing events; dropped: not written; skipped: not readable"),
)
_KEYS = "←↓↑→ or hjkl move   enter opens an env   escape goes back   q quits"


class HelpText(SpanView):
    """The text of the help."""

    def build(self, width: int) -> Sequence[Line]:
        """All of it; it is drawn from the same tables as the screens are."""
        stages = tuple((f"{STAGE_GLYPHS[stage]} {stage.lower()}  ", STAGE_STYLES[stage]) for stage in SeedStage)
        return [
            line(("Is this seed's gradient flow healthy?", "bold")),
            *(
                line((f"{CONDITION_GLYPHS[condition]:<14}", CONDITION_STYLES[condition]), words)
                for condition, words in _CONDITIONS.items()
            ),
            (),
            stages[:5],
            stages[5:],
            (),
            *(line((f"{name:<14}", "bold"), words.format(band=record_band())) for name, words in _NUMBERS),
            (),
            line((_KEYS, "bold")),
        ]


class HelpScreen(ModalScreen[None]):
    """One page over whatever is shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark", "app.back", "close"),
        Binding("q", "app.quit", "quit"),
    ]

    def compose(self) -> ComposeResult:
        """The page."""
        with VerticalScroll():
            yield HelpText()
