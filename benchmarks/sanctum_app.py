"""What Sanctum's screen costs: the app in a pseudo-terminal on a live run, beside a table of Textual's that is rebuilt.

A trainer writes a journal in which every env ends an epoch four times a second. Sanctum follows it in a process of its
own, as people start it; what is measured is the processor time of that process, all threads, between two of its frames.
"""

import fcntl
import json
import os
import platform
import pty
import resource
import select
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sanctum_journal as events
from textual.app import App, ComposeResult
from textual.widgets import DataTable

from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.following import SHARE
from sapflow.sanctum.numbers import compact
from sapflow.sanctum.rewind import opened
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.widgets.env_grid import Density
from sapflow.sanctum.widgets.env_overview import OverviewScreen
from sapflow.telemetry import codec
from sapflow.telemetry.events import EnvStarted, RunStarted
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.journal_layout import INSERT_EVENT
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import Source

HERTZ = 4
WARM_UP, MEASURED = 4.0, 12.0  # seconds
ROWS, COLUMNS = 60, 200


@dataclass(frozen=True)
class Case:
    """What is shown, how, and the share of a core that it may take; None where none was set."""

    what: str
    envs: int
    seeds: int
    shown: str
    aim: float | None


CASES = (
    Case("64 envs × 4 seeds, cards", 64, 4, Density.CARDS, 0.25),
    Case("64 envs × 4 seeds, one line an env", 64, 4, Density.DENSE, 0.12),
    Case("64 envs × 4 seeds, DataTable rebuilt", 64, 4, "table", None),
    Case("1,000 envs × 8 seeds, one line an env", 1_000, 8, Density.AUTO, 0.50),
    Case("1,000 envs × 8 seeds, DataTable rebuilt", 1_000, 8, "table", None),
)


class Stopwatch:
    """Processor time and frames between WARM_UP and MEASURED seconds after the first frame."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.cpu = -1.0
        self.epochs: list[int] = []
        self.times: list[float] = []
        self.lags: list[float] = []

    def frame(self, newest: float | None, epochs: int) -> bool:
        """A frame was drawn, with the newest event of that time and so many epochs in all; whether it is the last."""
        now = time.monotonic() - self.began
        if now < WARM_UP:
            return False
        if self.cpu < 0:
            self.cpu = _cpu()
        self.epochs.append(epochs)
        self.times.append(now)
        self.lags.append(time.time() - newest if newest else 0.0)
        return now >= WARM_UP + MEASURED

    def report(self) -> dict[str, float]:
        """The share of a core, the rates that were reached, and how old the newest event was when drawn."""
        elapsed = self.times[-1] - self.times[0]
        return {
            "share": (_cpu() - self.cpu) / elapsed,
            "epochs": (self.epochs[-1] - self.epochs[0]) / elapsed,
            "frames": (len(set(self.epochs)) - 1) / elapsed,
            "lag": sorted(self.lags)[int(0.95 * len(self.lags))],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _epochs(snapshot: SanctumSnapshot) -> int:
    return sum(env.epoch for env in snapshot.envs.values())


class Watched(SanctumApp):
    """Sanctum, with a stopwatch."""

    density = Density.AUTO
    result: dict[str, float] | None = None
    stopwatch: Stopwatch | None = None

    def get_default_screen(self) -> OverviewScreen:
        screen = OverviewScreen()
        screen.density = self.density
        return screen

    async def show(self) -> None:
        await super().show()
        self.stopwatch = self.stopwatch or Stopwatch()
        if self.stopwatch.frame(self.snapshot.read_until, _epochs(self.snapshot)) and self.result is None:
            self.result = self.stopwatch.report()
            self.exit()


class Table(App[None]):
    """The plain way: a DataTable, emptied and filled anew at every look."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.aggregator = opened(source)
        self.stopwatch = Stopwatch()
        self.newest: float | None = None
        self.result: dict[str, float] | None = None

    def compose(self) -> ComposeResult:
        yield DataTable()

    def on_ready(self) -> None:
        self.set_interval(1 / HERTZ, self.look)

    def read(self) -> bool:
        read = self.source.read(limit=2_000)
        for event in read:
            self.aggregator.apply(event)
        self.newest = read[-1].time if read else self.newest
        return bool(read)

    def look(self) -> None:
        while self.read():
            pass
        table = self.query_one(DataTable)
        table.clear(columns=True)
        envs = list(self.aggregator.snapshot().envs.values())
        slots = max((len(env.seeds) for env in envs), default=0)
        table.add_columns("env", "accuracy", "loss", *(f"slot {number}" for number in range(slots)))
        for env in envs:
            seeds = (f"{seed.stage} {seed.condition.name} {compact(seed.grad_ratio)}" for seed in env.seeds.values())
            table.add_row(str(env.env_id), str(env.accuracy), str(env.validation_loss), *seeds)
        if self.stopwatch.frame(self.newest, _epochs(self.aggregator.snapshot())) and self.result is None:
            self.result = self.stopwatch.report()
            self.exit()


