"""The colours, shapes and dashes of charts, and how names look in them."""

from dataclasses import dataclass

from sapflow.telemetry.vocabulary import SeedStage

# Okabe and Ito's palette, without its yellow, which is not seen on white, and its black, which is the ink.
BLUE = "#0072b2"
VERMILLION = "#d55e00"
BLUISH_GREEN = "#009e73"
REDDISH_PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY_BLUE = "#56b4e9"

# Each a colour of its own, so that a page can give them others in the dark.
INK = "#1a1a1a"
MUTED = "#6e6e6e"
GRID = "#dedede"
BAND = "#e0f0ea"
PAPER = "#ffffff"

LONGEST_NAME = 26
SHORTEST_TAIL = 8


@dataclass(frozen=True)
class Look:
    """A series' colour, and what tells it from others without colour."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]


LOOKS = (
    Look(BLUE, "o", "-"),
    Look(VERMILLION, "s", (0, (5, 1.5))),
    Look(BLUISH_GREEN, "^", (0, (1.5, 1.2))),
    Look(REDDISH_PURPLE, "D", (0, (6, 1.5, 1.5, 1.5))),
    Look(ORANGE, "v", (0, (3, 1.2))),
    Look(SKY_BLUE, "P", (0, (8, 2))),
)

STAGE_LOOKS: dict[SeedStage, tuple[str, float]] = {  # colour, and the height of its bar
    SeedStage.GERMINATED: (MUTED, 0.12),
    SeedStage.TRAINING: (SKY_BLUE, 0.3),
    SeedStage.BLENDING: (BLUE, 0.48),
    SeedStage.HOLDING: (ORANGE, 0.62),
    SeedStage.FOSSILIZED: (BLUISH_GREEN, 0.8),
    SeedStage.WATCHED: (SKY_BLUE, 0.5),
}


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as it can be shown: on one line, without what turns or hides text, its middle left out if it is long."""
    name = "".join(character if character.isprintable() else "�" for character in name)
    if len(name) <= longest:
        return name
    tail = min(SHORTEST_TAIL, longest // 3)
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"
