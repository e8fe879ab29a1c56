"""How time looks: the epochs of a run as a bar, where the moment shown stands in it, and what happened when."""

from collections.abc import Iterable

from msgspec import Struct

from sapflow.sanctum.glyphs import BLUISH_GREEN, EVENT_MARKS, ORANGE, SKY_BLUE
from sapflow.sanctum.spans import DIM, Line, Span, ends, first_that_fits, line, merged, width_of
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.vocabulary import EventType

RANKS = {
    EventType.ENV_FAILED: 5,
    EventType.NON_FINITE_FOUND: 4,
    EventType.SEED_PRUNED: 3,
    EventType.ALERT_RAISED: 2,
    EventType.SEED_FOSSILIZED: 1,
}
"""What is marked; where several fall on one cell, the greatest is shown."""

MARK_LIMIT = 2_000
HEIGHT = 3


class TimeLine(Struct, frozen=True, kw_only=True):
    """The epochs of a run: those that ended, those that are expected, and the one that is shown (None: the last)."""

    last: int
    expected: int
    moment: int | None
    speed: float
    running: bool = True

    @property
    def total(self) -> int:
        """The epochs that the bar is long; 1 at least."""
        return max(self.last, self.expected, 1)

    @property
    def shown(self) -> int:
        """The epoch at whose end things are shown."""
        return self.last if self.moment is None else self.moment

    def column(self, epoch: int, cells: int) -> int:
        """The cell of a bar of so many cells in which the end of `epoch` stands; 0 is the beginning."""
        return min(max(round(epoch * (cells - 1) / self.total), 0), cells - 1)

    def epoch_at(self, column: int, cells: int) -> int:
        """The epoch that a cell stands for."""
        return min(max(round(column * self.total / max(cells - 1, 1)), 0), self.last)


def time_lines(time: TimeLine, events: Iterable[TelemetryEvent], width: int) -> list[Line]:
    """HEIGHT lines of `width` cells: the marks, the bar below them, and in words where and how fast."""
    at = time.column(time.shown, width)
    known = time.column(time.last, width)
    bar: list[Span] = [("━", SKY_BLUE) if cell <= known else ("─", DIM) for cell in range(width)]
    bar[at] = ("◆", f"bold {BLUISH_GREEN if time.moment is None else ORANGE}")
    return [_marks(time, events, width), merged(bar), _words(time, width)]


def _marks(time: TimeLine, events: Iterable[TelemetryEvent], width: int) -> Line:
    cells: dict[int, tuple[int, Span]] = {}
    for event in events:
        rank = RANKS.get(event.type, 0)
        column = time.column(event.epoch or 0, width)
        if rank > cells.get(column, (0,))[0]:
            cells[column] = (rank, EVENT_MARKS[event.type])
    return merged([cells[column][1] if column in cells else (" ", "") for column in range(width)])


def _words(time: TimeLine, width: int) -> Line:
    of = f" of {time.total}" if time.expected else ""
    if time.moment is None:
        now = ("● live", f"bold {BLUISH_GREEN}") if time.running else ("■ the end", f"bold {SKY_BLUE}")
        where = line(now, (f"  epoch {time.last}{of}", ""))
    else:
        how = f"▶ {time.speed:g} epochs/s" if time.speed else "‖ still"
        where = line((f"◆ epoch {time.moment}{of}", f"bold {ORANGE}"), (f"  {how}", ""))
    room = width - width_of(where) - 2
    keys = "←→ step  [ ] mark  space play  +- speed  L live  t close"
    return ends(where, first_that_fits(room, [line((keys, DIM)), line(("←→ [ ] space +- L t", DIM)), ()]), width)
