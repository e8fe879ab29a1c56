"""Faults while a run is written: killed, out of space, moved, read-only, a clock that jumps, two at once.

Every test counts what was acknowledged before the fault and what a reader finds afterwards: none of it may be missing,
and nothing may be there twice. The sums are printed (`pytest -s`).
"""

import contextlib
import itertools
import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import sapflow
from commands import iter_events
from journals import PATIENCE, epoch_completed, finished_run, journal_log, open_folder, plain_user, python
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.telemetry import stream as stream_module
from sapflow.telemetry.events import EnvStarted, RunCompleted, TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.stream import EventStream


class Tally:
    """What was tried and what came of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def check(self, run_dir: Path, acknowledged: int) -> list[TelemetryEvent]:
        """After a fault: of the events with numbers from 1, those up to `acknowledged` are there, each once."""
        with Source(run_dir) as source:
            events = list(iter_events(source))
            assert source.skipped == {}
        numbers = Counter((found.env_id, found.sequence) for found in events if found.sequence is not None)
        self.counts["faults"] += 1
        self.counts["acknowledged"] += acknowledged
        self.counts["lost"] += sum((0, number) not in numbers for number in range(1, acknowledged + 1))
        self.counts["duplicates"] += sum(count - 1 for count in numbers.values())
        assert (self.counts["lost"], self.counts["duplicates"]) == (0, 0), self.counts
        return events


@pytest.fixture(scope="module")
def tally():
    tally = Tally()
    yield tally
    print("\njournal faults:", ", ".join(f"{name} {count}" for name, count in sorted(tally.counts.items())))


# One process that has everything imported forks a trainer a trial, kills it at a moment of its own, and says what was
# acknowledged by then. `known` in what is resumed is what stood in the journal.
KILLER = """
import json, os, random, signal, sys, time
from itertools import count
from pathlib import Path

from journals import PATIENCE, epoch_completed, gradient_sampled
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.resuming import WhatIsNew
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock

root, trials, attempts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
moments = random.Random(20261125)

def train(run_dir, told):
    with TrainerLock(run_dir):
        resume = (run_dir / JOURNAL_NAME).exists() and (run_dir / JOURNAL_NAME).stat().st_size > 0
        known = WhatIsNew(run_dir) if resume else None
        (run_dir / JOURNAL_NAME).unlink() if not resume and (run_dir / JOURNAL_NAME).exists() else None
        journal = Journal(run_dir, resume=resume)
        sink = journal if known is None else known.before(journal)
        for number in count(1):
            sink.emit(epoch_completed(number))
            sink.emit(gradient_sampled(number))
            if number % 20 == 0 and journal.flush(PATIENCE):
                os.write(told, b"%d\\n" % number)

