"""The run directory: made once, held by one trainer, found again by readers, and better not on a network."""

import fcntl
import os
import re
import secrets
import time
from pathlib import Path, PurePosixPath
from typing import IO, Self

from sapflow.errors import RunDirectoryError

RUNS = Path("runs")  # where runs are kept by default
JOURNAL_NAME = "journal.sqlite"
LOCK_NAME = "trainer.lock"
LOG_NAME = "trainer.log"
PLAN_NAME = "plan.json"
TOKEN_NAME = "run.token"
CHECKPOINTS_NAME = "checkpoints"
ROLLED_NAME = "parquet"  # what the journal of a finished run is rolled into
MANIFEST_NAME = "manifest.json"  # in it
REQUESTS_NAME = "requests"
EXPORTERS_NAME = "exporters"
FOLDERS = frozenset({CHECKPOINTS_NAME, ROLLED_NAME, REQUESTS_NAME, EXPORTERS_NAME})
FILES = frozenset({LOCK_NAME, LOG_NAME, PLAN_NAME, TOKEN_NAME})  # and the journal, with what SQLite has beside it

TOKEN = re.compile(rb"[0-9a-f]{16}")

# A reader's probe holds the lock for an instant, so a trainer asks more than once before it gives up.
LOCK_ATTEMPTS = 25
LOCK_PAUSE_SECONDS = 0.02

MOUNT_TABLE = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.beegfs", "fuse.ceph", "fuse.gcsfuse",
        "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
        "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
    }
)  # fmt: skip


def create(path: Path) -> Path:
    """Make the run directory `path`, with the token of its run; an empty one that exists is taken.

    Raises:
        RunDirectoryError: there is something at `path`, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = any(path.iterdir())
        if not taken:
            (path / TOKEN_NAME).write_text(secrets.token_hex(8), encoding="ascii")
    except OSError as error:
        raise RunDirectoryError(f"cannot make the run directory {path} ({error.strerror}): choose another") from error
    if taken:
        raise RunDirectoryError(f"the run directory {path} exists and is not empty: choose another, or remove it first")
    return path


def token_of(run_dir: Path) -> str:
    """What tells the run from all others, those of its name included; empty for one of a time without tokens."""
    try:
        with (run_dir / TOKEN_NAME).open("rb") as file:
            token = TOKEN.fullmatch(file.read(64))
    except OSError:
        return ""
    return token[0].decode() if token else ""


def run_id_of(run_dir: Path) -> str:
    """The run's name, which is its directory's own, as text: bytes that are none cannot travel in an event."""
    return os.fsencode(run_dir.resolve().name).decode(errors="replace")


def create_beside(path: Path) -> Path:
    """Like `create`, but where `path` is taken, path-2, path-3 … beside it.

    Raises:
        RunDirectoryError: the directory cannot be made.
    """
    candidate, number = path, 1
    while candidate.exists() and not (candidate.is_dir() and not any(candidate.iterdir())):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return create(candidate)


def newest(root: Path) -> Path:
    """The run directory directly under `root` that changed last: its journal or, where that is gone, what it became.

    Raises:
        RunDirectoryError: there is none.
    """
    runs = all_under(root)
    if not runs:
        raise RunDirectoryError(f"there is no run under {root}: start one, or name the run directory to open")
    return max(runs, key=_last_change)


def all_under(root: Path) -> list[Path]:
    """The run directories directly under `root`: those with a journal, or with what one was rolled into."""
    return sorted({path.parent for name in (JOURNAL_NAME, ROLLED_NAME) for path in root.glob(f"*/{name}")})


def _last_change(run_dir: Path) -> int:
    journal = run_dir / JOURNAL_NAME
    places = (journal, wal_of(journal)) if journal.exists() else (run_dir / ROLLED_NAME,)
    return max(path.stat().st_mtime_ns for path in places if path.exists())


def has_journal(run_dir: Path) -> bool:
    """Whether there is a journal with anything in it: its maker may have been killed before it wrote."""
    journal = run_dir / JOURNAL_NAME
    return journal.exists() and journal.stat().st_size > 0


def owner_of(path: Path) -> Path | None:
    """The run directory of whose own files `path` is one, or would be if it existed; None where it is of none."""
    return next(filter(None, map(_owner_of, (path.parent.resolve() / path.name, path.resolve()))), None)


def _owner_of(place: Path) -> Path | None:
    if (place.name in FILES or JOURNAL_NAME in place.name) and _is_run(place.parent):
        return place.parent
    folders = (folder for folder in place.parents if folder.name in FOLDERS)
    return next((folder.parent for folder in folders if _is_run(folder.parent)), None)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (JOURNAL_NAME, PLAN_NAME, f"{ROLLED_NAME}/{MANIFEST_NAME}"))


def refuse_rolled(run_dir: Path) -> None:
    """A new journal would stand before what the run's own was rolled into.

    Raises:
        RunDirectoryError: the run is rolled, and its journal removed.
    """
    if (run_dir / ROLLED_NAME).exists() and not has_journal(run_dir):
        raise RunDirectoryError(f"the run in {run_dir} is rolled and its journal removed: nothing can be added to it")


def wal_of(journal: Path) -> Path:
    """Where SQLite keeps what is committed to `journal` and not yet moved into it."""
    return journal.with_name(f"{journal.name}-wal")


class TrainerLock:
    """Held while a trainer lives; the kernel frees it however the trainer ends, SIGKILL included.

    A context manager; entering raises RunDirectoryError when another trainer holds the directory, or the lock file
    cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._file = (self.run_dir / LOCK_NAME).open("ab")
        except OSError as error:
            raise RunDirectoryError(f"cannot write to the run directory {self.run_dir} ({error.strerror})") from error
        if not _acquire(self._file):
            self.__exit__()
            raise RunDirectoryError(f"another trainer runs in {self.run_dir}: choose another run directory")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _acquire(file: IO[bytes]) -> bool:
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


