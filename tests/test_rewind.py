"""Time travel: what is looked up is what following would have shown, at the end of a run and at every moment before."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from msgspec.structs import replace

from journals import PATIENCE, add_rows, finished_run
from sanctum_events import START, comparable, demo_run, epoch, event, random_run, sample, seed
from sapflow.sanctum import rewind
from sapflow.sanctum.aggregator import LOG_LIMIT, SanctumAggregator
from sapflow.sanctum.rewind import Film, opened, recall, snapshot_at
from sapflow.sanctum.schema import Condition, SanctumSnapshot
from sapflow.sanctum.slot_view import HISTORY_LIMIT
from sapflow.telemetry.events import EnvStarted, RunCompleted, RunResumed, RunStarted, SeedStageChanged, TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import SeedStage


def folded(events) -> SanctumSnapshot:
    aggregator = SanctumAggregator()
    for each in events:
        aggregator.apply(each)
    return aggregator.snapshot()


def shown(snapshot: SanctumSnapshot) -> str:
    """All of it but the state of the journal."""
    return comparable(replace(snapshot, status=None))


def long_run() -> list:
    """More epochs and more lines than are shown."""
    events = demo_run(epochs=HISTORY_LIMIT + 20, completed=False)
    for number in range(300):
        moved = SeedStageChanged(
            epoch=HISTORY_LIMIT + 20, slot_id="late", seed_id="late-1", from_stage=SeedStage.TRAINING,
            to_stage=SeedStage.PRUNED if number % 2 else SeedStage.TRAINING,
        )  # fmt: skip
        env_id = number % 2
        last = max(e.sequence for e in events if e.env_id == env_id and e.sequence is not None)
        events.append(event(moved, env_id, last + 1, START + 10_000 + number))
    return events


RUNS: dict[str, Callable[[], list]] = {
    "demo": demo_run,
    "completed": lambda: demo_run(5, completed=True),
    "long": long_run,
    "nothing": lambda: [],
    "begun": lambda: demo_run(1)[:3],
} | {f"random {number}": (lambda number=number: random_run(number)) for number in range(12)}


@pytest.fixture(scope="module", params=RUNS)
def told(request, tmp_path_factory):
    events = RUNS[request.param]()
    return finished_run(tmp_path_factory.mktemp("run"), *events), events


def test_opening_shows_what_following_would(told):
    run_dir, events = told
    with Source(run_dir) as source:
        snapshot = opened(source).snapshot()
        assert source.read() == []
    assert shown(snapshot) == shown(folded(events))
    assert snapshot.status.unread == 0


def test_an_event_that_says_what_cannot_be_is_left_out_and_counted(tmp_path, monkeypatch):
    def apply(aggregator: SanctumAggregator, each: TelemetryEvent, whole=SanctumAggregator.apply) -> None:
        if isinstance(each.payload, EnvStarted) and each.env_id == 2:
            raise ValueError("nobody can begin like that")
        whole(aggregator, each)

    monkeypatch.setattr(SanctumAggregator, "apply", apply)
    monkeypatch.setattr(rewind, "WHOLE_AT_FIRST", 1)
    with Source(finished_run(tmp_path / "run", *demo_run())) as source:
        aggregator = opened(source)
        assert aggregator.snapshot().left_out == 1
        while recall(source, aggregator):
            pass
        film = Film(source)
        for snapshot in (aggregator.snapshot(), film.at(3), film.at(4), snapshot_at(source, 3)):
            assert snapshot.left_out
            assert list(snapshot.envs) == [0, 1, 2, 3]


@pytest.mark.parametrize("number", range(4))
def test_what_comes_after_opening_is_followed_without_a_gap_or_a_duplicate(tmp_path, number):
    events = random_run(number)
    for cut in (len(events) // 3, len(events) - 1):
        run_dir = finished_run(tmp_path / str(cut), *events[:cut])
        with Source(run_dir) as source:
            aggregator = opened(source)
            source.close()
            add_rows(run_dir, *events[cut:])
            for each in source.read():
                aggregator.apply(each)
        snapshot = aggregator.snapshot()
        assert shown(snapshot) == shown(folded(events))
        assert (snapshot.gaps, snapshot.duplicates) == (0, 0)


BEGINNING = (RunStarted, EnvStarted)


def test_every_moment_is_what_had_been_said_by_then(told):
    run_dir, events = told
    last = max((e.epoch for e in events if e.epoch is not None), default=0)
    moments = range(last + 2) if last < 20 else (0, 1, last // 2, last - 1, last)
    with Source(run_dir) as source:
        for moment in moments:
            said = [
                e for e in events if isinstance(e.payload, BEGINNING) or (e.epoch is not None and e.epoch <= moment)
            ]
            said = [e for e in said if e.env_id is not None or isinstance(e.payload, RunStarted)]
            expected = folded([e for e in said if e.type != "GRADIENT_SAMPLED"])
            assert shown(snapshot_at(source, moment)) == shown(expected), moment


def test_playing_shows_what_looking_up_each_moment_does(told):
    run_dir, events = told
    last = max((e.epoch for e in events if e.epoch is not None), default=0)
    with Source(run_dir) as source:
        film = Film(source)
        order = [*range(min(last, 20) + 2), 1, 2, last, 0, 1]
        for moment in order:
            assert shown(film.at(moment)) == shown(snapshot_at(source, moment)), moment


def test_looking_back_leaves_the_cursor_alone(tmp_path):
    events = demo_run(3)
    with Source(finished_run(tmp_path, *events)) as source:
        source.read(limit=4)
        snapshot_at(source, 2)
        assert source.read() == events[4:]


def test_a_live_run_is_opened_within_its_epoch(tmp_path):
    """The trainer writes on; samples of the epoch that goes on are there, and what comes is read once."""
    with TrainerLock(tmp_path):
        journal = Journal(tmp_path)
        live = [sample(4, slot, first, 9.0) for first in range(0, 40, 2) for slot in ("early", "mid")]
        events = [*demo_run(3), *(event(one, 0, None) for one in live)]
        for each in events:
            journal.emit(each)
        assert journal.flush(PATIENCE)
        with Source(tmp_path) as source:
            aggregator = opened(source)
            snapshot = aggregator.snapshot()
            assert snapshot.status.state is RunState.LIVE
            assert snapshot.envs[0].seeds["early"].grad_ratio == 9.0
            assert snapshot.envs[0].seeds["early"].newest_sample == (4, 38)
            assert snapshot.envs[0].concern is Condition.EXPLODING
            journal.emit(event(epoch(4, seed("early", 1.0)), 0, snapshot.envs[0].last_sequence + 1))
            assert journal.flush(PATIENCE)
            assert source.status().unread == 1
            (new,) = source.read()
            aggregator.apply(new)
        assert aggregator.snapshot().envs[0].seeds["early"].grad_ratio == 1.0
        journal.close(PATIENCE)


def test_a_run_that_has_no_journal_yet_is_opened_empty_and_followed(tmp_path):
    with TrainerLock(tmp_path), Source(tmp_path) as source:
        aggregator = opened(source)
        assert aggregator.snapshot().envs == {}
        assert snapshot_at(source, 3).envs == {}
        finished_run(tmp_path, *demo_run(2))
        for each in source.read():
            aggregator.apply(each)
        assert shown(aggregator.snapshot()) == shown(folded(demo_run(2)))


def test_of_a_run_that_was_resumed_and_completed_the_end_counts(tmp_path):
    own = [RunStarted(task="t", envs=1, epochs=2), RunResumed(from_epoch=1), RunCompleted(completed_envs=1)]
    events = [*demo_run(2)[1:], *(event(payload, None, number) for number, payload in enumerate(own))]
    with Source(finished_run(tmp_path, *events)) as source:
        snapshot = opened(source).snapshot()
        assert shown(snapshot) == shown(folded(events))
        assert snapshot.status.state is RunState.COMPLETED


@pytest.mark.parametrize("number", range(3))
def test_of_many_envs_less_is_looked_up_at_first_and_recalled_env_by_env(tmp_path, monkeypatch, number):
    monkeypatch.setattr(rewind, "WHOLE_AT_FIRST", 1)
    events = random_run(number, epochs=30, envs=6)
    cut = len(events) - 20
    run_dir = finished_run(tmp_path, *events[:cut])
    with Source(run_dir) as source:
        aggregator = opened(source)
        first = aggregator.snapshot()
        worst = first.worst_first()[0]
        whole = folded(events[:cut])
        assert len(next(iter(first.envs[worst].seeds.values())).ratio_history) < HISTORY_LIMIT * 1 // 6 + 2
        assert [env.seeds.keys() for env in first.envs.values()] == [env.seeds.keys() for env in whole.envs.values()]
        assert [env.epoch for env in first.envs.values()] == [env.epoch for env in whole.envs.values()]
        source.close()
        add_rows(run_dir, *events[cut:])  # it goes on before all is recalled
        assert recall(source, aggregator)
        assert repr(aggregator.snapshot().envs[worst]) == repr(whole.envs[worst]), "the worst comes first"
        for each in source.read():
            aggregator.apply(each)
        while recall(source, aggregator):
            pass
    snapshot = aggregator.snapshot()
    assert repr(dict(snapshot.envs)) == repr(dict(folded(events).envs))
    assert not recall(source, aggregator)


def test_the_time_for_which_a_run_was_cut_off_is_in_no_pace_that_is_recalled(tmp_path, monkeypatch):
    monkeypatch.setattr(rewind, "WHOLE_AT_FIRST", 1)
    times = [START + 1, START + 2, START + 1_000, START + 1_002]
    events = [event(RunStarted(task="t", envs=2, epochs=9), None, 0, START)]
    for env_id in range(2):
        events += [event(epoch(n, seed("mid", 1.0)), env_id, n - 1, time) for n, time in enumerate(times, 1)]
    events.append(event(RunResumed(from_epoch=2), None, 1, START + 990))
    with Source(finished_run(tmp_path, *events)) as source:
        aggregator = opened(source)
        while recall(source, aggregator):
            pass
    assert aggregator.snapshot().passes_per_second == folded(events).passes_per_second == 2 * 32.0


@pytest.mark.parametrize("number", range(6))
def test_rows_that_lie_break_nothing(tmp_path, monkeypatch, number):
    """Columns of another type or of another event, and bodies that are none: what can be read is shown."""
    monkeypatch.setattr(rewind, "WHOLE_AT_FIRST", 2)
    chance = random.Random(number)
    run_dir = finished_run(tmp_path, *random_run(number, epochs=6))
    odd = [None, -1, 2**63 - 1, 0.5, "text", b"blob", 1e300]
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        rows = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        for _ in range(rows // 2):
            column = chance.choice(["env", "epoch", "sequence", "time", "type", "body"])
            other = f"(SELECT {column} FROM events WHERE id = {chance.randint(1, rows)})"
            value = "?" if chance.random() < 0.5 else f"coalesce({other}, ?)"
            connection.execute(
                f"UPDATE OR IGNORE events SET {column} = {value} WHERE id = ?",
                (chance.choice(odd[1:] if column in ("time", "type", "body") else odd), chance.randint(1, rows)),
            )
    with Source(run_dir) as source:
        aggregator = opened(source)
        assert aggregator.snapshot().envs
        while recall(source, aggregator):
            aggregator.snapshot()
        for moment in (-1, 0, 3, 2**63 - 1):
            snapshot_at(source, moment)


def test_an_epoch_that_is_the_last_that_can_be_counted_breaks_nothing(tmp_path):
    last = epoch(2**63 - 1, seed("mid", 1.0), total_passes=0)
    with Source(finished_run(tmp_path, event(last, 0, 0))) as source:
        assert opened(source).snapshot().envs[0].epoch == last.epoch


def test_the_log_is_bounded(tmp_path):
    with Source(finished_run(tmp_path, *long_run())) as source:
        assert len(opened(source).snapshot().log) <= LOG_LIMIT
