"""What the lists of events and of alerts say of their search, and of where in them one is."""

from collections.abc import Iterable

from sapflow.sanctum.glyphs import BLUISH_GREEN, ORANGE, SKY_BLUE
from sapflow.sanctum.query import KINDS, STATES, AlertFilter, LogFilter, Query
from sapflow.sanctum.spans import DIM, Line, Span, clean, ends, first_that_fits, line, width_of


def log_filter_line(wanted: LogFilter, cursor: int, count: int, following: bool, width: int) -> Line:
    """Which kinds and which envs are shown, what is searched for, and whether what comes is followed."""
    left = _asked(KINDS, wanted.kind, wanted.query)
    state, style = ("● following", BLUISH_GREEN) if following else ("‖ paused: end follows", f"bold {ORANGE}")
    whole = line((state, style), "  ", _place(cursor, count))
    brief = line((state[:1], style), (f" {cursor + 1}/{count} ", DIM) if following else (" paused (end) ", style))
    return ends(left, first_that_fits(width - width_of(left), (whole, brief)), width)


def alert_filter_line(wanted: AlertFilter, cursor: int, count: int, width: int) -> Line:
    """Which alerts are shown, and what is searched for."""
    return ends(_asked(STATES, wanted.state, wanted.query), line(_place(cursor, count)), width)


def _asked(choices: Iterable[str], chosen: str, query: Query) -> Line:
    """The choices by their keys; where; and the words."""
    keys = ((f"{n} {choice} ", f"bold {SKY_BLUE}" if choice == chosen else DIM) for n, choice in enumerate(choices, 1))
    where = "all envs" if query.env_id is None else f"env {query.env_id:02} (0 all)"
    words = " ".join(clean(word, 30) for word in query.words)
    slot = (f"slot:{clean(query.slot, 20)}  ", f"bold {ORANGE}") if query.slot else ("", "")
    return line(*keys, (f" {where}  ", "bold"), slot, (f"“{words}”" if words else "", f"bold {ORANGE}"))


def _place(cursor: int, count: int) -> Span:
    return (f"{cursor + 1} of {count} ", DIM)
