"""The reader from outside: live, finished and killed runs, journals of other versions, and files that are none."""

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from journals import (
    PATIENCE,
    epoch_completed,
    finished_run,
    gradient_sampled,
    killed_run,
    locked,
    open_folder,
    plain_user,
    python,
    run_completed,
)
from sapflow.errors import JournalError
from sapflow.telemetry import codec
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.questions import MAX_EVENT_BYTES, SELECT_MOMENT
from sapflow.telemetry.run_directory import JOURNAL_NAME, LOCK_NAME, REQUESTS_NAME, TrainerLock
from sapflow.telemetry.source import RunState, Source


def epochs(path: Path) -> list[int | None]:
    with Source(path) as source:
        return [each.epoch for each in source.read()]


def fingerprints(run_dir: Path) -> dict[str, str]:
    """What every file of the run holds; the -shm file is SQLite's shared memory, not data."""
    files = sorted(path for path in run_dir.iterdir() if not path.name.endswith("-shm"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def add_row(run_dir: Path, body: object, kind: str = "EPOCH_COMPLETED") -> None:
    row = (0, None, 5, kind, 0.0, body)
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.execute("INSERT INTO events (env, sequence, epoch, type, time, body) VALUES (?, ?, ?, ?, ?, ?)", row)


# Following


FOLLOWER = """
import sys
from pathlib import Path
from sapflow.telemetry.source import RunState, Source

with Source(Path(sys.argv[1])) as source:
    while True:
        status = source.status()
        events = source.read()
        for event in events:
            print(event.type, event.epoch, flush=True)
        if status.state is not RunState.LIVE and not events:
            print(status.state, flush=True)
            break
"""


def test_another_process_follows_a_run_from_before_its_journal_to_its_end(tmp_path):
    with TrainerLock(tmp_path), python(FOLLOWER, tmp_path) as follower:
        journal = Journal(tmp_path)
        for epoch in range(1, 6):
            journal.emit(gradient_sampled(epoch))
            journal.emit(epoch_completed(epoch))
            assert follower.stdout.readline() == f"GRADIENT_SAMPLED {epoch}\n"
            assert follower.stdout.readline() == f"EPOCH_COMPLETED {epoch}\n"
        journal.emit(run_completed())
        assert follower.stdout.readline() == "RUN_COMPLETED None\n"
        assert follower.stdout.readline() == "COMPLETED\n"
        assert follower.wait(PATIENCE) == 0
        journal.close()


def test_read_goes_on_where_it_stopped(tmp_path):
    run_dir = finished_run(tmp_path, *map(epoch_completed, range(1, 8)))
    with Source(run_dir) as source:
        reads = [[each.epoch for each in source.read(limit=3)] for _ in range(4)]
    assert reads == [[1, 2, 3], [4, 5, 6], [7], []]


def test_an_empty_read_means_nothing_new_even_after_much_that_cannot_be_read(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1))
    for _ in range(5):
        add_row(run_dir, b"\xc1")
    add_row(run_dir, codec.encode(epoch_completed(2)))
    with Source(run_dir) as source:
        reads = [[each.epoch for each in source.read(limit=1)] for _ in range(3)]
    assert reads == [[1], [2], []]


def test_one_read_takes_a_bounded_amount_of_memory(tmp_path):
    text = "x" * (MAX_EVENT_BYTES - 1_000)
    run_dir = finished_run(tmp_path, *(epoch_completed(epoch, text=text) for epoch in range(1, 7)))
    with Source(run_dir) as source:
        assert len(source.read()) < 6
        assert [each.epoch for each in source.read()][-1] == 6


def test_journal_may_be_named_itself_and_its_path_may_hold_any_character(tmp_path):
    run_dir = finished_run(tmp_path / "a run? #1 50%25 é&mode=rw", epoch_completed(4))
    assert epochs(run_dir) == epochs(run_dir / JOURNAL_NAME) == [4]


def test_relative_path(tmp_path, monkeypatch):
    finished_run(tmp_path / "run", epoch_completed(4))
    monkeypatch.chdir(tmp_path)
    assert epochs(Path("run")) == [4]


# Looking back


@pytest.fixture
def two_envs(tmp_path):
    events = [epoch_completed(epoch, env) for epoch in (1, 2, 4) for env in (0, 1)]
    return finished_run(tmp_path, *events, gradient_sampled(5), epoch_completed(6, env=1))


@pytest.mark.parametrize(
    ("env", "epoch", "found"),
    [(0, None, 4), (1, None, 6), (0, 1, 1), (0, 3, 2), (1, 5, 4), (0, 99, 4), (0, 0, None), (2, None, None)],
)
def test_moment_is_the_last_epoch_at_or_before(two_envs, env, epoch, found):
    with Source(two_envs) as source:
        moment = source.moment(env, epoch)
        assert moment == (None if found is None else epoch_completed(found, env))
        assert len(source.read()) == 8, "the cursor stays where it was"


def test_of_an_epoch_that_was_written_twice_the_later_one_counts(tmp_path):
    with Source(finished_run(tmp_path, epoch_completed(1, ratio=0.1), epoch_completed(1, ratio=0.9))) as source:
        assert source.moment(0).payload.seeds[0].grad_ratio == 0.9


def test_moment_passes_over_what_cannot_be_read(two_envs):
    add_row(two_envs, b"\xc1")
    with Source(two_envs) as source:
        assert source.moment(0).epoch == 4


def test_moment_is_found_by_index(two_envs):
    with closing(sqlite3.connect(two_envs / JOURNAL_NAME)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {SELECT_MOMENT}", (0, 1)).fetchall()
    assert [row[-1] for row in plan] == [
        "SEARCH events USING INDEX events_by_env_type_epoch (env=? AND type=? AND epoch<?)"
    ]


# How a run stands


def test_status_of_a_live_a_cut_off_and_a_completed_run(tmp_path):
    journal = Journal(tmp_path)
    with Source(tmp_path) as source:
        assert (source.status().state, source.status().last_event_time) == (RunState.ENDED, None)
        with TrainerLock(tmp_path):
            assert source.status().state is RunState.LIVE
            journal.emit(epoch_completed())
            assert journal.flush(PATIENCE)
            assert source.status().last_event_time == epoch_completed().time
        assert source.status().state is RunState.ENDED
        journal.emit(run_completed())
        journal.close()
        assert source.status().state is RunState.COMPLETED
        assert source.status().notice == ""


def test_a_run_in_whose_place_another_began_has_ended(tmp_path):
    run_dir = finished_run(tmp_path / "run", epoch_completed(1))
    with Source(run_dir) as source:
        shutil.rmtree(run_dir)
        assert (source.status().state, source.status().notice) == (RunState.ENDED, "")
        finished_run(run_dir, epoch_completed(7), run_completed())
        (run_dir / REQUESTS_NAME).mkdir()
        with TrainerLock(run_dir):
            status = source.status()
        assert (status.state, status.takes_requests) == (RunState.ENDED, False)
        assert status.notice.startswith("another journal has taken the place of this one")
        assert [each.epoch for each in source.read()] == [1]
    assert epochs(run_dir) == [7, None]


# Before there is a journal, and while it is locked


def test_a_run_that_has_no_journal_yet_is_waited_for(tmp_path):
    with TrainerLock(tmp_path), Source(tmp_path) as source:
        assert source.read() == []
        assert source.moment(0) is None
        assert source.status().state is RunState.LIVE
        (tmp_path / JOURNAL_NAME).touch()
        assert source.read() == []
        (tmp_path / JOURNAL_NAME).unlink()
        finished_run(tmp_path, epoch_completed(1))
        assert [each.epoch for each in source.read()] == [1]


def test_a_trainer_that_dies_before_its_journal_leaves_an_error(tmp_path):
    with TrainerLock(tmp_path):
        source = Source(tmp_path)
    with source, pytest.raises(JournalError, match="there is no journal"):
        source.read()


def test_a_locked_journal_is_read_later(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1), run_completed())
    with Source(run_dir) as source:
        with locked(run_dir, "EXCLUSIVE"), Source(run_dir) as late:
            assert source.read() == late.read() == []
            assert source.moment(0) is None
        assert len(source.read()) == 2
    with late:
        assert len(late.read()) == 2


# Read-only directories


@pytest.fixture
def folder():
    with open_folder() as folder:
        yield folder


def seal(run_dir: Path) -> Path:
    for path in run_dir.iterdir():
        path.chmod(0o444)
    run_dir.chmod(0o555)
    return run_dir


def copy_of_live(run_dir: Path, to: Path, *suffixes: str) -> Path:
    """What a copy of a run directory holds: the journal, and those files beside it that were copied too."""
    to.mkdir()
    for suffix in ("", *suffixes):
        shutil.copy(run_dir / f"{JOURNAL_NAME}{suffix}", to)
    return to


def test_a_finished_run_opens_read_only(folder):
    run_dir = seal(finished_run(folder / "run", epoch_completed(1), run_completed()))
    with plain_user(), Source(run_dir) as source:
        assert len(source.read()) == 2
        assert source.status().state is RunState.COMPLETED


def test_a_journal_that_kept_its_wal_mode_opens_read_only_without_a_wal(folder):
    journal = Journal(folder)
    with Source(folder):  # keeps the journal in WAL mode
        journal.emit(epoch_completed(1))
        journal.close()
    run_dir = seal(copy_of_live(folder, folder / "copy"))
    before = fingerprints(run_dir)
    with plain_user():
        assert epochs(run_dir) == [1]
    assert fingerprints(run_dir) == before


@pytest.mark.parametrize("suffixes", [("-wal",), ("-wal", "-shm")], ids=["without -shm", "with -shm"])
def test_a_killed_run_opens_read_only_with_all_that_was_acknowledged(folder, suffixes):
    run_dir = seal(copy_of_live(killed_run(folder / "killed"), folder / "copy", *suffixes))
    before = fingerprints(run_dir)
    assert f"{JOURNAL_NAME}-wal" in before
    with plain_user():
        assert len(epochs(run_dir)) >= 100
    assert fingerprints(run_dir) == before


def test_a_live_run_is_followed_without_the_right_to_write(folder):
    run_dir = folder / "run"
    run_dir.mkdir()
    with TrainerLock(run_dir):
        journal = Journal(run_dir)
        journal.emit(epoch_completed(1))
        assert journal.flush(PATIENCE)
        run_dir.chmod(0o555)
        with plain_user():
            source = Source(run_dir)
            first = source.read()
        journal.emit(epoch_completed(2))
        assert journal.flush(PATIENCE)
        with plain_user():
            assert [each.epoch for each in (*first, *source.read())] == [1, 2]
            assert source.status().state is RunState.LIVE
            source.close()
        journal.close()


@pytest.mark.parametrize("suffixes", [(), ("-wal",)], ids=["without -wal", "with -wal"])
def test_a_run_that_goes_on_is_followed_without_the_right_to_write(folder, suffixes):
    journal = Journal(folder)
    with Source(folder):  # keeps the journal in WAL mode
        journal.emit(epoch_completed(1))
        assert journal.flush(PATIENCE)
        journal.emit(epoch_completed(2))
        assert journal.flush(PATIENCE)
        if not suffixes:
            journal.close()
    run_dir = seal(copy_of_live(folder, folder / "copy", *suffixes))
    journal.close()
    with plain_user():
        source = Source(run_dir)
        first = source.read()
        assert source.status().state is RunState.ENDED
    (run_dir / JOURNAL_NAME).chmod(0o644)
    with TrainerLock(run_dir):
        going_on = Journal(run_dir, resume=True)
        going_on.emit(epoch_completed(3))
        assert going_on.flush(PATIENCE)
        with plain_user():
            assert source.status().state is RunState.LIVE
            assert [each.epoch for each in (*first, *source.read())] == [1, 2, 3]
            source.close()
        going_on.close()


def test_a_reader_leaves_a_killed_run_as_it_found_it(tmp_path):
    run_dir = killed_run(tmp_path / "run")
    before = fingerprints(run_dir)
    for _ in range(2):
        assert len(epochs(run_dir)) >= 100
    assert fingerprints(run_dir) == before


def test_what_may_not_be_read_is_said(folder):
    run_dir = finished_run(folder / "run")
    (run_dir / JOURNAL_NAME).chmod(0)
    with plain_user(), pytest.raises(JournalError, match=r"cannot be read .*: check the file and its permissions"):
        Source(run_dir)
    run_dir.chmod(0)
    with plain_user(), pytest.raises(JournalError, match=r"cannot be read \(Permission denied\)"):
        Source(run_dir)


# Other versions


def packed(payload: object, kind: str = "EPOCH_COMPLETED", schema: int = 1) -> bytes:
    """An envelope as the next version may write it: with a field that this one does not know."""
    envelope = {"schema": schema, "run_id": "run", "env_id": 0, "sequence": None, "time": 0.0, "type": kind}
    return msgspec.msgpack.encode({**envelope, "payload": payload, "signature": b"new"})


def test_a_journal_of_an_invented_next_version(tmp_path):
    known = msgspec.to_builtins(epoch_completed(5).payload)
    run_dir = finished_run(tmp_path, epoch_completed(1))
    add_row(run_dir, packed({"mood": "fine"}, kind="SEED_DREAMT"), kind="SEED_DREAMT")
    add_row(run_dir, packed({"all": "different"}, schema=2))
    add_row(run_dir, packed({**known, "weather": {"sun": [1, 2]}}))
    add_row(run_dir, packed({**known, "epoch": "five"}))
    add_row(run_dir, b"\xc1 no msgpack")
    add_row(run_dir, "text instead of bytes")
    add_row(run_dir, bytes(MAX_EVENT_BYTES + 1))
    add_row(run_dir, codec.encode(epoch_completed(6)))
    with Source(run_dir) as source:
        events = source.read()
        assert [each.epoch for each in events] == [1, 5, 6]
        assert events[1].payload == epoch_completed(5).payload
        assert source.skipped == {"unknown type": 1, "newer schema": 1, "malformed": 3, "too large": 1}
        assert source.status().skipped == 6


def test_an_event_of_the_largest_size_is_read(tmp_path):
    overhead = len(codec.encode(epoch_completed(1, text="x" * 2**20))) - 2**20
    text = "x" * (MAX_EVENT_BYTES - overhead)
    assert len(codec.encode(epoch_completed(1, text=text))) == MAX_EVENT_BYTES
    assert epochs(finished_run(tmp_path, epoch_completed(1, text=text))) == [1]


# What is no journal


def test_a_missing_path(tmp_path):
    with pytest.raises(JournalError, match=r"there is no journal at .*missing: name a run directory"):
        Source(tmp_path / "missing")


def test_a_directory_without_a_journal(tmp_path):
    with pytest.raises(JournalError, match=rf"there is no journal at .*{JOURNAL_NAME}"):
        Source(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / JOURNAL_NAME)
    with pytest.raises(JournalError, match="there is no journal"):
        Source(tmp_path)


def test_an_empty_file(tmp_path):
    (tmp_path / JOURNAL_NAME).touch()
    (tmp_path / LOCK_NAME).touch()
    with pytest.raises(JournalError, match="is empty: its trainer was stopped"):
        Source(tmp_path)


@pytest.mark.parametrize("content", [b"epoch,ratio\n1,0.85\n", b"epoch,ratio\n1,0.85\n" * 1_000, bytes(8_192)])
def test_a_file_that_is_no_database(tmp_path, content):
    path = tmp_path / "ratios.csv"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"is no journal: name a run directory"):
        Source(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program(tmp_path):
    path = tmp_path / "bookmarks.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
    with pytest.raises(JournalError, match="is a database of another program"):
        Source(path)


def test_a_journal_of_a_newer_sapflow(tmp_path):
    with closing(sqlite3.connect(finished_run(tmp_path) / JOURNAL_NAME)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(JournalError, match=r"written by a newer Sapflow .*: upgrade"):
        Source(tmp_path)


@pytest.mark.parametrize("change", ["DROP TABLE meta", "ALTER TABLE events RENAME TO things"])
def test_a_journal_without_its_tables(tmp_path, change):
    with closing(sqlite3.connect(finished_run(tmp_path) / JOURNAL_NAME)) as connection:
        connection.execute(change)
    with pytest.raises(JournalError, match="it lacks its tables"):
        Source(tmp_path)


def test_a_view_is_no_table(tmp_path):
    endless = "WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id FROM n"
    with closing(sqlite3.connect(finished_run(tmp_path) / JOURNAL_NAME)) as connection:
        connection.execute("DROP TABLE events")
        connection.execute(f"CREATE VIEW events AS {endless}")
    with pytest.raises(JournalError, match="it lacks its tables"):
        Source(tmp_path)


@pytest.mark.parametrize("kept", [50, 100, 512, 4_095, 4_096, 4_097, -4_096, -1])
def test_a_truncated_journal(tmp_path, kept):
    journal = finished_run(tmp_path, *map(epoch_completed, range(1, 200))) / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:kept])
    with pytest.raises(JournalError, match=r"truncated"):
        Source(tmp_path)


