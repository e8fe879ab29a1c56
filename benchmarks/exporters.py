"""Measures what exporters cost: the training beside which they work, and the processor time that they take themselves.

    python benchmarks/exporters.py --write docs/exporters-performance.md

Needs the extra `exporters` (MLflow with its tracking server); what is not installed is left out, and named.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from msgspec.structs import replace

import sapflow
from sapflow.errors import MissingExtraError
from sapflow.exporters import registry
from sapflow.exporters.ledger import path_of, read
from sapflow.telemetry.events import EpochPayload, TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.source import Source

NOBODY = "nothing (A/A)"
RESAMPLES = 1_000
BATCH, WIDTH = 128, 256
STARTING_SECONDS = 180.0
AIM = 1.0  # percent of a step
SAYING_SECONDS = 5.0

# A backend that takes everything, in a process of its own.
SINK = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST
    def log_message(self, *_): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""
# In between, since a process is said to be as large as the one that it was forked from.
COST = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(done.returncode)
"""
SCRAPER = """
import sys, time, urllib.request
while True:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=5).read()
    except OSError:
        pass
    time.sleep(5)
"""


@dataclass(frozen=True)
class Beside:
    """A training with an exporter beside it, against the same training without: percent, with a 95 % interval.

    `share` is what the exporter and what it has started take of a core while it follows, in percent.
    """

    name: str
    thread: tuple[float, float, float]
    process: tuple[float, float, float]
    share: float
    events: int


@dataclass(frozen=True)
class Own:
    """What an exporter takes itself: seconds of processor time, and MiB."""

    name: str
    start: float
    per_thousand: float
    memory: tuple[float, float]


class Training:
    """A loop of somebody's own, watched as by default; counts the processor time of blocks of it."""

    def __init__(self, run_dir: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        layers = [layer for _ in range(3) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh())]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.watcher = sapflow.watch(self.model, "*", run_dir=run_dir)
        self.batch = torch.randn(BATCH, WIDTH, requires_grad=True)

    def step(self) -> None:
        loss = (self.model(self.batch) - self.batch.detach()).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def block(self, seconds: float) -> tuple[float, float]:
        """Processor seconds a step: of this thread, and of all threads of the process."""
        until = time.perf_counter() + seconds
        steps, thread, process = 0, time.thread_time(), time.process_time()
        while time.perf_counter() < until:
            self.step()
            steps += 1
        return (time.thread_time() - thread) / steps, (time.process_time() - process) / steps


@contextlib.contextmanager
def process(*command: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, start_new_session=True, **more) as running:  # type: ignore[call-overload]
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


@contextlib.contextmanager
def backends() -> Iterator[dict[str, list[str]]]:
    """Options by exporter, each with a backend that is there."""
    with contextlib.ExitStack() as open_ones:
        sink = open_ones.enter_context(process(sys.executable, "-c", SINK, stdout=subprocess.PIPE))
        assert sink.stdout is not None
        url = f"http://127.0.0.1:{int(sink.stdout.readline())}"
        port = free_port()
        open_ones.enter_context(process(sys.executable, "-c", SCRAPER, f"http://127.0.0.1:{port}/metrics"))
        found = {
            "jsonlines": [],
            "webhook": [f"webhook.url={url}"],
            "prometheus": [f"prometheus.port={port}", "prometheus.linger=0"],
            "otel": [f"otel.endpoint={url}"],
            "otel, every seed": [f"otel.endpoint={url}", "otel.per_seed=true"],
            "tensorboard": [],
            "wandb": ["wandb.mode=offline"],
        }
        with contextlib.suppress(MissingExtraError):
            registry.check("mlflow", {})
            found["mlflow"] = [f"mlflow.tracking_uri={open_ones.enter_context(tracking_server())}"]
        yield found


