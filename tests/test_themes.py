"""Every colour can be read on its ground, and the states can be told apart without red and green."""

import itertools
import math

import pytest

from sapflow.sanctum.glyphs import CONDITION_STYLES, EVENT_MARKS, STAGE_STYLES
from sapflow.sanctum.schema import Condition
from sapflow.sanctum.themes import THEMES, Theme

Linear = tuple[float, float, float]

STYLES = {*CONDITION_STYLES.values(), *STAGE_STYLES.values(), *(style for _, style in EVENT_MARKS.values())}
# Machado, Oliveira and Fernandes (2009), a physiologically-based model for simulation of colour vision deficiency,
# full severity, on linear sRGB.
DEFICIENCIES = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def linear(colour: str) -> Linear:
    """A hex colour in linear sRGB (IEC 61966-2-1)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return red, green, blue


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: Linear) -> Linear:
    """CIE L*a*b* under D65."""
    red, green, blue = (min(max(value, 0.0), 1.0) for value in rgb)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def seen(colour: str, deficiency: str) -> Linear:
    rgb = linear(colour)
    red, green, blue = (sum(a * b for a, b in zip(row, rgb, strict=True)) for row in DEFICIENCIES[deficiency])
    return red, green, blue


def colour_of(style: str) -> str | None:
    return next((word for word in style.split() if word.startswith("#")), None)


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
def test_every_colour_can_be_read_on_its_ground(theme: Theme) -> None:
    colours = {colour_of(theme.style(style)) for style in STYLES} - {None}
    for colour in (theme.text, theme.red, theme.yellow, theme.green, *colours):
        assert contrast(colour, theme.ground) >= 4.5, colour
    assert contrast(theme.text, theme.bar) >= 4.5


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_a_colour_blind_eye_tells_the_states_apart(deficiency: str) -> None:
    theme = THEMES["colour-blind"]
    states = (Condition.HEALTHY, Condition.VANISHING, Condition.EXPLODING)
    colours = [colour_of(theme.style(CONDITION_STYLES[state])) for state in states]
    assert colours == [theme.green, theme.yellow, theme.red]  # the record's own words look the same
    for one, other in itertools.combinations(colours, 2):
        places = (lab(seen(colour, deficiency)) for colour in (one, other))
        assert math.dist(*places) > 30, (one, other)
