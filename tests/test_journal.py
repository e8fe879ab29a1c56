"""The journal from outside: what is acknowledged is there, what is lost is counted, and training is never held up."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journals import (
    PATIENCE,
    epoch_completed,
    event,
    finished_run,
    gradient_sampled,
    journal_log,
    killed_run,
    locked,
    python,
    run_completed,
)
from sapflow.errors import RunDirectoryError
from sapflow.telemetry import codec, run_directory
from sapflow.telemetry.events import (
    Alert,
    AlertRaised,
    EnvFailed,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    Payload,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal, JournalReport
from sapflow.telemetry.journal_opening import BUSY_SECONDS
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import EventType, Severity


def query(run_dir, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection:
        return connection.execute(sql).fetchall()


def epochs(run_dir) -> list[int | None]:
    with Source(run_dir) as source:
        return [each.epoch for each in source.read()]


SPECIAL = (float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308, 0.1)


def test_special_floats_survive_a_real_journal(tmp_path):
    sample = GradientSampled(
        epoch=1,
        slot_id="stem",
        pass_index=tuple(range(len(SPECIAL))),
        entering=SPECIAL,
        leaving=SPECIAL[::-1],
        health=GradientHealth(grad_ratio=float("nan"), max_ratio=float("inf")),
    )
    with Source(finished_run(tmp_path, event(sample, sequence=None))) as source:
        (back,) = source.read()
    assert list(map(repr, back.payload.entering)) == list(map(repr, SPECIAL))
    assert list(map(repr, back.payload.leaving)) == list(map(repr, SPECIAL[::-1]))
    assert (repr(back.payload.health.grad_ratio), repr(back.payload.health.max_ratio)) == ("nan", "inf")


FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
COUNTS = st.integers(0, 2**63 - 1)
NAMES = st.text(max_size=20)
NORMS = st.lists(FLOATS, max_size=5).map(tuple)
HEALTH = st.builds(GradientHealth, grad_ratio=FLOATS, evidence=NAMES, output_input_rms=st.none() | FLOATS)
SEEDS = st.builds(SeedTelemetry, slot_id=NAMES, grad_ratio=FLOATS, last_ratio=FLOATS, evidence=NAMES)
SAMPLES = st.builds(
    GradientSampled, epoch=COUNTS, slot_id=NAMES, pass_index=st.just((0,)), entering=NORMS, leaving=NORMS, health=HEALTH
)
EPOCHS = st.builds(
    EpochCompleted, epoch=COUNTS, epochs=COUNTS, accuracy=FLOATS, train_loss=FLOATS, validation_loss=FLOATS,
    seeds=st.lists(SEEDS, max_size=3).map(tuple),
)  # fmt: skip
FAILURES = st.builds(EnvFailed, epoch=COUNTS, error=st.text())


@given(payload=SAMPLES | EPOCHS | FAILURES, time=st.floats(0, 1e12), env=st.none() | COUNTS, run_id=NAMES)
def test_every_event_comes_back_from_its_bytes(payload, time, env, run_id):
    sent = TelemetryEvent(run_id=run_id, env_id=env, sequence=None, time=time, payload=payload)
    assert repr(codec.decode(codec.encode(sent))) == repr(sent)  # repr, since a NaN is not equal to itself


def test_layout_of_the_file(tmp_path):
    finished_run(tmp_path, epoch_completed(3, env=7), gradient_sampled(2), run_completed())
    assert query(tmp_path, "PRAGMA application_id") == [(int.from_bytes(b"SAPF", "big"),)]
    assert query(tmp_path, "PRAGMA user_version") == [(1,)]
    assert query(tmp_path, "SELECT id, env, sequence, epoch, type, time FROM events ORDER BY id") == [
        (1, 7, 3, 3, "EPOCH_COMPLETED", 1_700_000_000.5),
        (2, 0, None, 2, "GRADIENT_SAMPLED", 1_700_000_000.5),
        (3, None, 0, None, "RUN_COMPLETED", 1_700_000_000.5),
    ]


def test_a_live_journal_has_a_wal_and_a_closed_one_is_a_single_file(tmp_path):
    journal = Journal(tmp_path)
    journal.emit(epoch_completed())
    assert journal.flush(PATIENCE)
    assert query(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]
    assert query(tmp_path, "PRAGMA journal_mode") == [("delete",)]


def test_closing_under_a_reader_keeps_the_reader_going(tmp_path):
    journal = Journal(tmp_path)
    with Source(tmp_path) as source:
        journal.emit(epoch_completed(1))
        assert journal.flush(PATIENCE)
        assert [each.epoch for each in source.read()] == [1]
        journal.emit(epoch_completed(2))
        assert journal.close().acknowledged == 2
        assert [each.epoch for each in source.read()] == [2]
    assert epochs(tmp_path) == [1, 2]


def test_an_existing_journal_is_refused_and_not_touched(tmp_path):
    before = (finished_run(tmp_path, epoch_completed()) / JOURNAL_NAME).read_bytes()
    with pytest.raises(RunDirectoryError, match=r"exists, and a journal is written once: choose another"):
        Journal(tmp_path)
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_a_journal_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"cannot make the journal .*: choose another"):
        Journal(tmp_path / "missing")


def test_close_says_how_it_went_and_later_events_are_counted(tmp_path):
    journal = Journal(tmp_path)
    journal.emit(epoch_completed(1))
    report = JournalReport(acknowledged=1, dropped_events=0, dropped_samples=0, write_failures=0, last_error=None)
    assert journal.close() == report
    assert journal.close() == report
    journal.emit(epoch_completed(2))
    journal.emit(gradient_sampled())
    journal.emit(gradient_sampled())
    assert (journal.report().dropped_events, journal.report().dropped_samples) == (1, 2)
    assert epochs(tmp_path) == [1]


def test_threads_may_emit_together_and_each_keeps_its_order(tmp_path):
    journal = Journal(tmp_path)

    def emit(env: int) -> None:
        for epoch in range(1, 501):
            journal.emit(epoch_completed(epoch, env))

    threads = [threading.Thread(target=emit, args=(env,)) for env in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.close(PATIENCE).acknowledged == 2_000
    with Source(tmp_path) as source:
        events = source.read()
    for env in range(4):
        assert [each.epoch for each in events if each.env_id == env] == list(range(1, 501))


def test_samples_are_dropped_before_events_and_all_is_counted(tmp_path):
    with journal_log() as log:
        journal = Journal(tmp_path, queue_size=8)
        with locked(tmp_path):
            journal.emit(epoch_completed(1))  # the writer takes this one, and is stuck with it
            log.wait_for("cannot write")
            for _ in range(10):
                journal.emit(gradient_sampled(2))
            half = journal.report()
            for epoch in range(3, 13):
                journal.emit(epoch_completed(epoch))
            journal.emit(gradient_sampled(13))
            full = journal.report()
            assert not journal.flush(0)
        assert journal.flush(PATIENCE)
    assert (half.dropped_events, half.dropped_samples) == (0, 5)  # more than half of 8 is 5
    assert (full.dropped_events, full.dropped_samples) == (7, 6)
    report = journal.close()
    assert (report.acknowledged, report.dropped_events, report.dropped_samples) == (9, 7, 6)
    assert epochs(tmp_path) == [1, *[2] * 5, 3, 4, 5]
    with Source(tmp_path) as source:
        assert (source.status().dropped_events, source.status().dropped_samples) == (7, 6)


def test_drops_that_no_event_follows_are_in_the_journal_too(tmp_path):
    journal = Journal(tmp_path, queue_size=0)
    journal.emit(epoch_completed())
    journal.close()
    with Source(tmp_path) as source:
        assert (source.status().dropped_events, source.read()) == (1, [])


def test_a_locked_journal_is_reported_once_and_its_recovery_once(tmp_path):
    with journal_log() as log:
        journal = Journal(tmp_path)
        for _ in range(2):
            failures = journal.report().write_failures
            with locked(tmp_path):
                journal.emit(epoch_completed())
                while journal.report().write_failures < failures + 2:
                    assert not journal.flush(0.01)
            assert journal.flush(PATIENCE)
        report = journal.close()
    assert (log.count("cannot write"), log.count("written again")) == (2, 2)
    assert report.acknowledged == 2
    assert report.last_error == "database is locked (SQLITE_BUSY)"


def test_close_does_not_wait_for_a_journal_that_stays_locked(tmp_path):
    with journal_log() as log:
        journal = Journal(tmp_path)
        with locked(tmp_path):
            journal.emit(epoch_completed())
            log.wait_for("cannot write")
            journal.emit(epoch_completed())
            journal.emit(gradient_sampled())
            report = journal.close(timeout=0)
            assert not journal.flush(PATIENCE)
    assert (report.acknowledged, report.dropped_events, report.dropped_samples) == (0, 2, 1)
    assert epochs(tmp_path) == []


class Strange(Payload, frozen=True, kw_only=True):
    type = EventType.RUN_STARTED
    thing: Any


@dataclass
class Unending:
    again: Any = None


def unending() -> Unending:
    thing = Unending()
    thing.again = thing
    return thing


@pytest.mark.parametrize(
    "bad",
    [
        event(Strange(thing=object())),
        event(Strange(thing=2**70)),
        event(Strange(thing="\udc00")),
        event(Strange(thing=unending())),
        event(Payload()),
        epoch_completed(env=2**63),
        TelemetryEvent(run_id="run", env_id=0, sequence=0, time=float("nan"), payload=run_completed().payload),
        TelemetryEvent(run_id="run", env_id=[], sequence=0, time=0.0, payload=run_completed().payload),
    ],
    ids=["object", "huge", "surrogate", "endless", "untyped", "env beyond SQLite", "time NaN", "env a list"],
)
def test_what_cannot_be_encoded_is_dropped_alone(tmp_path, bad):
    with journal_log() as log:
        journal = Journal(tmp_path)
        with locked(tmp_path):  # so that all of it becomes one batch, tried more than once
            journal.emit(epoch_completed(1))
            log.wait_for("cannot write")
            for each in (epoch_completed(2), bad, bad, epoch_completed(3)):
                journal.emit(each)
        assert journal.flush(PATIENCE)
        report = journal.close()
    assert (report.acknowledged, report.dropped_events) == (3, 2)
    assert log.count("cannot be written and is dropped") == 1
    assert epochs(tmp_path) == [1, 2, 3]
    with Source(tmp_path) as source:
        assert source.status().dropped_events == 2


def test_a_network_file_system_is_named(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / {tmp_path} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(run_directory, "MOUNT_TABLE", table)
    with journal_log() as log:
        finished_run(tmp_path / "run")
    assert log.count(f"network file system (nfs4 at {tmp_path})") == 1
    assert log.count("put the run directory on a local disk") == 1
    with Source(tmp_path / "run") as source:
        assert source.status().notice in log.lines


def test_a_local_run_directory_needs_no_word(tmp_path):
    with journal_log() as log:
        finished_run(tmp_path, epoch_completed())
    assert log.lines == []


def test_acknowledged_events_survive_sigkill(tmp_path):
    run_dir = killed_run(tmp_path / "run", acknowledged=500)
    with Source(run_dir) as source:
        events = []
        while news := source.read():
            events += news
        assert source.status().state is RunState.ENDED
    assert len(events) >= 500
    assert [each.epoch for each in events] == list(range(1, len(events) + 1))
    assert query(run_dir, "PRAGMA integrity_check") == [("ok",)]


def test_what_a_stranger_noted_in_a_journal_keeps_nobody_from_going_on_with_it(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1))
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES (CAST(x'ff' AS TEXT), 'much')")
    journal = Journal(run_dir, resume=True)
    journal.emit(epoch_completed(2))
    assert journal.close(PATIENCE).acknowledged == 1
    assert epochs(run_dir) == [1, 2]


@contextmanager
def read_for(run_dir: Path, seconds: float) -> Iterator[None]:
    """Somebody reads a finished journal, as one look, for so long."""
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        timer = threading.Timer(seconds, reader.execute, ["COMMIT"])
        timer.start()
        yield
        timer.cancel()
        timer.join()


def test_who_reads_a_journal_at_length_keeps_nobody_from_going_on_with_it(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1))
    with read_for(run_dir, 3 * BUSY_SECONDS):
        journal = Journal(run_dir, resume=True)
    journal.emit(epoch_completed(2))
    assert journal.close(PATIENCE).acknowledged == 1
    assert epochs(run_dir) == [1, 2]


def test_who_never_ends_reading_a_journal_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("sapflow.telemetry.journal_opening.OPENING_SECONDS", 0.1)
    run_dir = finished_run(tmp_path, epoch_completed(1))
    with read_for(run_dir, PATIENCE), pytest.raises(RunDirectoryError, match="read by somebody at length: wait until"):
        Journal(run_dir, resume=True)


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from journals import PATIENCE, epoch_completed, gradient_sampled, journal_log
from sapflow.telemetry.journal import Journal

def limit(size):
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with journal_log() as log:
    journal = Journal(Path(sys.argv[1]), queue_size=64)
    journal.emit(epoch_completed(1))
    assert journal.flush(PATIENCE)
    limit(200_000)  # no file may grow further
    journal.emit(epoch_completed(2, text="x" * 300_000))
    log.wait_for("cannot write")
    for epoch in range(3, 1_003):
        journal.emit(gradient_sampled(epoch))
        journal.emit(epoch_completed(epoch))
    full = journal.report()
    print(json.dumps([full.acknowledged, full.dropped_events + full.dropped_samples]), flush=True)
    assert not journal.flush(0)
    sys.stdin.readline()
    limit(resource.RLIM_INFINITY)
    assert journal.flush(PATIENCE)
    journal.emit(epoch_completed(2_000))
    report = journal.close()
    print(json.dumps([
        report.acknowledged, report.dropped_events, report.dropped_samples,
        log.count("cannot write"), log.count("written again"),
    ]))
"""


