"""To a file: every event as a line of JSON."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.json_form import json_line
from sapflow.exporters.ledger import FOLDER
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.run_directory import owner_of

STDOUT = "-"
TAIL_BYTES = 2**16


class Options(msgspec.Struct, frozen=True):
    """`path` of the file, "-" for stdout; by default run_dir/exporters/events.jsonl."""

    path: str = ""


class JsonLines:
    """Appends to a file that it has begun itself; a batch is in it whole, or not at all."""

    def __init__(self, descriptor: int, name: str, run: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._run = run
        self._rest = memoryview(b"")  # of a batch of which a pipe has taken a part: it is the one that comes again

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        self._rest = self._rest or memoryview(b"".join(json_line(event, self._run) for event in events))
        before = os.lseek(self._descriptor, 0, os.SEEK_END) if self._is_file else 0
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BrokenPipeError as error:
            raise ExporterRefusedError(f"nobody reads {self._name} any more") from error
        except OSError as error:
            if self._is_file:
                os.ftruncate(self._descriptor, before)
                self._rest = memoryview(b"")
            raise BackendAwayError(f"{self._name} cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """See `Exporter.close`."""
        if self._is_file:
            os.fsync(self._descriptor)
            os.close(self._descriptor)

    @property
    def _is_file(self) -> bool:
        return self._name != STDOUT


def open_exporter(setting: Setting) -> JsonLines:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    if options.path == STDOUT:
        return JsonLines(1, STDOUT, setting.run.key)
    default = setting.run_dir / FOLDER / "events.jsonl"
    path = Path(options.path) if options.path else default
    if path.resolve() != default.resolve() and (owner := owner_of(path)) is not None:
        raise ExporterRefusedError(f"{path} belongs to the run in {owner}: choose another path")
    try:
        if path.exists() and not (setting.resumed and _is_of_run(path, setting.run.key)) and not _is_empty(path):
            raise ExporterRefusedError(f"{path} exists, and not from this run: choose another path, or remove it first")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        _mend(descriptor)
    except OSError as error:
        raise ExporterRefusedError(f"{path} cannot be written ({error.strerror}): choose another path") from error
    return JsonLines(descriptor, str(path), setting.run.key)


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _is_of_run(path: Path, run: str) -> bool:
    """Whether it begins with an event of the run; what a killed exporter has left of its first batch is one, too."""
    with path.open("rb") as file:
        beginning = file.readline(TAIL_BYTES)
    own = b'{"key":' + msgspec.json.encode(f"{run}/")[:-1]
    return beginning.startswith(own) or own.startswith(beginning)


def _mend(descriptor: int) -> None:
    """Cut off the line that a killed exporter left half-written."""
    end = size = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - TAIL_BYTES)
        if (newline := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
