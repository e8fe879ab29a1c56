"""Dark, light and colour-blind-safe: which colours the palette's names stand for, as plain data."""

from functools import cache

from msgspec import Struct
from rich.color import parse_rgb_hex
from rich.terminal_theme import TerminalTheme

from sapflow.sanctum.glyphs import BLUISH_GREEN, ORANGE, REDDISH_PURPLE, SKY_BLUE, VERMILLION, YELLOW


class Theme(Struct, frozen=True, kw_only=True):
    """A ground, a text on it, bars above it, and what stands for each colour of the palette where it is another.

    `red`, `yellow` and `green` are those that the records name (TELE-557 has them in the gradient line).
    """

    name: str
    dark: bool
    ground: str
    text: str
    bar: str
    rule: str
    red: str
    yellow: str
    green: str
    instead: dict[str, str] = {}

    @property
    def ansi(self) -> TerminalTheme:
        """The eight colours that a terminal has names for."""
        names = (self.ground, self.red, self.green, self.yellow, "#0072b2", REDDISH_PURPLE, SKY_BLUE, self.text)
        colours: list[tuple[int, int, int]] = [parse_rgb_hex(colour.removeprefix("#")) for colour in names]
        return TerminalTheme(colours[0], colours[7], colours)

    def style(self, name: str) -> str:
        """A style of the palette, such as "bold #d55e00", in the colours of this theme."""
        return _translated(self.name, name)


THEMES = {
    theme.name: theme
    for theme in (
        Theme(
            name="dark",
            dark=True,
            ground="#121212",
            text="#d8d8d8",
            bar="#242424",
            rule="#565656",
            red="#ff5c57",
            yellow=YELLOW,
            green="#4fd18b",
            instead={BLUISH_GREEN: "#12b886", VERMILLION: "#f0702a"},
        ),
        Theme(
            name="light",
            dark=False,
            ground="#fcfcfa",
            text="#1c1c1c",
            bar="#e8e8e4",
            rule="#9a9a94",
            red="#b3001b",
            yellow="#6b5900",
            green="#006b45",
            instead={
                ORANGE: "#8a5300",
                SKY_BLUE: "#005f9e",
                BLUISH_GREEN: "#006b45",
                YELLOW: "#6b5900",
                VERMILLION: "#ad3c00",
                REDDISH_PURPLE: "#8f2f6e",
            },
        ),
        Theme(  # blue is well, orange is too much, yellow too little: no red against green
            name="colour-blind",
            dark=True,
            ground="#101014",
            text="#e4e4e4",
            bar="#26262e",
            rule="#62626c",
            red="#e8590c",
            yellow="#f7ec59",
            green="#4aa8ff",
            instead={
                BLUISH_GREEN: "#4aa8ff",
                SKY_BLUE: "#a9d6f5",
                VERMILLION: "#e8590c",
                ORANGE: "#e0b070",
                YELLOW: "#f7ec59",
                REDDISH_PURPLE: "#e6a8cf",
            },
        ),
    )
}
DEFAULT = "dark"


@cache
def _translated(theme: str, style: str) -> str:
    return " ".join(THEMES[theme].instead.get(word, word) for word in style.split())