def test_a_full_disk_is_counted_and_said_once_and_the_run_goes_on(tmp_path):
    with python(FULL_DISK, tmp_path) as trainer:
        assert json.loads(trainer.stdout.readline()) == [1, 2_000 - 64]
        assert epochs(tmp_path) == [1]
        trainer.stdin.write("\n")
        trainer.stdin.flush()
        acknowledged, events, samples, said, said_again = json.loads(trainer.stdout.readline())
        assert trainer.wait(PATIENCE) == 0
    assert (acknowledged, events + samples) == (1 + 1 + 64 + 1, 2_000 - 64)
    assert samples > events
    assert (said, said_again) == (1, 1)
    with Source(tmp_path) as source:
        read = [each.epoch for each in source.read()]
        assert (source.status().dropped_events, source.status().dropped_samples) == (events, samples)
    assert len(read) == acknowledged
    assert (read[:2], read[-1]) == ([1, 2], 2_000)


def test_an_alert_with_every_field_comes_back(tmp_path):
    alert = Alert(
        rule="gradient vanishes", severity=Severity.CRITICAL, slot_id="stem", seed_id="s1", blueprint_id="b",
        since_epoch=2, value=float("inf"), evidence="3 epochs below 0.1", actions=("prune",),
    )  # fmt: skip
    with Source(finished_run(tmp_path, event(AlertRaised(epoch=4, alert=alert)))) as source:
        assert [each.payload.alert for each in source.read()] == [alert]


def test_a_journal_is_refused_where_the_layout_cannot_be_written(tmp_path):
    (
        tmp_path / f"{JOURNAL_NAME}-journal"
    ).mkdir()  # in the place of the file that SQLite needs for its first transaction
    with pytest.raises(RunDirectoryError, match=r"cannot make the journal .*: choose another"):
        Journal(tmp_path)
