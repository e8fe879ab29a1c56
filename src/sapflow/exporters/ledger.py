"""What a follower remembers between two processes: how far it has come, in one small file that is replaced whole."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO, Self

import msgspec

from sapflow.errors import RunDirectoryError
from sapflow.telemetry.run_directory import EXPORTERS_NAME

FOLDER = EXPORTERS_NAME  # within the run directory
MAX_LEDGER_BYTES = 2**20
ENDING = frozenset({"closing", "done", "stopped"})  # of a follower that lets go of its place by itself
LOOK_SECONDS = 0.1


class Progress(msgspec.Struct, kw_only=True):
    """How far a follower has come; all counts are of the run, not of the process.

    Attributes:
        cursor: behind the last event that is done with.
        exported: events that the backend took, those that it took twice included.
        dropped: what it did not, by cause: events that it refused or that are unreadable in the journal, and what an
            exporter made of events (see `Exporter.export`).
        retries: times that a batch had to be brought again.
        opened: the exporter has been open once, so what it has left behind is its own.
        state: "opening", "waiting", "following", "retrying", "closing", "done", or "stopped".
        error: the last one, in words.
        pid: of the process.
    """

    cursor: int = 0
    exported: int = 0
    dropped: dict[str, int] = {}
    retries: int = 0
    opened: bool = False
    state: str = "opening"
    error: str = ""
    pid: int = 0


class Ledger:
    """The file run_dir/exporters/NAME.json, and the lock that keeps a second follower of that name away.

    One that only closes its exporter is told that its place is wanted (see `is_wanted`), and waited for.

    A context manager. Replacing the file is atomic and not forced to the disk: against a crash of the machine the file
    may be an older one, and events come twice, which they may.

    Raises:
        RunDirectoryError: there is no such run directory, it cannot be written, or an exporter of this name is at work.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self.path = path_of(run_dir, name)
        self.progress = Progress()
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(exist_ok=True)  # never the run directory itself
            self._lock = self.path.with_suffix(".lock").open("ab")
            self._take_place(self._lock)
            self.progress = read(self.path) or Progress()
            self.progress.pid, self.progress.state, self.progress.error = os.getpid(), "opening", ""
            self.save()
        except BlockingIOError as error:
            self.__exit__()
            at_work = f"an exporter {self.path.stem} is at work on {self.path.parent.parent} already"
            raise RunDirectoryError(f"{at_work}{_as_process(self.path)}: wait until it is done, or stop it") from error
        except OSError as error:
            self.__exit__()
            raise RunDirectoryError(f"an exporter cannot keep its place in {self.path} ({error.strerror})") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_place(self, lock: IO[bytes]) -> None:
        wanted = _wanted(self.path)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    before = read(self.path)
                    if before is None or before.state not in ENDING:
                        raise
                wanted.touch()
                time.sleep(LOOK_SECONDS)
        finally:
            wanted.unlink(missing_ok=True)

    def save(self) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written; the one before stands.
        """
        new = self.path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(self.progress)))
            new.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise


def _as_process(path: Path) -> str:
    found = read(path)
    return f", as process {found.pid}" if found is not None and found.pid else ""


def path_of(run_dir: Path, name: str) -> Path:
    """Where the exporter `name` of a run keeps its place."""
    return run_dir / FOLDER / f"{name}.json"


def is_wanted(run_dir: Path, name: str) -> bool:
    """Whether another follower waits for the place of the exporter `name`."""
    return _wanted(path_of(run_dir, name)).exists()


def _wanted(path: Path) -> Path:
    return path.with_suffix(".wanted")


def read(path: Path) -> Progress | None:
    """What a ledger says; None where there is none, or it is damaged: then everything is sent again.

    Raises:
        OSError: it is there and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError), path.open("rb") as file:
        return msgspec.json.decode(file.read(MAX_LEDGER_BYTES), type=Progress)
    return None
