"""How an env looks on the overview: as a card, and as one line of a few cells where there are many."""

from functools import cache

from rich.cells import cell_len

from sapflow.sanctum.formatting import HELD_GLYPH, HELD_STYLE, seed_row
from sapflow.sanctum.glyphs import (
    CONDITION_GLYPHS,
    CONDITION_STYLES,
    SKY_BLUE,
    STAGE_GLYPHS,
    STAGE_STYLES,
    VERMILLION,
)
from sapflow.sanctum.header import of_epochs
from sapflow.sanctum.numbers import known
from sapflow.sanctum.plots import accuracy_trend, loss_trend
from sapflow.sanctum.schema import Condition, EnvState, EnvStatus, SlotMark
from sapflow.sanctum.spans import DIM, Line, Span, box, clean, fit, line, slot_name, width_of

CARD_WIDTH = 32  # at least
WIDE_CARD = 50  # cells: what a card has a use for
LEAST_TREND = 6  # cells
_ROW_WITHOUT_SLOT = 22  # stage, a blueprint of some length, gradient flow and ratio
_ACCURACY = 7  # cells of a dense line: the number and blanks around it


def env_card(env: EnvState, width: int, rows: int, focused: bool = False) -> list[Line]:
    """An env of the overview: rows + 3 lines of `width` cells, a row for each slot, the rest blank."""
    condition = env.condition
    inner = width - 3
    longest = max((cell_len(slot_name(slot_id, inner)) for slot_id in env.seeds), default=0)
    slot_width = min(longest, max(inner - _ROW_WITHOUT_SLOT, 8))
    slots = [seed_row(seed, inner, slot_width) for seed in env.seeds.values()]
    body = [_learning_line(env, inner), *slots, *[()] * (rows - len(slots))]
    style = CONDITION_STYLES[condition] if condition > Condition.HEALTHY else DIM
    title = line((f"env {env.env_id:02}", "bold"))
    mark = line((CONDITION_GLYPHS[condition], CONDITION_STYLES[condition])) if condition else ()
    return box(title, mark, body, width, "bold" if focused else style, env_foot(env, width - 6), heavy=focused)


def card_lines(rows: int) -> int:
    """The lines of an env_card with room for `rows` slots."""
    return rows + 3


def _learning_line(env: EnvState, width: int) -> Line:
    """Accuracy and validation loss, each with its trend; where two would be too short, that of the accuracy alone."""
    accuracy = line(f"acc {known(env.accuracy):>5} ")
    loss = line(f" loss {known(env.validation_loss):>6} ")
    room = width - width_of(accuracy) - width_of(loss)
    for_loss = room // 2 if room >= 2 * LEAST_TREND else 0
    return line(
        *accuracy,
        (accuracy_trend(env.accuracy_history, room - for_loss), SKY_BLUE),
        *loss,
        (loss_trend(env.loss_history, for_loss), SKY_BLUE),
    )


def env_foot(env: EnvState, width: int) -> Line:
    """How far the env is, or why it is not any further."""
    if env.status is EnvStatus.FAILED:
        return line((clean(f"failed: {env.error}", width), f"bold {VERMILLION}"))
    status = "" if env.status is EnvStatus.TRAINING else f" {env.status.lower()}"
    return line((clean(f"{of_epochs(env.epoch, env.epochs)}{status}", width), DIM))


def dense_width(digits: int, slots: int) -> int:
    """The cells of a dense_line, with the blank between two of them."""
    return 1 + digits + 1 + 2 + 3 * slots + _ACCURACY


def dense_line(env: EnvState, digits: int, slots: int, focused: bool = False) -> Line:
    """An env on one line: its number and state, for each slot the stage and the gradient flow, and the accuracy."""
    condition = env.condition
    frame = "bold reverse" if focused else ""
    name = f" {env.env_id:0{digits}} "
    spans: list[Span] = [
        (name, frame or ("bold" if condition > Condition.HEALTHY else "")),
        (f"{CONDITION_GLYPHS[condition]} ", CONDITION_STYLES[condition]),
    ]
    for mark in env.seeds.marks[:slots]:
        spans += _dense_slot(mark)
    spans.append(("   " * (slots - len(env.seeds)), ""))
    spans.append((f"{known(env.accuracy):>5}  ", frame or DIM))
    return fit(tuple(spans), dense_width(digits, slots))


@cache
def _dense_slot(mark: SlotMark) -> Line:
    stage = (STAGE_GLYPHS[mark.stage], STAGE_STYLES[mark.stage])
    glyph, style = CONDITION_GLYPHS[mark.condition], CONDITION_STYLES[mark.condition]
    return (stage, (glyph, style), (HELD_GLYPH, HELD_STYLE)) if mark.held else (stage, (f"{glyph} ", style))
