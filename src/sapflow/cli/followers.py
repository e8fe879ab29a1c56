"""Followers as processes of their own: one for each exporter, so that none can hold up another, or the training."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sapflow.cli import EXIT_FAILED
from sapflow.cli.console import say
from sapflow.errors import InputError
from sapflow.exporters import ledger
from sapflow.exporters.config import chosen
from sapflow.exporters.jsonlines import STDOUT

BEGINNING_SECONDS = 60.0  # that a training may take to begin
OPENING_SECONDS = 30.0
FINISHING_SECONDS = 15.0
STOPPING_SECONDS = 10.0
LOOK_SECONDS = 0.05


@dataclass
class Followers:
    """The processes, by exporter."""

    run_dir: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """Where a detached follower writes."""
        return self.run_dir / ledger.FOLDER / f"{name}.log"

    def wait_until_open(self) -> None:
        """Wait until each has opened its exporter, or for OPENING_SECONDS.

        Raises:
            InputError: one of them cannot; the others are stopped.
        """
        deadline = time.monotonic() + OPENING_SECONDS
        waiting = set(self.processes)
        with self.all_or_none():
            while waiting and time.monotonic() < deadline:
                for name in sorted(waiting):
                    if self.processes[name].poll() is not None:
                        raise InputError(self._last_word(name))
                    if self._is_open(name):
                        waiting.remove(name)
                time.sleep(LOOK_SECONDS)
        for name in sorted(waiting):
            say(f"the exporter {name} is still opening; training begins without it: see {self.log(name)}")

    def finish(self) -> None:
        """Wait for what is still to be exported, for at most FINISHING_SECONDS, and say how it went."""
        deadline = time.monotonic() + FINISHING_SECONDS
        for name, process in self.processes.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                say(f"the exporter {name} has more to do, and goes on as process {process.pid}: see {self.log(name)}")
            else:
                say(self._last_word(name))

    def leave(self) -> None:
        """Say that they go on by themselves."""
        for name, process in self.processes.items():
            if process.poll() is None:
                say(f"the exporter {name} hands over the rest as process {process.pid}: see {self.log(name)}")

    def stop(self) -> None:
        """Stop them, and leave none behind; by SIGTERM, for a script's background ignores SIGINT, and so do they."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOPPING_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Whatever goes wrong inside, an interrupt included, leaves none of them behind."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _is_open(self, name: str) -> bool:
        progress = ledger.read(ledger.path_of(self.run_dir, name))
        return progress is not None and progress.pid == self.processes[name].pid and progress.state != "opening"

    def _last_word(self, name: str) -> str:
        code = self.processes[name].returncode
        if code < 0:  # it had no time for a last word
            return f"exporter {name}: killed by signal {-code}; `sapflow follow` goes on where it was"
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        said = lines[-1].removeprefix("sapflow: ") if lines else f"code {code}"
        return said if said.startswith(f"{name}:") else f"exporter {name}: {said}"


@dataclass(frozen=True)
class Exporting:
    """What is to be exported: by exporter, the options that its follower is given; and which of them have stdout."""

    arguments: dict[str, list[str]]
    printing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: tuple[str, ...], config: Path | None, options: tuple[str, ...]) -> Self:
        """What was asked for on the command line; nothing where nothing was.

        Raises:
            InputError: it makes no sense (see `config.chosen`).
        """
        if not (names or config or options):
            return cls({})
        file = ["--config", str(config)] if config is not None else []
        tables = chosen(names, config, options)
        return cls(
            {
                name: [*file, *(part for text in options if text.startswith(f"{name}.") for part in ("--option", text))]
                for name in tables
            },
            frozenset(name for name, table in tables.items() if prints(name, table)),
        )

    def run_beside(self, run_dir: Path, more: list[str]) -> int:
        """Run followers in this terminal, with more arguments for each; an interrupt, whenever it comes, is theirs too.

        Gives an exit code that says what went wrong with any.
        """
        followers = Followers(run_dir)
        with followers.all_or_none():
            for name, own in self.arguments.items():
                said_to = sys.stderr if self.printing - {name} else None
                followers.processes[name] = subprocess.Popen(_command(run_dir, name, [*own, *more]), stdout=said_to)
            codes = [process.wait() for process in followers.processes.values()]
        return EXIT_FAILED if min(codes) < 0 else max(codes)  # below 0: killed

    def start(self, run_dir: Path) -> Followers:
        """Start followers of a run that is about to begin, so that they outlive this process and its terminal."""
        followers = Followers(run_dir)
        with followers.all_or_none():
            for name, own in self.arguments.items():
                followers.log(name).parent.mkdir(exist_ok=True)
                command = _command(run_dir, name, [*own, "--wait", str(BEGINNING_SECONDS)])
                with followers.log(name).open("ab") as log:
                    followers.processes[name] = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
        return followers


def prints(name: str, options: dict[str, Any]) -> bool:
    """Whether stdout is where an exporter brings what it exports: then nothing else is said there."""
    return (name, options.get("path")) == ("jsonlines", STDOUT)


def _command(run_dir: Path, name: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "sapflow", "follow", str(run_dir), "--export", name, *arguments]
