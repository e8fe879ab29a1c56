"""Which moment of the run is shown: what happens now, or the end of an epoch, still or playing."""

from collections.abc import Callable

from msgspec.structs import replace

from sapflow.sanctum.rewind import Film
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.telemetry.source import Source


class Playhead:
    """Stands at `moment` (None: live) and moves on by `speed` epochs a second; the run goes on meanwhile."""

    def __init__(self, source: Source, live: Callable[[], SanctumSnapshot]) -> None:
        self.moment: int | None = None
        self.speed = 0.0
        self._film = Film(source)
        self._live = live
        self._then = SanctumSnapshot()
        self._told: dict[int, int] = {}  # what was known of the envs when the moment was looked up: see _telling

    @property
    def shown(self) -> SanctumSnapshot:
        """The run at the moment; what is known of the journal itself is always of now."""
        live = self._live()
        if self.moment is None:
            return live
        if self._then.status is not live.status:
            self._then = replace(self._then, status=live.status)
        return self._then

    @property
    def last_epoch(self) -> int:
        """The last epoch that any env has completed."""
        return max((env.epoch for env in self._live().envs.values()), default=0)

    def go_to(self, epoch: int) -> None:
        """Stands at the end of `epoch`, at least 0 and at most the last one.

        Raises:
            JournalError: the journal cannot be read there.
        """
        moment = min(max(epoch, 0), self.last_epoch)
        if moment != self.moment:
            self._look_up(moment)

    def catch_up(self) -> None:
        """Looks the moment up again once more envs have reached it, or have said what was done at its end.

        Those behind are shown as far as they were.

        Raises:
            JournalError: the journal cannot be read there.
        """
        if self.moment is None:
            return
        telling = self._telling(self.moment)
        if any(sequence > self._told.get(env_id, -1) for env_id, sequence in telling.items()):
            self._look_up(self.moment)

    def _look_up(self, moment: int) -> None:
        told = self._telling(moment)
        self._then = self._film.at(moment)
        self.moment, self._told = moment, told

    def _telling(self, moment: int) -> dict[int, int]:
        """The envs that have ended the moment's epoch; of those that stand at its end, how much they have said."""
        envs = self._live().envs.values()
        return {env.env_id: env.last_sequence if env.epoch == moment else 0 for env in envs if env.epoch >= moment}

    def go_live(self) -> None:
        """Shows what happens now."""
        self.moment, self.speed = None, 0.0

    def step(self, epochs: int) -> None:
        """Moves by `epochs` and stands still; from live on, back from the last epoch."""
        self.speed = 0.0
        self.go_to((self.last_epoch if self.moment is None else self.moment) + epochs)

    def play(self, speed: float) -> None:
        """Moves on by `speed` epochs a second; 0.0 stands still, where live stood too."""
        if self.moment is None:
            self.go_to(self.last_epoch)
        self.speed = max(speed, 0.0)

    def tick(self) -> None:
        """The next epoch of what plays; live, once there is none."""
        if not self.speed or self.moment is None:
            return
        if self.moment >= self.last_epoch:
            self.go_live()
        else:
            self.go_to(self.moment + 1)
