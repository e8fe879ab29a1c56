"""Shapes and colours: every state has both, so that neither a colour-blind eye nor a plain terminal loses it."""

import locale
import os
import sys

from rich.cells import cell_len

from sapflow.sanctum.schema import Condition
from sapflow.telemetry.vocabulary import EventType, SeedStage

# Okabe and Ito's palette, which colour-blind people can tell apart.
ORANGE = "#e69f00"
SKY_BLUE = "#56b4e9"
BLUISH_GREEN = "#009e73"
YELLOW = "#f0e442"
VERMILLION = "#d55e00"
REDDISH_PURPLE = "#cc79a7"


STAGE_GLYPHS = {
    SeedStage.DORMANT: "·",
    SeedStage.GERMINATED: "◌",
    SeedStage.TRAINING: "○",
    SeedStage.BLENDING: "◐",
    SeedStage.HOLDING: "◕",
    SeedStage.FOSSILIZED: "●",
    SeedStage.PRUNED: "✕",
    SeedStage.EMBARGOED: "⊘",
    SeedStage.WATCHED: "◇",
}
STAGE_STYLES = {
    SeedStage.DORMANT: "dim",
    SeedStage.GERMINATED: SKY_BLUE,
    SeedStage.TRAINING: SKY_BLUE,
    SeedStage.BLENDING: f"bold {SKY_BLUE}",
    SeedStage.HOLDING: f"bold {SKY_BLUE}",
    SeedStage.FOSSILIZED: f"bold {BLUISH_GREEN}",
    SeedStage.PRUNED: f"bold {REDDISH_PURPLE}",
    SeedStage.EMBARGOED: REDDISH_PURPLE,
    SeedStage.WATCHED: SKY_BLUE,
}
CONDITION_GLYPHS = {
    Condition.RESTING: " ",
    Condition.HEALTHY: "✓",
    Condition.UNMEASURED: "?",
    Condition.ALERTED: "⚑",
    Condition.VANISHING: "▼",
    Condition.EXPLODING: "▲",
    Condition.NON_FINITE: "!",
    Condition.FAILED: "✕",
}
CONDITION_STYLES = {
    Condition.RESTING: "dim",
    Condition.HEALTHY: BLUISH_GREEN,
    Condition.UNMEASURED: f"bold {SKY_BLUE}",
    Condition.ALERTED: f"bold {ORANGE}",
    Condition.VANISHING: f"bold {YELLOW}",
    Condition.EXPLODING: f"bold {VERMILLION}",
    Condition.NON_FINITE: f"bold {REDDISH_PURPLE}",
    Condition.FAILED: f"bold {VERMILLION}",
}
EVENT_MARKS = {
    EventType.SEED_GERMINATED: (STAGE_GLYPHS[SeedStage.GERMINATED], SKY_BLUE),
    EventType.SEED_STAGE_CHANGED: ("→", SKY_BLUE),
    EventType.SEED_PRUNED: (STAGE_GLYPHS[SeedStage.PRUNED], f"bold {REDDISH_PURPLE}"),
    EventType.SEED_FOSSILIZED: (STAGE_GLYPHS[SeedStage.FOSSILIZED], f"bold {BLUISH_GREEN}"),
    EventType.NON_FINITE_FOUND: ("∞", f"bold {VERMILLION}"),
    EventType.ALERT_RAISED: ("⚑", f"bold {ORANGE}"),
    EventType.ALERT_CLEARED: ("✓", BLUISH_GREEN),
    EventType.ACTION_TAKEN: ("»", f"bold {SKY_BLUE}"),
    EventType.REQUEST_ANSWERED: ("»", f"bold {SKY_BLUE}"),
    EventType.ENV_COMPLETED: ("■", BLUISH_GREEN),
    EventType.ENV_FAILED: ("✕", f"bold {VERMILLION}"),
    EventType.RUN_COMPLETED: ("■", f"bold {BLUISH_GREEN}"),
}

BLOCKS = "▁▂▃▄▅▆▇█"

# In a chart, what is measured (blocks and braille) is told from what it is measured by (lines).
_ASCII: dict[int, int | str] = dict(
    str.maketrans(
        "·◌○◐◕●✕⊘◇◆▲▼✓⚑»■›‖∞←→↑↓▶⏎…“”×Δ–−¼╌┈░▁▂▃▄▅▆▇█▀▔▉▊▋▌▍▎▏▐▕",
        '.oO%#*x/w@^v+&:=>|!<>^v>>.""xD--/~..__ooOO##--|||||||||',
    )
)
_ASCII |= dict.fromkeys(map(ord, "╭╮╰╯┏┓┗┛┌┐└┘┼├┤┬┴▛▜▙▟▖▗▘▝"), "+")
_ASCII |= str.maketrans("─━═│┃║", "-==|||")
_ASCII |= {ord("🔎"): "/ "}  # of the palette, two cells
# Braille, by how many dots there are.
_ASCII |= {0x2800 + dots: " ***###@@"[dots.bit_count()] for dots in range(256)}

_NO_UNICODE = ("C", "POSIX")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")  # what Python itself puts into LC_CTYPE where LANG names no such locale


def terminal_has_unicode() -> bool:
    """Whether the terminal's encoding can show the glyphs; asks the locale, since Python may write UTF-8 regardless."""
    named = {name: os.environ.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")}
    asked = named["LC_ALL"] or named["LC_CTYPE"] or named["LANG"]
    coerced = not named["LC_ALL"] and named["LC_CTYPE"] in _COERCED and named["LANG"] in _NO_UNICODE
    if asked in _NO_UNICODE or coerced:
        return False
    written = getattr(sys.__stdout__, "encoding", None) or "utf-8"
    return all(name.lower().replace("-", "").startswith("utf") for name in (written, locale.getencoding()))


def to_ascii(text: str) -> str:
    """`text` with every glyph replaced by an ASCII one of the same width; "?" for a stranger's characters."""
    if text.isascii():
        return text
    plain = text.replace("¼×", "/4").translate(_ASCII)
    return plain if plain.isascii() else "".join(c if c.isascii() else "?" * cell_len(c) for c in plain)