def trainer_is_alive(run_dir: Path) -> bool:
    """Whether a trainer holds `run_dir`; needs no more than the right to read it.

    Raises:
        RunDirectoryError: there is a lock file and it cannot be read.
    """
    lock = run_dir / LOCK_NAME
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RunDirectoryError(f"cannot read {lock} ({error.strerror}): check its permissions") from error
    return False


def network_warning(run_dir: Path) -> str:
    """One line for a run directory on a network file system: which, and what to do; empty when it is on none."""
    place = network_file_system(run_dir)
    if place is None:
        return ""
    return (
        f"{run_dir} is on a network file system ({place}): readers on other machines may not see the run live; "
        "put the run directory on a local disk"
    )


def network_file_system(path: Path) -> str | None:
    """The network file system that holds `path`, such as "nfs4 at /data"; None where it is local, or not told."""
    try:
        mountinfo = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return network_mount(mountinfo, PurePosixPath(path.resolve()))


def network_mount(mountinfo: str, path: PurePosixPath) -> str | None:
    """Like `network_file_system`, for an absolute, resolved `path` and the text of a Linux mountinfo table."""
    mounts = [_mount(line) for line in mountinfo.splitlines()]
    above = [mount for mount in mounts if path.is_relative_to(mount[0])]
    if not above:
        return None
    # Of mounts on the same point the last hides those before it, and max() keeps the first.
    point, kind = max(reversed(above), key=lambda mount: len(mount[0].parts))
    return f"{kind} at {point}" if kind in NETWORK_FILE_SYSTEMS else None


def _mount(line: str) -> tuple[PurePosixPath, str]:
    """Mount point and file system type: fields 5, and the first after the separator, of proc_pid_mountinfo(5)."""
    before, _, after = line.partition(" - ")
    point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
    return PurePosixPath(point), after.split(" ")[0]
