"""Looking things up by index, wherever the cursor stands: envs, moments, events of a kind; live, odd and huge."""

import random
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from journals import PATIENCE, epoch_completed, event, finished_run, gradient_sampled, locked, run_completed
from sapflow.errors import JournalError
from sapflow.sanctum.stretch import Stretch
from sapflow.telemetry import source as source_module
from sapflow.telemetry.events import EnvFailed, EnvStarted, SeedPruned
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.questions import (
    SELECT_ENVS,
    SELECT_IDS,
    SELECT_IDS_BETWEEN,
    SELECT_IDS_OF_EPOCHS,
    SELECT_LAST_EPOCH,
    of_epochs,
    select_between,
    select_newest,
    until_epoch,
)
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType, SeedStage


def pruned(epoch, env):
    payload = SeedPruned(
        epoch=epoch, slot_id="stem", seed_id="stem-1", stage=SeedStage.TRAINING, rule="by hand", grad_ratio=1.0
    )
    return event(payload, env, sequence=100 + epoch)


def started(env):
    return event(EnvStarted(host="mlp", host_params=1, slot_ids=("stem",), epochs=9), env)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Three envs with ids far apart; in the order in which they were written."""
    events = [started(env) for env in (0, 7, 4_000)]
    for epoch in range(1, 6):
        for env in (0, 7, 4_000):
            events += [gradient_sampled(epoch), epoch_completed(epoch, env), pruned(epoch, env)]
    events += [event(EnvFailed(epoch=5, error="broken"), 7, 999), run_completed()]
    run_dir = finished_run(tmp_path_factory.mktemp("told"), *events)
    return run_dir, events


@pytest.fixture
def source(told):
    with Source(told[0]) as source:
        yield source


def of(events, *types, env=None, between=None):
    """Found by looking at every one of them."""
    chosen = [one for one in events if one.type in types and env in (None, one.env_id)]
    return [
        one for one in chosen if between is None or (one.epoch is not None and between[0] <= one.epoch <= between[1])
    ]


def test_envs_and_the_last_epoch(source):
    assert source.envs() == (0, 7, 4_000)
    assert source.last_epoch() == 5


def test_a_run_that_has_said_nothing_has_neither(tmp_path):
    with Source(finished_run(tmp_path / "empty")) as source:
        assert (source.envs(), source.last_epoch(), source.moments(0), source.events([EventType.EPOCH_COMPLETED])) == (
            (), 0, [], [],
        )  # fmt: skip
    with Source(finished_run(tmp_path / "begun", run_completed())) as source:
        assert (source.envs(), source.last_epoch()) == ((), 0)


def test_moments_are_the_last_ones_up_to_an_epoch_oldest_first(source):
    assert source.moments(7) == [epoch_completed(epoch, 7) for epoch in (1, 2, 3, 4, 5)]
    assert source.moments(7, until_epoch=4, count=2) == [epoch_completed(epoch, 7) for epoch in (3, 4)]
    assert source.moments(1) == []


def test_of_an_epoch_that_was_written_twice_the_later_one_counts_and_counts_once(tmp_path):
    told = [epoch_completed(1), epoch_completed(2, ratio=0.1), epoch_completed(2, ratio=0.9)]
    with Source(finished_run(tmp_path, *told)) as source:
        assert source.moments(0, count=2) == [told[0], told[2]]


PRUNED, EPOCH, STARTED, FAILED = (
    EventType.SEED_PRUNED, EventType.EPOCH_COMPLETED, EventType.ENV_STARTED, EventType.ENV_FAILED,
)  # fmt: skip


def test_events_of_all_envs_and_of_the_run_itself(source, told):
    asked = (STARTED, FAILED, EventType.RUN_COMPLETED)
    assert source.events(asked) == of(told[1], *asked)


def test_events_of_one_env_between_two_epochs(source, told):
    assert source.events([PRUNED, EPOCH, STARTED], 7, 2, 3) == of(told[1], PRUNED, EPOCH, env=7, between=(2, 3))
    assert source.events([PRUNED], None, last_epoch=2) == of(told[1], PRUNED, between=(0, 2))
    assert source.events([PRUNED], None, first_epoch=5) == of(told[1], PRUNED, between=(5, 5))


def test_of_too_many_the_newest_are_found(source, told):
    assert source.events([PRUNED, EPOCH], limit=5) == of(told[1], PRUNED, EPOCH)[-5:]


def test_the_cursor_stays_where_it_is_until_it_is_set_to_the_end(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1), epoch_completed(2))
    with Source(run_dir) as source:
        source.read(limit=1)
        source.events([EPOCH]), source.moments(0), source.envs(), source.last_epoch()
        assert source.read() == [epoch_completed(2)]
    with Source(run_dir) as source:
        source.skip_to_end()
        assert source.read() == []


def test_while_it_is_held_still_what_is_written_meanwhile_is_not_seen(tmp_path):
    journal = Journal(tmp_path)
    journal.emit(epoch_completed(1))
    assert journal.flush(PATIENCE)
    with Source(tmp_path) as source:
        with source.held_still():
            assert source.last_epoch() == 1
            journal.emit(epoch_completed(2))
            assert journal.flush(PATIENCE)
            source.skip_to_end()
            assert source.last_epoch() == 1
        assert source.read() == [epoch_completed(2)]
    journal.close(PATIENCE)


def unrolled(question):
    sql, values = question
    return (sql, *values)


def test_every_look_up_goes_by_the_index(told):
    with closing(sqlite3.connect(told[0] / JOURNAL_NAME)) as connection:

        def plan(sql, *parameters):
            steps = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
            return [step for step in steps if "events" in step or "TEMP B-TREE" in step]

        newest = [
            step
            for env in (None, 7)
            for bounds in ("", of_epochs(1, 2), until_epoch(3))
            for step in plan(*unrolled(select_newest([PRUNED, STARTED], env, bounds)))
        ]
        assert newest
        assert not [step for step in newest if "events" in step and "COVERING INDEX" not in step], newest
        for env in (None, 7):
            (only,) = plan(*unrolled(select_between([PRUNED], env, until_epoch(3), 5, 9)))
            assert only.startswith("SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)")
        searches = [
            *plan(SELECT_ENVS), *plan(SELECT_LAST_EPOCH), *plan(SELECT_IDS, 0, "ENV_STARTED", 9),
            *plan(SELECT_IDS_OF_EPOCHS, 0, "ENV_STARTED", 1, 2, 9),
            *plan(SELECT_IDS_BETWEEN, 0, "ENV_STARTED", 1, 2, 3, 9),
        ]  # fmt: skip
    assert searches
    assert all(step.startswith("SEARCH events USING COVERING INDEX") for step in searches), searches


def test_events_of_all_envs_are_looked_up_in_two_statements_however_many_envs_there_are(source):
    asked = []
    source._file._connection.set_trace_callback(asked.append)
    assert source.events([PRUNED, STARTED, FAILED])
    assert len(asked) == 2


def test_a_stretch_grows_at_both_ends_without_a_hole(tmp_path):
    told = [pruned(number, 7 if number % 3 else 1) for number in range(1, 40)]
    journal = Journal(tmp_path)

    def write(*events):
        for each in events:
            journal.emit(each)
        assert journal.flush(PATIENCE)

    write(*told[:20])
    with Source(tmp_path) as source:
        while source.read():
            pass
        every, of_seven = Stretch(source, [PRUNED], None), Stretch(source, [PRUNED], 7, until_epoch=30)
        write(*told[20:])
        assert every.look_on() == []  # nobody has read that far
        assert every.look_back(8) == told[12:20]
        source.read(limit=10)
        assert every.look_on() == told[20:30]
        assert every.look_back(8) == told[4:12]
        assert not every.complete
        source.read()
        assert every.look_on() == told[30:]
        assert every.look_back(8) == told[:4]
        assert every.complete
        mine = [each for each in told[:30] if each.env_id == 7]
        assert [*of_seven.look_back(99), *of_seven.look_on()] == mine
    journal.close(PATIENCE)


def test_a_stretch_of_a_journal_that_is_locked_is_looked_up_again(tmp_path):
    told = [pruned(number, 7) for number in range(1, 9)]
    with Source(finished_run(tmp_path, *told)) as source:
        source.read(limit=6)
        stretch = Stretch(source, [PRUNED], None)
        source.read()
        for look, found in ((lambda: stretch.look_back(99), told[:6]), (stretch.look_on, told[6:])):
            with locked(tmp_path, "EXCLUSIVE"), pytest.raises(JournalError, match="locked for the moment"):
                look()
            assert look() == found


@pytest.mark.parametrize("env", ["text", b"blob", 0.5, -3, 2**63 - 1, 1e300])
def test_columns_that_hold_something_else_hide_no_env(tmp_path, env):
    run_dir = finished_run(tmp_path, epoch_completed(1, 0), epoch_completed(2, 7))
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        row = (env, "epoch", "EPOCH_COMPLETED", b"\xc1")
        connection.execute("INSERT INTO events (env, epoch, type, time, body) VALUES (?, ?, ?, 0, ?)", row)
    with Source(run_dir) as source:
        assert {0, 7} <= set(source.envs())
        assert source.last_epoch() == 2
        assert source.events([EPOCH]) == [epoch_completed(1, 0), epoch_completed(2, 7)]


def test_what_cannot_be_read_is_passed_over(tmp_path):
    run_dir = finished_run(tmp_path, epoch_completed(1), epoch_completed(2), epoch_completed(3))
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.execute("UPDATE events SET body = x'c1' WHERE epoch = 2")
    with Source(run_dir) as source:
        assert source.moments(0) == source.events([EPOCH]) == [epoch_completed(1), epoch_completed(3)]


def test_no_answer_takes_more_than_its_share_of_memory(tmp_path, monkeypatch):
    told = [epoch_completed(epoch, text="x" * 10_000) for epoch in range(1, 10)]
    with Source(finished_run(tmp_path, *told)) as source:
        monkeypatch.setattr(source_module, "MAX_READ_BYTES", 25_000)
        assert source.moments(0) == source.events([EPOCH]) == told[-3:], "the newest"


@settings(max_examples=30)
@given(data=st.data(), count=st.integers(1, 60))
def test_any_question_is_answered_as_by_looking_at_everything(tmp_path_factory, data, count):
    order = random.Random(count)
    clocks = {0: 0, 3: 0, None: 0}
    events = []
    for _ in range(count):
        env = order.choice([0, 3, None])
        clocks[env] += order.random() < 0.5
        make = run_completed if env is None else order.choice([epoch_completed, pruned])
        events.append(make() if env is None else replace(make(clocks[env], env), sequence=len(events)))
    types = data.draw(st.sets(st.sampled_from([EPOCH, PRUNED, EventType.RUN_COMPLETED]), min_size=1))
    env, first, last = (data.draw(st.none() | st.integers(0, 5)) for _ in range(3))
    limit = data.draw(st.integers(1, 20))
    bounds = None if first is None and last is None else (first or 0, 10**6 if last is None else last)
    with Source(finished_run(tmp_path_factory.mktemp("any"), *events)) as source:
        got = source.events(sorted(types), env, first, last, limit)
    assert got == of(events, *types, env=env, between=bounds)[-limit:]