@contextlib.contextmanager
def tracking_server() -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        command = (
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2],
            "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/tracking.sqlite",
        )  # fmt: skip
        with process(*command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            deadline = time.monotonic() + STARTING_SECONDS
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
                assert time.monotonic() < deadline, "the tracking server does not start"
                time.sleep(0.5)
            yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def follow(run_dir: Path, name: str, options: list[str]) -> tuple[str, ...]:
    given = [part for option in options for part in ("--option", option)]
    return (sys.executable, "-m", "sapflow", "follow", str(run_dir), "--export", name.partition(",")[0], *given)


def beside(name: str, options: list[str], pairs: int, seconds: float) -> Beside:
    """Blocks of a training by turns with the follower and with it stopped (SIGSTOP), in random order within a pair.

    What is written while it is stopped it has to catch up with, so that it does twice its work when it is not.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        run_dir = Path(folder) / "run"
        training = Training(run_dir)
        exported: Callable[[], int] = lambda: 0  # noqa: E731
        if name == NOBODY:
            follower = running.enter_context(process("sleep", "100000"))
        else:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            follower = running.enter_context(process(*follow(run_dir, name, options), **quiet))
            ledger = path_of(run_dir, name.partition(",")[0])
            exported = lambda: progress.exported if (progress := read(ledger)) else 0  # noqa: E731
            deadline = time.monotonic() + STARTING_SECONDS
            for _ in range(2):  # with the first events it imports what it needs, which is part of its start
                before = exported()
                while exported() == before:
                    assert follower.poll() is None, f"{name} has ended"
                    assert time.monotonic() < deadline, f"{name} does not go on"
                    training.block(0.2)
        training.block(seconds)
        began, taken_by_then = time.perf_counter(), processor_seconds(follower.pid)
        ratios: list[tuple[float, float]] = []
        for _ in range(pairs):
            measured: dict[bool, tuple[float, float]] = {}
            for on in random.sample((True, False), 2):
                follower.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
                measured[on] = training.block(seconds)
            ratios.append(tuple(100 * (measured[True][side] / measured[False][side] - 1) for side in (0, 1)))  # type: ignore[arg-type]
        share = 100 * (processor_seconds(follower.pid) - taken_by_then) / (time.perf_counter() - began)
        follower.send_signal(signal.SIGCONT)
        taken = exported()
        training.watcher.close()
    return Beside(name, interval([r[0] for r in ratios]), interval([r[1] for r in ratios]), share, taken)


def processor_seconds(pid: int) -> float:
    """That a process and those that it has started have taken so far: fields 4, 14 and 15 of proc_pid_stat(5)."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
    family: set[int] = set()
    more = {pid}
    while more:
        family |= more
        more = {number for number, parent in parents.items() if parent in family} - family
    return sum(ticks[number] for number in family) / os.sysconf("SC_CLK_TCK")


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and 95 % of the medians of resamples."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def own(name: str, options: list[str], events: int) -> Own:
    """A finished run of so many events, and one of four times as many, each exported by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        few, some, many = (recorded(Path(folder) / str(count), count) for count in (1, events, 4 * events))
        start, _ = cost(follow(few, name, options))
        little, memory = cost(follow(some, name, options))
        whole, more_memory = cost(follow(many, name, options))
    return Own(name, start, (whole - little) / (3 * events) * 1_000, (memory, more_memory))


def recorded(run_dir: Path, count: int) -> Path:
    """So many events: what a watched training says in a few seconds, its samples included, again and again."""
    run_dir.mkdir()
    said = list(islice(_said(), count))
    last_epoch = max(event.epoch or 0 for event in said)
    journal = Journal(run_dir)
    for number in range(count):
        again, place = divmod(number, len(said))
        event = said[place]
        if isinstance(event.payload, EpochPayload):
            later = replace(event.payload, epoch=event.payload.epoch + again * last_epoch)
            event = replace(event, payload=later)
        journal.emit(event)
    journal.close(60.0)
    return run_dir


@cache
def _said() -> list[TelemetryEvent]:
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder) / "run")
        training.block(SAYING_SECONDS)
        training.watcher.close()
        with Source(Path(folder) / "run") as source:
            return source.read()


def cost(command: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of processor time, and the largest resident size in MiB, of the process and those that it waited for."""
    done = subprocess.run((sys.executable, "-c", COST, *command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, kibibytes = map(float, done.stdout.splitlines()[-1].split())
    return seconds, kibibytes / 1024


def page(rows: list[Beside], owns: list[Own], pairs: int, seconds: float, events: int) -> str:
    def shown(value: tuple[float, float, float]) -> str:
        return f"{value[0]:+.2f} [{value[1]:+.2f}, {value[2]:+.2f}]"

    lines = [
        "# What exporting costs",
        "",
        "Made by `python benchmarks/exporters.py --write docs/exporters-performance.md`. An exporter is a process of",
        "its own, so what the training can feel is what both share: caches, memory and the journal's file. All times",
        "are processor times, since the machine, of two cores, did other work at the same time.",
        "",
        "## Beside a training",
        "",
        f"A watched network of three layers of {WIDTH} at the default cadence, one thread, in blocks of {seconds:g} s",
        f"by turns with the exporter at work and stopped, in random order within each of {pairs} pairs. At work it has",
        "to catch up with what came while it was stopped, so it does twice its work. Change of the processor time of a",
        "step in percent: the median, and its 95 % interval. The first row has no exporter: what cannot be told apart.",
        "The exporter's own share of a core, with that of processes that it has started, is the most that it could",
        "take from a training that had one core for both; it stands back (niceness 10), so the training comes first.",
        "",
        "| exporter | training thread, % | whole training process, % | the exporter's share of a core, % | events |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row.name} | {shown(row.thread)} | {shown(row.process)} | {row.share:.2f} | {row.events:,} |"
            for row in rows
        ),
        "",
        *verdict(rows[1:]),
        "",
        "## The exporter itself",
        "",
        f"A finished run of {events:,} events, and one of {4 * events:,}, samples and ends of epochs as a watched",
        "training says them: seconds of processor time to start and end, and for 1,000 events more; and the largest",
        "resident size in MiB. What a backend does in a process of its own (W&B's, MLflow's) is not in it.",
        "",
        "| exporter | to start and end | for 1,000 events | MiB | MiB, four times the run |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {one.name} | {one.start:.2f} | {one.per_thousand:.3f} | {one.memory[0]:.0f} | {one.memory[1]:.0f} |"
            for one in owns
        ),
        "",
    ]
    return "\n".join(lines)


def verdict(rows: list[Beside]) -> list[str]:
    """What the shares and the intervals say about the aim."""

    def those(names: list[str]) -> str:
        return "; ".join(names) or "none"

    within = [row.name for row in rows if row.share <= AIM]
    beyond = [row.name for row in rows if row.share > AIM]
    met = [row.name for row in rows if row.thread[2] <= AIM]
    missed = [row.name for row in rows if row.thread[1] > AIM]
    return [
        f"The aim is at most {AIM:g} % of a step.",
        "",
        "- On a machine with one core for both, an exporter takes from the training at most its share of that core.",
        f"  That is within the aim for: {those(within)}. Beyond it for: {those(beyond)}.",
        "- Where each has a core, the training feels what is left: caches, memory and the journal's file. By its",
        f"  interval the aim is met for: {those(met)}. Missed for: {those(missed)}. For the others the interval is too",
        "  wide to tell.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=80, help="of blocks, for each exporter")
    parser.add_argument("--seconds", type=float, default=0.5, help="a block")
    parser.add_argument("--events", type=int, default=5_000, help="of the smaller run")
    parser.add_argument("--only", default="", help="exporters whose name contains this")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(sapflow.__file__).parents[1])
    os.environ["no_proxy"] = "127.0.0.1"
    rows = [beside(NOBODY, [], options.pairs, options.seconds)]
    owns = []
    with backends() as found:
        for name, given in found.items():
            if options.only in name:
                rows.append(beside(name, given, options.pairs, options.seconds))
                owns.append(own(name, given, options.events))
                print(rows[-1], owns[-1], file=sys.stderr)
    text = page(rows, owns, options.pairs, options.seconds, options.events)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