def test_a_page_that_is_damaged_while_it_is_followed(tmp_path):
    journal = (
        finished_run(tmp_path, *(epoch_completed(epoch, text="x" * 1_000) for epoch in range(1, 500))) / JOURNAL_NAME
    )
    with Source(journal) as source:
        assert len(source.read(limit=10)) == 10
        whole = journal.read_bytes()
        half = len(whole) // 2
        journal.write_bytes(whole[:half] + b"\xff" * half)
        with pytest.raises(JournalError, match=r"truncated or damaged .*: restore it from a copy"):
            source.read()


@pytest.mark.parametrize("damage", ["deeply nested", "no text"])
def test_an_event_made_to_break_its_reader_is_counted_and_skipped(tmp_path: Path, damage: str) -> None:
    """An unknown field nested a hundred thousand deep, or a name that is no UTF-8."""
    run_dir = finished_run(tmp_path / "run", epoch_completed(1), epoch_completed(2))
    connection = sqlite3.connect(run_dir / JOURNAL_NAME)
    (body,) = connection.execute("SELECT body FROM events WHERE id = 1").fetchone()
    if damage == "deeply nested":
        assert body[0] == 0x87  # a map of seven: it gets an eighth entry
        body = b"\x88" + body[1:] + b"\xa1x" + b"\x91" * 100_000 + b"\xc0"
    else:
        body = body.replace(b"EPOCH_COMPLETED", b"EPOCH_COMPLETE\xff")
    connection.execute("UPDATE events SET body = ? WHERE id = 1", (body,))
    connection.commit()
    connection.close()
    with Source(run_dir) as source:
        assert [event.epoch for event in source.read()] == [2]
        assert source.skipped == {"malformed": 1}
