"""What Sanctum's data side costs: taking events in, making snapshots, and opening a journal of millions of events."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sanctum_journal as journal

from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.env_view import EnvView
from sapflow.sanctum.rewind import Film, opened, recall
from sapflow.telemetry import codec
from sapflow.telemetry.events import EpochCompleted, TelemetryEvent
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import Source

ENVS, SEEDS, EPOCHS = 64, 3, 200
BATCH = 2_000  # events between two looks, as in the app
MANY_ENVS, MANY_SEEDS = 1_000, 8
ROUNDS = 5
LOOKS = 300
SAMPLES_AN_EPOCH = 300
FOLLOWED = 200_000  # events, from which it is told how long following all would take


@dataclass(frozen=True)
class Row:
    """A figure beside what it is to be measured by; `aim` None where none was set."""

    what: str
    value: float
    unit: str
    aim: float | None = None
    more_is_better: bool = True

    @property
    def met(self) -> bool:
        """Whether it is as it was to be."""
        return self.aim is None or (self.value >= self.aim if self.more_is_better else self.value <= self.aim)

    def markdown(self) -> str:
        """A row of a table."""
        aim = "" if self.aim is None else f"{'≥' if self.more_is_better else '≤'} {self.aim:,g}"
        verdict = "" if self.aim is None else "met" if self.met else "**missed**"
        return f"| {self.what} | {self.value:,.4g} {self.unit} | {aim} | {verdict} |"


def cpu(action: Callable[[], object]) -> float:
    """CPU seconds of this process, the least of some rounds: others share the machine."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        action()
        best = min(best, time.process_time() - begun)
    return best


def epochs(envs: int = ENVS, seeds: int = SEEDS, count: int = EPOCHS) -> list[TelemetryEvent]:
    return [
        journal.epoch_completed(env_id, epoch, seeds, epoch - 1, journal.START + epoch)
        for epoch in range(1, count + 1)
        for env_id in range(envs)
    ]


def taking_in() -> Iterator[Row]:
    """Events a second, decoded and from bytes."""
    events = epochs()
    bodies = [codec.encode(event) for event in events]

    def fold() -> None:
        aggregator = SanctumAggregator()
        for number, event in enumerate(events, 1):
            aggregator.apply(event)
            if number % BATCH == 0:
                aggregator.snapshot()

    def eager() -> None:
        views = {env_id: EnvView(env_id) for env_id in range(ENVS)}
        for event in events:
            assert event.env_id is not None
            assert isinstance(event.payload, EpochCompleted)
            view = views[event.env_id]
            view.end_epoch(event.payload, event.time)
            _ = view.state

    fed, rebuilt = len(events) / cpu(fold), len(events) / cpu(eager)
    yield Row(f"epochs of {SEEDS} seeds taken in, decoded", fed, "a second", aim=300_000)
    yield Row("– baseline: an immutable state with each", rebuilt, "a second")
    yield Row("– ratio", fed / rebuilt, "times")
    with scratch() as folder:
        run_dir = folder / "epochs"
        journal.write_events(run_dir, events)

        def follow() -> None:
            aggregator = SanctumAggregator()
            with Source(run_dir) as source:
                while sum(1 for _ in map(aggregator.apply, source.stream(BATCH))):
                    aggregator.snapshot()

        def decode() -> None:
            for body in bodies:
                codec.decode(body)

        followed, decoded = (
            len(events) / cpu(follow),
            len(events) / cpu(decode),
        )
    yield Row("the same from the journal, read, decoded and taken in", followed, "a second", aim=100_000)
    yield Row("– limit: decoding and nothing else", decoded, "a second")
    yield Row("– ratio", followed / decoded, "times")