def show(run_dir: Path, shown: str, report: Path) -> None:
    """In the pseudo-terminal: the app, until it is measured."""
    with suppress(PermissionError):
        os.nice(-10)  # the trainer beside it may not keep it from being on time
    with Source(run_dir) as source:
        if shown == "table":
            app: Table | Watched = Table(source)
        else:
            app = Watched(source, aggregator=opened(source))
            app.density = Density(shown)
        app.run()
    report.write_text(json.dumps(app.result), encoding="utf-8")


def train(run_dir: Path, envs: int, seeds: int) -> None:
    """The trainer: every env ends an epoch HERTZ times a second, until it is killed."""
    journal = Journal(run_dir)
    journal.emit(events.event(RunStarted(task="digits-cnn", envs=envs, epochs=10_000), None, 0, time.time()))
    slots = tuple(f"slot-{slot}" for slot in range(seeds))
    for env_id in range(envs):
        started = EnvStarted(host="cnn", host_params=9, slot_ids=slots, epochs=10_000)
        journal.emit(events.event(started, env_id, 0, time.time()))
    _until_written(run_dir, envs + 1)
    # Bodies from a template, a transaction an epoch: the trainer is not what is measured here, and shares the machine.
    connection = sqlite3.connect(run_dir / JOURNAL_NAME, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    began, epoch = time.monotonic(), 0
    while True:
        epoch += 1
        now = time.time()
        body = codec.encode(events.epoch_completed(0, epoch, seeds, epoch, now))
        rows = ((n, epoch, epoch, "EPOCH_COMPLETED", now, events.of(body, n, epoch)) for n in range(envs))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT_EVENT, rows)
        connection.execute("COMMIT")
        time.sleep(max(began + epoch / HERTZ - time.monotonic(), 0))


def _until_written(run_dir: Path, count: int) -> None:
    with Source(run_dir) as source:
        while count > 0:
            count -= len(source.read())
            time.sleep(0.01)


def measure(case: Case) -> dict[str, float]:
    """The case, with a trainer and a terminal of its own."""
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as name:
        run_dir, report = Path(name) / "run", Path(name) / "report.json"
        run_dir.mkdir()
        this = (sys.executable, __file__)
        trainer = subprocess.Popen((*this, "train", str(run_dir), str(case.envs), str(case.seeds)))
        try:
            time.sleep(2)  # the first epochs
            _in_a_terminal((*this, "show", str(run_dir), case.shown, str(report)))
        finally:
            trainer.kill()
            trainer.wait()
        result: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
        return result


def _in_a_terminal(command: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        while process.poll() is None:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 65_536)
                except OSError:  # the other end is closed
                    break
    os.close(ours)


def section() -> str:
    """The half of the page that is about the screen."""
    lines = []
    for case in CASES:
        got = measure(case)
        aim = "" if case.aim is None else f"≤ {case.aim:.0%}"
        met = "" if case.aim is None else "met" if got["share"] <= case.aim else "**missed**"
        pace = f"{got['epochs']:,.0f} | {got['frames']:.1f} | {got['lag']:.2f} s | {got['peak_mb']:.0f} MB"
        lines.append(f"| {case.what} | {got['share']:.1%} | {aim} | {met} | {pace} |")
        print(lines[-1], flush=True)
    return "\n".join(
        [
            "## Screen",
            "",
            f"A run in which every env ends an epoch {HERTZ} times a second, followed for {MEASURED:.0f} seconds in a",
            f"pseudo-terminal of {COLUMNS} × {ROWS}; {os.cpu_count()} cores ({platform.machine()}), Python",
            f"{platform.python_version()}, and no other work. What is given is processor time of the app's process,",
            "all of its threads, as a share of one core. A frame is a look at the journal with something new; the age",
            "is that of the newest event when it was drawn, in 95 of 100 frames. Where a look takes long, Sanctum",
            f"looks less often: at most {SHARE:.0%} of a core is its own, since training comes first. Beside it, the",
            "plain way: a Textual DataTable that is emptied and filled at every look.",
            "",
            "| | of a core | aim | | epochs a second | frames a second | age | peak memory |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", run_dir, envs, seeds]:
            train(Path(run_dir), int(envs), int(seeds))
        case ["show", run_dir, shown, report]:
            show(Path(run_dir), shown, Path(report))
        case [number]:
            print(measure(CASES[int(number)]))
