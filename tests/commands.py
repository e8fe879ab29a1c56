"""What the tests of the command line share: `sapflow` as a real process, in pipes or in a terminal, and its journal."""

import atexit
import contextlib
import fcntl
import json
import os
import pty
import re
import secrets
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from journals import PATIENCE
from sapflow.telemetry.events import GradientSampled, Payload, RunStarted, TelemetryEvent
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import RunState, Source

# The environment's own programs are found, as in one that is activated.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
SAPFLOW = (sys.executable, "-m", "sapflow")
TRAIN = (*SAPFLOW, "train", "--task", "digits-mlp", "--envs", "1")
ENDLESS = (*TRAIN, "--epochs", "1000000")

# `sapflow` where a module is not installed.
WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from sapflow.cli import main
main()
"""
ESCAPES = re.compile(r"\x1b\[[0-9;:<=>?]*[ -/]*[@-~]")


def without(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", WITHOUT, module, *arguments)


def finish(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, run to its end without a terminal."""
    return subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def finish_all(commands: dict[str, tuple[Sequence[str], Path]]) -> dict[str, subprocess.CompletedProcess[str]]:
    """Commands with their working directories, run side by side, by name."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(lambda pair: finish(*pair), commands.values()), strict=True))


MAIN = "from sapflow.cli import main; main()"


@cache
def _forking() -> tuple["subprocess.Popen[str]", Path]:
    """The process that forks commands (forked.py), as long as this one lives, and a directory for what they print."""
    folder = tempfile.TemporaryDirectory(prefix="sapflow-forked-")
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        with server:  # whose input ends
            pass
        folder.cleanup()

    atexit.register(end)
    return server, Path(folder.name)


def _ask(**request: object) -> Any:
    server, _ = _forking()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


class Forked:
    """`sapflow` with these arguments as a process of its own, in which everything was imported before it began.

    With `code` it runs that instead; without an `output` it has no stdout.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, *, code: str = MAIN, output: bool = True) -> None:
        _, folder = _forking()
        self._output, self._errors = (folder / secrets.token_hex(8) for _ in range(2))
        self.arguments = arguments
        self.returncode: int | None = None
        self.pid: int = _ask(
            command={
                "arguments": list(arguments),
                "cwd": str(cwd),
                "output": str(self._output) if output else None,
                "errors": str(self._errors),
            },
            code=code,
        )

    def poll(self) -> int | None:
        """The exit code, once it has ended; as of a `subprocess.Popen`."""
        return self._ended(wait=False)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """What came of it, waited for."""
        code = self._ended(wait=True)
        assert code is not None
        printed = self._output.read_text() if self._output.exists() else ""
        return subprocess.CompletedProcess(self.arguments, code, printed, self._errors.read_text())

    def _ended(self, *, wait: bool) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(asked=self.pid, wait=wait)
        return self.returncode


def finish_forked(arguments: Sequence[str], cwd: Path, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    """`sapflow` with these arguments, run to its end without a terminal: what `finish` does in a tenth of the time."""
    return Forked(arguments, cwd, code=code).finish()


def program(name: str) -> str:
    """The program of that name beside the tests, as code for a fork."""
    return f"import runpy\nrunpy.run_path({str(Path(__file__).with_name(name))!r}, run_name='__main__')"


def run_script(code: str, cwd: Path) -> str:
    """What a program in Python prints, in a process of its own; a warning is an error there."""
    done = finish_forked([], cwd, f"import warnings\nwarnings.simplefilter('error')\n{code}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Bad input: exit code 2, one line on stderr that has `words`, and nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("sapflow: ")
    for word in words:
        assert word in line


@contextlib.contextmanager
def started(command: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The command as a process; killed in the end if it is still there."""
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(come: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)  # between two looks at a file


def follow_to(run_dir: Path, payload: type, times: int = 1) -> list[TelemetryEvent]:
    """All that a reader of a live run has seen by the time the journal has held `times` such events."""
    wait_until((run_dir / JOURNAL_NAME).exists, f"a journal in {run_dir}")
    seen: list[TelemetryEvent] = []
    with Source(run_dir) as source:

        def come() -> bool:
            seen.extend(source.read())
            return sum(isinstance(event.payload, payload) for event in seen) >= times

        wait_until(come, f"{times} {payload.__name__} in {run_dir}")
    return seen


def read_whole(run_dir: Path) -> tuple[list[TelemetryEvent], RunState]:
    with Source(run_dir) as source:
        return list(iter_events(source)), source.status().state


def iter_events(source: Source) -> Iterator[TelemetryEvent]:
    while events := source.read():
        yield from events


def deterministic(events: Sequence[TelemetryEvent]) -> list[tuple[object, ...]]:
    """What the seed determines: all but times, the run's name and token, and samples, which the clock paces."""
    return [
        (e.env_id, e.sequence, _determined(e.payload)) for e in events if not isinstance(e.payload, GradientSampled)
    ]


def _determined(payload: Payload) -> Payload:
    return replace(payload, token="") if isinstance(payload, RunStarted) else payload


class Terminal:
    """A pseudo-terminal with a program in it, its output so far in `text`, without escape sequences."""

    def __init__(self, command: Sequence[str], cwd: Path, rows: int = 30, columns: int = 100) -> None:
        try:
            self._ours, self._theirs = pty.openpty()
        except OSError as error:
            pytest.skip(f"no pseudo-terminals here: {error}")
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.modes_before = termios.tcgetattr(self._theirs)
        self.output = ""
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.output)

    def wait_for(self, text: str) -> None:
        self._read_until(lambda: text in self.text, text)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait(self) -> int:
        self._read_until(lambda: self.process.poll() is not None, "the end of the program")
        while self._read():
            pass
        return self.process.returncode

    def assert_left_clean(self) -> None:
        """Back on the normal screen, with a cursor, no mouse reports, and the modes that were there before."""
        for on, off in [("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h"), ("\x1b[?1000h", "\x1b[?1000l")]:
            assert self.output.rfind(off) > self.output.rfind(on) >= 0, (on, off)
        assert termios.tcgetattr(self._theirs) == self.modes_before

    def _read_until(self, come: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not come():
            assert time.monotonic() < deadline, f"never shown: {what}; shown: {self.text[-2000:]}"
            self._read(0.05)

    def _read(self, patience: float = 0.0) -> bool:
        ready, _, _ = select.select([self._ours], [], [], patience)
        if ready:
            self.output += os.read(self._ours, 65_536).decode(errors="replace")
        return bool(ready)