def looking() -> Iterator[Row]:
    """Milliseconds a snapshot, when one env of 64 has changed."""
    aggregator = SanctumAggregator()
    for event in epochs():
        aggregator.apply(event)
    aggregator.snapshot()
    changes = [journal.epoch_completed(7, EPOCHS + number, SEEDS, EPOCHS + number) for number in range(2 * LOOKS)]

    def look(changed: Callable[[], None], events: list[TelemetryEvent]) -> float:
        times = []
        for event in events:
            aggregator.apply(event)
            changed()
            begun = time.perf_counter()
            aggregator.snapshot()
            times.append(time.perf_counter() - begun)
        return 1e3 * sorted(times)[len(times) // 2]

    shared = look(lambda: None, changes[:LOOKS])
    whole = look(lambda: aggregator._changed.update(aggregator._envs), changes[LOOKS:])
    yield Row(f"a snapshot, one env of {ENVS} changed (median)", shared, "ms", aim=0.1, more_is_better=False)
    yield Row("– baseline: nothing shared, every env made anew", whole, "ms")
    yield Row("– ratio", whole / shared, "times")
    many, best = SanctumAggregator(), float("inf")
    for epoch in range(1, ROUNDS + 1):
        for env_id in range(MANY_ENVS):
            many.apply(journal.epoch_completed(env_id, epoch, MANY_SEEDS, epoch))
        begun = time.process_time()
        many.snapshot()
        best = min(best, time.process_time() - begun)
    yield Row(f"a snapshot, {MANY_ENVS:,} envs of {MANY_SEEDS} seeds, all changed", 1e3 * best, "ms of CPU")


def opening(events: int, envs: int = ENVS, seeds: int = SEEDS, samples: int = SAMPLES_AN_EPOCH) -> Iterator[Row]:
    """A journal of so many events, in a process of its own."""
    with scratch() as folder:
        run_dir = folder / "long"
        journal.write(run_dir, events, envs, seeds, samples)
        size = (run_dir / JOURNAL_NAME).stat().st_size
        command = [sys.executable, __file__, str(run_dir)]
        found = min(
            (
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(ROUNDS)
            ),
            key=lambda one: one["wall"],
        )
    name = f"{events:,} events of {envs:,} envs ({size / 2**30:.2f} GiB)"
    yield Row(f"{name}: first snapshot, wall", found["wall"], "s", aim=1.0, more_is_better=False)
    yield Row("– CPU of that", found["cpu"], "s")
    yield Row("– peak memory of the process", found["memory"], "MiB", aim=200, more_is_better=False)
    yield Row("– histories and logs of all envs, while it is followed", found["recalled"], "s of CPU")
    yield Row("– any moment of it", found["moment"], "s of CPU")
    yield Row("– the moment after that, as when playing", 1e3 * found["next"], "ms of CPU")
    yield Row(f"– baseline: following it all (told from {FOLLOWED:,} events)", found["follow"] * events, "s of CPU")
    yield Row("– ratio", found["follow"] * events / found["cpu"], "times")


def measure_opening(run_dir: Path) -> dict[str, float]:
    """In this process, which has opened nothing yet."""
    wall, used = time.perf_counter(), time.process_time()
    with Source(run_dir) as source:
        aggregator = opened(source)
        aggregator.snapshot()
        wall, used = time.perf_counter() - wall, time.process_time() - used
        begun = time.process_time()
        while recall(source, aggregator):
            pass
        recalled = time.process_time() - begun
        film, epoch, begun = Film(source), source.last_epoch() // 2, time.process_time()
        film.at(epoch)
        moment, begun = time.process_time() - begun, time.process_time()
        film.at(epoch + 1)
        following = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    aggregator, taken = SanctumAggregator(), 0
    begun = time.process_time()
    with Source(run_dir) as source:
        for event in source.stream(FOLLOWED):
            aggregator.apply(event)
            taken += 1
            if taken % BATCH == 0:
                aggregator.snapshot()
    follow = (time.process_time() - begun) / max(taken, 1)
    return {
        "wall": wall,
        "cpu": used,
        "recalled": recalled,
        "memory": memory,
        "moment": moment,
        "next": following,
        "follow": follow,
    }


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as name:
        yield Path(name)


def section(events: int) -> str:
    """The half of the page that is about data."""
    many = opening(events // 25, MANY_ENVS, MANY_SEEDS, samples=3)
    rows = [*taking_in(), *looking(), *opening(events), *many]
    return "\n".join(
        [
            "## Data",
            "",
            f"{ENVS} envs of {SEEDS} seeds; {os.cpu_count()} cores ({platform.machine()}), Python "
            f"{platform.python_version()}. Other work shared the machine: rates are by CPU time of the process,",
            f"the best of {ROUNDS} rounds. A snapshot is made after every {BATCH:,} events, as in the app. The long",
            f"journal is of samples, {SAMPLES_AN_EPOCH} an epoch and env; a process that has done nothing else opens",
            "it, with the file in the cache of the system. Its wall time is that of a machine at work.",
            "",
            "| | measured | aim | |",
            "| --- | ---: | ---: | --- |",
            *(row.markdown() for row in rows),
            "",
            "Every event that is read is decoded and validated whole: of those that are malformed none is missed.",
            "",
        ]
    )


if __name__ == "__main__":
    print(json.dumps(measure_opening(Path(sys.argv[1]))))
