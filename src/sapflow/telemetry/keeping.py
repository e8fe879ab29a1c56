"""Keeping what a loop that is not ours says: a run directory with its lock and journal, or nothing at all."""

from contextlib import ExitStack
from pathlib import Path

from sapflow.telemetry import run_directory
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.stream import EventStream, Sink


class Keeping:
    """Where the events of one run go.

    Args:
        run_dir: where to keep them, or beside it if it exists; None keeps nothing.
        unkept_id: names the run in that case.

    Attributes:
        run_dir: where they are kept.
        token: of the run (see `RunStarted`).
        run, env: what is said of the run, and of its only env.

    Raises:
        InputError: the directory cannot be made.
    """

    def __init__(self, run_dir: Path | None, unkept_id: str) -> None:
        self.run_dir: Path | None = None
        self._journal: Journal | None = None
        self._open = ExitStack()
        sink = self._keep(run_dir) if run_dir is not None else _Nowhere()
        self.token = run_directory.token_of(self.run_dir) if self.run_dir is not None else ""
        run_id = run_directory.run_id_of(self.run_dir) if self.run_dir is not None else unkept_id
        self.run, self.env = EventStream(sink, run_id), EventStream(sink, run_id, 0)

    def flush(self, seconds: float) -> bool:
        """Wait so long until what was said is acknowledged, and tell whether it is; True where nothing is kept."""
        return self._journal is None or self._journal.flush(seconds)

    def close(self) -> None:
        """Write what is left, and let go of the directory."""
        self._open.close()

    def _keep(self, run_dir: Path) -> Sink:
        self.run_dir = run_directory.create_beside(run_dir)
        self._open.enter_context(run_directory.TrainerLock(self.run_dir))
        self._journal = Journal(self.run_dir)
        self._open.callback(self._journal.close)
        return self._journal


class _Nowhere:
    def emit(self, event: TelemetryEvent) -> None:
        """Let it go."""
