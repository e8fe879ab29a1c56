"""Which run a directory holds: by its name for people, by its key for receivers; before its first event, too."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sapflow.errors import JournalError
from sapflow.telemetry.events import RunStarted
from sapflow.telemetry.run_directory import ROLLED_NAME, run_id_of, token_of
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunIdentity:
    """A run's name, which is that of its directory, and its token (see `RunStarted`), of which older runs have none."""

    run_id: str
    token: str = ""

    @property
    def key(self) -> str:
        """What tells the run from all others; of one without a token it is the name."""
        return f"{self.run_id}-{self.token}" if self.token else self.run_id


def identity_of(run_dir: Path) -> RunIdentity:
    """What the first events of the run say; before there are any, what they will say."""
    with suppress(JournalError), Source(run_dir) as source:
        for first in source.read(1):
            return RunIdentity(first.run_id, _said_token(source))
    return RunIdentity(run_id_of(run_dir), token_of(run_dir))


def wait_for_run(run_dir: Path, seconds: float, wait: Callable[[float], object] = time.sleep) -> float:
    """Wait until there is a run in a directory that perhaps is not there yet; nothing is made in it.

    Returns:
        The seconds that are left of `seconds`; 0 where there is none by then.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not _is_there(run_dir):
        wait(POLL_SECONDS)
    return max(left, 0.0)


def _said_token(source: Source) -> str:
    places = list(source.places([EventType.RUN_STARTED], (None,), limit=1))
    return next((event.payload.token for _, event in source.at(places) if isinstance(event.payload, RunStarted)), "")


def _is_there(run_dir: Path) -> bool:
    if token_of(run_dir) or (run_dir / ROLLED_NAME).is_dir():
        return True
    with suppress(JournalError), Source(run_dir) as source:
        return bool(source.read(1))
    return False