for trial in range(trials):
    run_dir = root / f"trial-{trial}"
    run_dir.mkdir()
    acknowledged = 0
    for attempt in range(attempts):
        hears, told = os.pipe()
        child = os.fork()
        if child == 0:
            train(run_dir, told)
        os.close(told)
        with os.fdopen(hears) as lines:
            for _ in range(moments.choice([0, 0, 1, 2, 5, 10])):  # with none, it is killed as it begins
                acknowledged = max(acknowledged, int(lines.readline()))
            time.sleep(moments.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            acknowledged = max([acknowledged, *map(int, lines.read().splitlines())])
    print(json.dumps([trial, acknowledged]), flush=True)
"""


def test_sigkill_at_any_of_24_moments_loses_nothing_that_was_acknowledged(tmp_path, tally):
    with python(KILLER, tmp_path, 24, 1) as killer:
        trials = [json.loads(line) for line in killer.stdout]
        assert killer.wait(PATIENCE) == 0
    assert len(trials) == 24
    assert sum(acknowledged > 0 for _, acknowledged in trials) >= 8  # or the moments were all too early
    for trial, acknowledged in trials:
        run_dir = tmp_path / f"trial-{trial}"
        if acknowledged or has_events(run_dir):
            tally.check(run_dir, acknowledged)
        else:  # it was killed before it had said anything
            tally.counts["faults"] += 1


def has_events(run_dir: Path) -> bool:
    journal = run_dir / JOURNAL_NAME
    return journal.exists() and journal.stat().st_size > 0


def test_a_run_that_is_killed_and_resumed_again_and_again_has_every_event_once(tmp_path, tally):
    with python(KILLER, tmp_path, 3, 6) as killer:
        trials = [json.loads(line) for line in killer.stdout]
        assert killer.wait(PATIENCE) == 0
    for trial, acknowledged in trials:
        events = tally.check(tmp_path / f"trial-{trial}", acknowledged)
        samples = Counter(found.epoch for found in events if found.sequence is None)
        assert samples
        assert set(samples.values()) == {1}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_and_is_cleared_loses_nothing_that_was_acknowledged(tmp_path, tally):
    with small_disk(tmp_path / "disk") as disk, journal_log() as log:
        filler = disk / "filler"
        filler.write_bytes(bytes(600_000))
        journal = Journal(disk, queue_size=1_000)
        numbers = itertools.count(1)
        while not log.count("cannot write"):
            journal.emit(epoch_completed(next(numbers), text="x" * 1_000))
            journal.flush(0.01)
        acknowledged = journal.report().acknowledged
        assert acknowledged > 0
        with Source(disk) as source:  # what was acknowledged can be read while the disk is full
            assert [found.sequence for found in iter_events(source)] == list(range(1, acknowledged + 1))
        filler.unlink()
        assert journal.flush(PATIENCE)
        journal.emit(epoch_completed(next(numbers)))
        report = journal.close()
        events = tally.check(disk, report.acknowledged)
        assert len(events) == report.acknowledged == next(numbers) - 1
        assert (report.dropped_events, log.count("cannot write"), log.count("written again")) == (0, 1, 1)


def test_a_disk_that_stays_full_is_said_once_and_what_was_acknowledged_is_there(tmp_path, tally):
    with small_disk(tmp_path / "disk") as disk, journal_log() as log:
        journal = Journal(disk, queue_size=50)
        numbers = itertools.count(1)
        while not log.count("cannot write"):
            journal.emit(epoch_completed(next(numbers), text="x" * 5_000))
            journal.flush(0.01)
        for number in itertools.islice(numbers, 500):  # the training goes on
            journal.emit(epoch_completed(number, text="x" * 5_000))
        report = journal.close(timeout=0.2)
        events = tally.check(disk, report.acknowledged)
        assert len(events) == report.acknowledged
        assert report.acknowledged + report.dropped_events == next(numbers) - 1
        assert log.count("cannot write") == 1


READ_ONLY = """
import os, sys
from pathlib import Path
from journals import NOBODY, PATIENCE, epoch_completed, journal_log
from sapflow.errors import RunDirectoryError
from sapflow.telemetry.journal import Journal

run_dir = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(run_dir, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
with journal_log() as log:
    journal = Journal(run_dir)
    journal.emit(epoch_completed(1))
    assert journal.flush(PATIENCE)
    run_dir.chmod(0o555)
    for number in range(2, 1_001):
        journal.emit(epoch_completed(number))
    assert journal.flush(PATIENCE)
    report = journal.close()
    print(report.acknowledged, report.dropped_events, len(log.lines), flush=True)
    try:
        Journal(run_dir / "sub")
    except RunDirectoryError as error:
        print(error, flush=True)
"""


def test_a_directory_that_becomes_read_only_keeps_what_is_written(tally):
    with open_folder() as folder:
        run_dir = folder / "run"
        run_dir.mkdir(mode=0o755)
        with python(READ_ONLY, run_dir) as trainer:
            assert trainer.stdout.readline() == "1000 0 0\n"
            assert trainer.stdout.readline().startswith(f"cannot make the journal {run_dir}/sub/{JOURNAL_NAME}")
            assert trainer.wait(PATIENCE) == 0
        with plain_user():
            assert len(tally.check(run_dir, 1_000)) == 1_000
        run_dir.chmod(0o755)


def test_a_clock_that_jumps_back_changes_no_order_and_loses_nothing(tmp_path, tally, monkeypatch):
    jumps = itertools.cycle([1_700_000_000.0, 1_699_000_000.0, 1_700_000_001.0, 0.0])
    monkeypatch.setattr(stream_module.time, "time", lambda: next(jumps))
    journal = Journal(tmp_path)
    run, env = EventStream(journal, "run"), EventStream(journal, "run", 0)
    env.emit(EnvStarted(host="host", host_params=1, slot_ids=("stem",), epochs=99))
    for number in range(1, 101):
        env.emit(epoch_completed(number).payload)
    run.emit(RunCompleted(completed_envs=1))
    assert journal.close(PATIENCE).acknowledged == 102
    events = tally.check(tmp_path, 100)
    assert [found.epoch for found in events if found.epoch] == list(range(1, 101))
    aggregator = SanctumAggregator()
    for found in events:
        aggregator.apply(found)
    snapshot = aggregator.snapshot()
    assert (snapshot.envs[0].epoch, snapshot.gaps, snapshot.duplicates) == (100, 0, 0)
    with sapflow.open_run(tmp_path) as opened:
        assert opened.epochs(columns=["epoch"]).column("epoch").to_pylist() == list(range(1, 101))
        assert opened.summary.state is RunState.COMPLETED


RIVALS = """
import os, sys
from pathlib import Path
from journals import PATIENCE, epoch_completed
from sapflow.errors import RunDirectoryError
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import TrainerLock

run_dir, rivals = Path(sys.argv[1]), int(sys.argv[2])
start, go = os.pipe()
hears, told = os.pipe()
for rival in range(rivals):
    if os.fork() == 0:
        os.close(go)
        os.read(start, 1)  # until all are there
        try:
            with TrainerLock(run_dir):
                journal = Journal(run_dir)
                for number in range(1, 101):
                    journal.emit(epoch_completed(number))
                journal.close(PATIENCE)
                os.write(told, b"trained\\n")
        except RunDirectoryError as error:
            os.write(told, f"refused: {error}\\n".encode())
        os._exit(0)
os.close(go)
os.close(told)
for _ in range(rivals):
    os.wait()
with os.fdopen(hears) as lines:
    print(lines.read(), end="", flush=True)
"""


def test_of_trainers_that_start_in_one_directory_at_once_one_trains(tmp_path, tally):
    for trial in range(3):
        run_dir = tmp_path / f"trial-{trial}"
        run_dir.mkdir()
        with python(RIVALS, run_dir, 6) as rivals:
            lines = rivals.stdout.read().splitlines()
            assert rivals.wait(PATIENCE) == 0
        assert lines.count("trained") == 1
        refusals = [line for line in lines if line.startswith("refused: ")]
        assert len(refusals) == 5
        assert all("another trainer" in line or "a journal is written once" in line for line in refusals)
        assert len(tally.check(run_dir, 100)) == 100


def test_a_run_directory_that_moves_while_it_is_written_and_read(tmp_path, tally):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    with journal_log() as log, TrainerLock(before):
        journal = Journal(before)
        journal.emit(epoch_completed(1))
        assert journal.flush(PATIENCE)
        with Source(before) as source, sapflow.open_run(before) as opened:
            assert [found.sequence for found in source.read()] == [1]
            assert opened.epochs().num_rows == 1
            before.rename(after)
            for number in range(2, 501):
                journal.emit(epoch_completed(number))
            assert journal.flush(PATIENCE)
            assert [found.sequence for found in iter_events(source)] == list(range(2, 501))
            assert opened.epochs().num_rows == 500
        report = journal.close()
    assert (report.acknowledged, report.dropped_events) == (500, 0)
    assert log.lines == []
    assert len(tally.check(after, 500)) == 500
    assert not before.exists()


def test_a_trainer_that_is_killed_in_the_very_last_transaction_of_all(tmp_path, tally):
    """As the journal becomes one plain file again: only a writer may take back what is half written."""
    run_dir, copy = tmp_path / "run", tmp_path / "copy"
    finished_run(run_dir, *(epoch_completed(number, text="x" * 2_000) for number in range(1, 201)))
    copy.mkdir()
    with contextlib.closing(sqlite3.connect(run_dir / JOURNAL_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the end of the transaction
        connection.execute("BEGIN")
        connection.execute("DELETE FROM events")
        for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-journal"):
            (copy / name).write_bytes((run_dir / name).read_bytes())
    assert (copy / JOURNAL_NAME).read_bytes() != (run_dir / JOURNAL_NAME).read_bytes()
    assert len(tally.check(copy, 200)) == 200
    assert [path.name for path in copy.iterdir()] == [JOURNAL_NAME]
