"""The operator's hand: what people ask of a run, as files in its directory that the trainer reads at epoch ends.

A request is one small JSON file in `run_dir`/requests/, put there whole by a rename. That folder is all that a viewer
needs to write; the trainer makes it, and takes a file away once its answer is in the journal. Files there may be
anybody's: they are opened without following links, read up to a bound, and validated; what is no request is counted.
"""

import os
import re
import stat
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sapflow.errors import InputError
from sapflow.telemetry.placing import place
from sapflow.telemetry.run_directory import REQUESTS_NAME, trainer_is_alive

MAX_REQUEST_BYTES = 4_096
MAX_FILES = 1_000  # in the folder, as far as anybody looks
MAX_PENDING = 256

Name = Annotated[str, Meta(max_length=256)]

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SUFFIX = ".json"


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person asks of an env: to prune, hold or resume the seed `seed_id` in the slot `slot_id`, or to stop.

    `request_id` is made of letters, digits, "-" and "_"; `asked_at` is in Unix seconds. Both names are "" for "stop".
    """

    request_id: Annotated[str, Meta(max_length=64)]
    env_id: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    action: Literal["prune", "hold", "resume", "stop"]
    slot_id: Name = ""
    seed_id: Name = ""
    asked_at: float = 0.0
    by: Name = ""


_decoder = msgspec.json.Decoder(Request)


class Mailbox:
    """The requests of the run in `run_dir`, for those who ask and for the trainer who answers.

    Attributes:
        refused: how many files in the folder were no requests, by cause.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / REQUESTS_NAME
        self.refused: Counter[str] = Counter()
        self._known_as_bad: set[str] = set()

    def open(self) -> None:
        """Make the folder, as the trainer does.

        Raises:
            OSError: it cannot be made.
        """
        self.folder.mkdir(exist_ok=True)

    def post(self, request: Request) -> None:
        """Ask the trainer; it looks at the end of each epoch and answers with the event REQUEST_ANSWERED.

        Raises:
            InputError: the request is no valid one, no trainer is there to read it, too many wait, or the folder cannot
                be written; nothing was asked.
        """
        content = _checked(request)
        if not trainer_is_alive(self.run_dir):
            raise InputError(f"no trainer is at work in {self.run_dir}: nobody would answer")
        try:
            if sum(1 for _ in self.folder.iterdir()) >= MAX_PENDING:
                raise InputError(f"{self.folder} is full: wait until the trainer has answered")
            _write_whole(self.folder / f"{request.request_id}{_SUFFIX}", content)
        except FileNotFoundError as error:
            raise InputError(f"the run in {self.run_dir} takes no requests: nothing grows there") from error
        except FileExistsError as error:
            raise InputError(f"request {request.request_id!r} is there already: choose another id") from error
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder} ({error.strerror}): ask for the right to write there"
            ) from error

    def pending(self) -> list[Request]:
        """The requests that wait for an answer, the first asked first, at most MAX_PENDING; what is none is counted.

        Raises:
            InputError: the folder cannot be read.
        """
        found: list[Request] = []
        bad: set[str] = set()
        for name in self._names():
            content = self._content(name)
            request = content if isinstance(content, Request) else None
            if request is not None:
                found.append(request)
            elif isinstance(content, str):
                bad.add(name)
                if name not in self._known_as_bad:
                    self.refused[content] += 1
        self._known_as_bad = bad
        return sorted(found, key=lambda request: (request.asked_at, request.request_id))[:MAX_PENDING]

    def remove(self, request_id: str) -> None:
        """Take a request away that has been answered; what is no request's name, such as a path, is passed over.

        Raises:
            OSError: it cannot be removed.
        """
        if _REQUEST_ID.fullmatch(request_id):
            (self.folder / f"{request_id}{_SUFFIX}").unlink(missing_ok=True)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in islice(entries, MAX_FILES)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"cannot read {self.folder} ({error.strerror}): check its permissions") from error
        return [name for name in names if not name.startswith(".")]

    def _content(self, name: str) -> Request | str | None:
        """The request in a file, or why it is none; None where the file has gone meanwhile."""
        request_id = name.removesuffix(_SUFFIX)
        if not name.endswith(_SUFFIX) or not _REQUEST_ID.fullmatch(request_id):
            return "odd name"
        try:
            content = _read(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError:
            return "unreadable"
        if content is None:
            return "no file"
        if len(content) > MAX_REQUEST_BYTES:
            return "too large"
        try:
            request = _decoder.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "malformed"
        return request if request.request_id == request_id else "another's name"


def _checked(request: Request) -> bytes:
    """The request as it is written.

    Raises:
        InputError: it would not be read as one.
    """
    if not _REQUEST_ID.fullmatch(request.request_id):
        raise InputError(f"request id {request.request_id!r}: take up to 64 letters, digits, '-' and '_'")
    try:
        content = msgspec.json.encode(request)
        _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InputError(f"request {request.request_id!r}: {error}") from error
    if len(content) > MAX_REQUEST_BYTES:
        raise InputError(f"request {request.request_id!r}: its names are too long")
    return content


def _write_whole(path: Path, content: bytes) -> None:
    """Under its name it is whole, or not there; what is there is not overwritten."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
        place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """The beginning of a plain file, no link; None where it is something else."""
    # Without waiting: a pipe would make the trainer wait for its writer.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(file, MAX_REQUEST_BYTES + 1) if stat.S_ISREG(os.fstat(file).st_mode) else None
    finally:
        os.close(file)
