"""The half of the app that follows a run: reads what comes, holds the moment shown, and draws it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from textual.app import App
from textual.dom import DOMNode
from textual.screen import Screen
from textual.timer import Timer

from sapflow.errors import InputError
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.census import Census
from sapflow.sanctum.header import QUIET, is_live, quiet_for
from sapflow.sanctum.playhead import Playhead
from sapflow.sanctum.rewind import recall
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.shell import Subject
from sapflow.sanctum.widgets.snapshot_screen import SnapshotScreen
from sapflow.telemetry.source import Source

BATCH = 2_000  # events between two looks at the keyboard
RECALL_SECONDS = 0.03  # between two looks, for what was opened in brief
SHARE = 0.4  # of a core, at most, where a look at a large run takes long: training comes first


class FollowingApp(App[None]):
    """Reads `source` on and on, and shows the run at the moment shown on the screen that is looked at.

    What it is for its screens: `widgets/shell.py`; which keys and commands it has, a subclass says.
    """

    def __init__(
        self,
        source: Source,
        poll_seconds: float,
        clock: Callable[[], float],
        aggregator: SanctumAggregator,
    ) -> None:
        super().__init__()
        self.source = source
        self.clock = clock
        self.poll_seconds = poll_seconds
        self.aggregator = aggregator
        self.census = Census()
        self._playhead = Playhead(source, aggregator.snapshot)
        self._player: Timer | None = None
        self._error = ""
        self._failure = ""
        self._unread: dict[tuple[DOMNode, Source], str] = {}  # what could not be looked up, and for whom
        self._offered: tuple[object, ...] = ()
        self._used = time.process_time()  # when the last look was over

    @property
    def snapshot(self) -> SanctumSnapshot:
        """The run as far as it was read."""
        return self.aggregator.snapshot()

    @property
    def shown(self) -> SanctumSnapshot:
        """The run at the moment shown."""
        return self._playhead.shown

    @property
    def pace(self) -> float | None:
        """Passes a second now, None while nothing is known: of a trainer that is gone, or has been quiet for long."""
        live = is_live(self.snapshot) and quiet_for(self.snapshot, self.clock()) <= QUIET
        return (self.snapshot.passes_per_second or None) if live else None

    @property
    def lag(self) -> float:
        """Seconds from the newest event that was read to the newest that the journal has."""
        return self.snapshot.lag

    @property
    def moment(self) -> int | None:
        """The epoch shown, None for live."""
        return self._playhead.moment

    @property
    def speed(self) -> float:
        """Epochs a second that are played; 0.0 while paused."""
        return self._playhead.speed

    @property
    def notice(self) -> str:
        """What a person should know about the journal: what could not be read of it, else the source's own notice."""
        status, left_out = self.snapshot.status, self.shown.left_out
        unread = next((words for (asker, _), words in self._unread.items() if asker.is_running), "")
        nonsense = f"{left_out} events say what cannot be, and are left out" if left_out else ""
        return self._error or unread or nonsense or (status.notice if status else "")

    @property
    def looked_at(self) -> SnapshotScreen | None:
        """The topmost screen that follows the run, below the palette and dialogs; none while the app goes down."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, SnapshotScreen)), None)

    @property
    def subject(self) -> Subject:
        """What the person looks at."""
        screen = self.looked_at
        return Subject() if screen is None else screen.subject

    @property
    def offers(self) -> tuple[object, ...]:
        """What decides which commands work now: once it is another, the keys that are shown are looked up again."""
        return (self.moment,)

    async def follow(self) -> None:
        """Reads on and shows it; comes again at once while it is behind, else when the next look is due."""
        began = time.monotonic()
        behind = self.read_batch()
        await self.show()
        if behind:
            self.call_later(self.follow)
            return
        used, self._used = time.process_time() - self._used, time.process_time()  # drawing included, that of last time
        self.set_timer(max(self.poll_seconds - (time.monotonic() - began), rest_after(used)), self.follow)

    def read_batch(self) -> bool:
        """Takes in the next events as they come, at most BATCH; returns whether there are likely to be more.

        What comes before an event that cannot be read is taken in, and how the run stands is asked in any case.
        """
        taken, self._error = 0, ""
        try:
            for event in self.source.stream(limit=BATCH):
                self.aggregator.take_in(event)
                taken += 1
            until = time.monotonic() + RECALL_SECONDS
            while taken < BATCH and recall(self.source, self.aggregator) and time.monotonic() < until:
                pass
        except InputError as error:
            self._error = str(error)
        try:
            self.aggregator.apply_status(self.source.status())
        except InputError as error:
            self._error = self._error or str(error)
        return taken == BATCH

    @contextmanager
    def look_up(self, asker: DOMNode, source: Source | None = None) -> Iterator[None]:
        """Around a look at a journal, that of the run or `source`: where it cannot be read, the look ends, and is told.

        `notice` says so until a later look of the same `asker` succeeds, or it is gone.
        """
        source, error = source or self.source, ""
        try:
            yield
        except InputError as raised:
            error = str(raised) if source is self.source else f"{source.run_dir.name}: {raised}"
        key = asker, source
        self._unread = {other: told for other, told in self._unread.items() if other != key and other[0].is_running}
        if error:
            self._unread[key] = error

    async def show(self) -> None:
        """Draws the moment shown on the topmost screen that follows it; one that fails says so, and the app goes on."""
        active = self.looked_at
        if active is None:
            return
        try:
            self._playhead.catch_up()
            self.census.take(self.shown.envs)
            await active.show(self.shown, self.notice)
            active.show_time(self.shown)
            self._failure = ""
        except Exception as error:
            self.log.error(error)
            if str(error) != self._failure:  # said once, not at every poll
                self.notify(f"this cannot be shown: {type(error).__name__}", severity="error", markup=False)
            self._failure = str(error)
        if (active, *self.offers) != self._offered:
            self._offered = (active, *self.offers)
            self.refresh_bindings()

    def go_to(self, epoch: int) -> None:
        """Shows the run as it stood at the end of `epoch`, at least 0 and at most the last one."""
        self._travel(lambda: self._playhead.go_to(epoch))

    def go_live(self) -> None:
        """Shows the newest that is known, and goes on with the run."""
        self._travel(self._playhead.go_live)

    def step(self, epochs: int) -> None:
        """Moves by so many epochs and stands still."""
        self._travel(lambda: self._playhead.step(epochs))

    def play(self, speed: float) -> None:
        """Plays `speed` epochs a second from the moment shown on, until the last one, then goes live; 0.0 pauses."""
        self._travel(lambda: self._playhead.play(speed))

    def _travel(self, move: Callable[[], None]) -> None:
        """Moves the playhead and shows where it stands; a moment that cannot be read leaves it where it was."""
        try:
            move()
        except InputError as error:
            self._playhead.speed = 0.0
            self.notify(str(error), severity="error", markup=False)
        if self._player is not None:
            self._player.stop()
        self._player = self.set_timer(1 / self.speed, self._tick) if self.speed else None
        self.call_later(self.show)
        self.refresh_bindings()

    def _tick(self) -> None:
        if self.screen_stack:  # none is left while the app goes down
            self._travel(self._playhead.tick)

    async def open(self, screen: Screen[None]) -> None:
        """Lays `screen` upon the others; a SnapshotScreen shows the run from its first frame on."""
        await self.push_screen(screen)


def rest_after(used: float) -> float:
    """Seconds of rest after a look that took `used` seconds of processor time, which is no more than SHARE with it."""
    return used * (1 / SHARE - 1)
