"""Text as plain data: spans of text and style, lines of spans, and how they are cut to a width."""

import unicodedata
from collections.abc import Iterable, Sequence
from io import StringIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

Span = tuple[str, str]
"""Text and the name of its style, such as ("ok", "bold red")."""
Line = tuple[Span, ...]

DIM = "dim"
NAME_LIMIT = 1_000  # cells of a name, wherever it is shown

# Control characters, bidirectional and other invisible format characters, surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(text: str, limit: int) -> str:
    """`text` from a stranger as one printable line of at most `limit` cells; what cannot be printed becomes "�"."""
    shown = "".join(_printable(character) for character in unicodedata.normalize("NFC", text[: limit + 1]))
    if cell_len(shown) <= limit and len(text) <= limit:
        return shown
    return set_cell_size(shown, max(limit - 1, 0)).rstrip() + "…" if limit > 0 else ""


def padded(text: str, width: int) -> str:
    """`text` from a stranger, clean and at exactly `width` cells."""
    return set_cell_size(clean(text, width), width)


def slot_name(slot_id: str, limit: int) -> str:
    """What a slot is called, in at most `limit` cells: of a long name the end, which tells a model's modules apart.

    The model itself, where that is watched, has no name among its modules.
    """
    name = clean(slot_id, NAME_LIMIT) or "the model"
    return name if cell_len(name) <= limit else "…" + set_cell_size(name[::-1], max(limit - 1, 0))[::-1].lstrip()


def slot_column(slot_id: str, width: int) -> str:
    """What a slot is called, at exactly `width` cells."""
    return set_cell_size(slot_name(slot_id, width), width)


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):  # combining marks take no cell: a stack of them would climb over other lines
        return ""
    if category == "Zs":
        return " "
    return "�" if category in _UNPRINTABLE else character


def line(*spans: Span | str) -> Line:
    """A line of spans; a bare string is an unstyled one."""
    return tuple(span if isinstance(span, tuple) else (span, "") for span in spans)


def width_of(spans: Line) -> int:
    """The cells that a line takes."""
    return sum(cell_len(text) for text, _ in spans)


def fit(spans: Line, width: int) -> Line:
    """The line at exactly `width` cells: filled with blanks, or cut with "…"."""
    missing = width - width_of(spans)
    if missing >= 0:
        return (*spans, (" " * missing, ""))
    kept: list[Span] = []
    room = width - 1
    for text, style in spans:
        kept.append((set_cell_size(text, min(room, cell_len(text))), style))
        room -= cell_len(text)
        if room <= 0:
            break
    return (*kept, ("…", DIM)) if width > 0 else ()


def ends(left: Line, right: Line, width: int) -> Line:
    """`left` at the left end and `right` at the right end of `width` cells; `left` is cut where both do not fit."""
    room = width - width_of(right)
    return (*fit(left, room), *right) if room > 0 else fit(right, width)


def first_that_fits(width: int, variants: Sequence[Line]) -> Line:
    """The first of the lines that fits into `width` cells, else the last of them."""
    return next((variant for variant in variants if width_of(variant) <= width), variants[-1])


def spaced(parts: Iterable[Line], gap: str = "   ") -> Line:
    """The lines behind each other on one, `gap` between them."""
    joined: Line = ()
    for part in parts:
        joined = (*joined, (gap, ""), *part) if joined else part
    return joined


def box(
    title: Line, mark: Line, body: Iterable[Line], width: int, style: str, foot: Line = (), heavy: bool = False
) -> list[Line]:
    """A frame of `width` cells around `body`: `title` and `mark` in its upper edge, `foot` in its lower.

    Every body line is cut to width - 3: the frame and one blank on the left.
    """
    top_left, top_right, bottom_left, bottom_right, flat, side = "┏┓┗┛━┃" if heavy else "╭╮╰╯─│"
    room = width - 4
    head = ends(
        line((" ", ""), *title, (" ", "")) if title else (), line((" ", ""), *mark, (" ", "")) if mark else (), room
    )
    tail = fit(line((" ", ""), *foot, (" ", "")), room) if foot else ((flat * room, style),)
    return [
        line((top_left + flat, style), *_ruled(head, flat, style), (flat + top_right, style)),
        *(line((side, style), " ", *fit(content, width - 3), (side, style)) for content in body),
        line((bottom_left + flat, style), *_ruled(tail, flat, style), (flat + bottom_right, style)),
    ]


def _ruled(spans: Line, flat: str, style: str) -> Line:
    """The line with its filling (unstyled runs of blanks) drawn as the frame's edge."""
    return tuple(
        (flat * len(text), style) if len(text) > 1 and text.isspace() else (text, kept) for text, kept in spans
    )


def merged(cells: Iterable[Span]) -> Line:
    """Neighbours of one style as one span."""
    joined: list[Span] = []
    for text, style in cells:
        if joined and joined[-1][1] == style:
            joined[-1] = (joined[-1][0] + text, style)
        else:
            joined.append((text, style))
    return tuple(joined)


def labelled(label: Span, text: str, style: str, width: int) -> list[Line]:
    """`text`, which is clean, on as many lines of `width` cells as it takes, broken at blanks, all beside the label."""
    indent = cell_len(label[0])
    broken = Text(text).wrap(_PLAIN, max(width - indent, 8))
    return [line(label if n == 0 else (" " * indent, ""), (part.plain, style)) for n, part in enumerate(broken)]


_PLAIN = Console(file=StringIO())  # never printed to: Rich wants one to know what a line is
