"""What the screens may ask of the app that they live in, and what the app asks of a screen.

The app owns the run, the clock and the moment shown; screens lie upon each other, the overview at the bottom. Keys
that work everywhere stand in `widgets/commands.py`; a screen adds its own as plain Textual bindings, each with a
`description` (for the key bar) and, where that is too short, a `tooltip` (for the palette). The key bar and the
palette are made from the bindings that are active, so that what is bound is also shown.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, cast

from textual.dom import DOMNode
from textual.screen import Screen

from sapflow.sanctum.census import Census
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.telemetry.source import Source


class Subject(NamedTuple):
    """What a person looks at: an env, or a seed in it; nothing where `env_id` is None.

    `p`, `o` and `r` (prune, hold, resume) need a seed, `x` (stop) needs an env.
    """

    env_id: int | None = None
    slot_id: str = ""
    seed_id: str = ""


class Shell(Protocol):
    """The app as its screens and widgets see it.

    `clock` gives Unix seconds: the one clock of all screens. `snapshot` is the run as far as it was read, `shown` is
    what is to be drawn: the same, or the run as it stood when epoch `moment` had ended in each env (None: live).
    `speed` is the epochs a second that are played, 0.0 while nothing plays. `other` is a second run to compare with.
    `read_only`: the operator's hand is switched off.
    """

    clock: Callable[[], float]
    source: Source
    other: Source | None
    read_only: bool
    census: Census

    @property
    def snapshot(self) -> SanctumSnapshot:
        """The run as far as it was read."""

    @property
    def shown(self) -> SanctumSnapshot:
        """The run at the moment shown."""

    @property
    def notice(self) -> str:
        """What a person should know about the journal: what could not be read of it, if anything could not."""

    def look_up(self, asker: DOMNode, source: Source | None = None) -> AbstractContextManager[None]:
        """Around a look at a journal, that of the run or `source`: where it cannot be read, the look ends, and is told.

        `notice` says so until a later look of the same `asker` succeeds, or it is gone.
        """

    @property
    def pace(self) -> float | None:
        """Passes a second now, None while nothing is known."""

    @property
    def lag(self) -> float:
        """Seconds from the newest event that was read to the newest that the journal has."""

    @property
    def moment(self) -> int | None:
        """The epoch shown, None for live."""

    @property
    def speed(self) -> float:
        """Epochs a second that are played; 0.0 while paused."""

    async def show(self) -> None:
        """Draws the moment shown on the topmost screen that follows the run."""

    async def open(self, screen: Screen[None]) -> None:
        """Lays `screen` upon the others; a SnapshotScreen shows the run from its first frame on."""

    def go_to(self, epoch: int) -> None:
        """Shows the run as it stood at the end of `epoch`, at least 0 and at most the last one."""

    def go_live(self) -> None:
        """Shows the newest that is known, and goes on with the run."""

    def play(self, speed: float) -> None:
        """Plays `speed` epochs a second from the moment shown on, until the last one, then goes live; 0.0 pauses."""


def shell(node: DOMNode) -> Shell:
    """The app that `node` lives in."""
    return cast(Shell, node.app)
