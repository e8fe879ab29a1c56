"""A run that was killed and resumed is the run that was never stopped: its telemetry and its weights, to the bit."""

import hashlib
import json
import logging
import pickle
import sqlite3
import threading
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from commands import Forked, finish_forked, program, refused
from few_digits import few_digits
from sapflow.control.life_cycle import LifeCycle
from sapflow.errors import BlueprintError, InputError
from sapflow.growth.blueprints import blueprint, catalogue
from sapflow.telemetry.events import ActionTaken, AlertRaised, GradientSampled, RunResumed
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.source import RunState, Source
from sapflow.training import recording
from sapflow.training.checkpoint import MAGIC, UNFINISHED, Checkpoints
from sapflow.training.trainer import Plant, RunPlan
from test_notify import served

TRIALS = 10
# Whole, and what is in it calls a function when it is unpickled.
CALL = pickle.dumps(type("Call", (), {"__reduce__": lambda _self: (print, ("called",))})(), protocol=2)
WITH_FEW_DIGITS = "from few_digits import few_digits\nfrom sapflow.cli import main\nwith few_digits(): main()"
HOSTILE = MAGIC + hashlib.sha256(CALL).digest() + CALL
PLAN = RunPlan(task="digits-mlp", envs=2, epochs=5, plants=(Plant(1, "early", "explosive"),))


def events_of(run_dir):
    with Source(run_dir) as source:
        events = []
        while batch := source.read():
            events += batch
        assert source.status().state is RunState.COMPLETED
    return events


def deterministic(events):
    """What an env says, without times."""
    said = [event for event in events if event.env_id is not None and event.sequence is not None]
    return [
        (event.env_id, event.sequence, event.payload) for event in sorted(said, key=lambda e: (e.env_id, e.sequence))
    ]


def passes(events):
    """Every sampled pass by its key."""
    seen = {}
    for event in events:
        if isinstance(event.payload, GradientSampled):
            sample = event.payload
            for index, entering, leaving in zip(sample.pass_index, sample.entering, sample.leaving, strict=True):
                key = (event.env_id, sample.slot_id, sample.epoch, index)
                assert key not in seen
                seen[key] = (entering, leaving)
    return seen


def newest_state(run_dir):
    return next(Checkpoints(run_dir).newest_first())


def assert_same_bits(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same_bits(mine, theirs)
    else:
        assert one == other


def assert_same_run(one, other):
    mine, theirs = events_of(one), events_of(other)
    assert deterministic(mine) == deterministic(theirs)
    assert passes(mine) == passes(theirs)
    assert_same_bits(newest_state(one), newest_state(other))


@pytest.mark.timeout(240)
def test_killed_at_random_moments_and_resumed_it_is_the_same_to_the_bit(tmp_path):
    done = finish_forked([str(tmp_path), str(TRIALS)], tmp_path, program("resume_worker.py"))
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS
    assert sum(trial["kills"] for trial in trials) >= TRIALS
    for trial in trials:
        assert_same_run(tmp_path / trial["run"], tmp_path / "whole")


@pytest.fixture(scope="module", autouse=True)
def _few_digits():
    with few_digits():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    recording.prepare(PLAN, run_dir)
    recording.record(PLAN, run_dir)
    return run_dir


class Stop(BaseException):
    """What ends a trainer in the middle."""


def stopped_after(epochs, run_dir, plan=PLAN):
    """A run that is stopped when env 0 has ended its epoch and env 1 has not."""
    recording.prepare(plan, run_dir)

    def stop(env):
        if env.epoch == epochs and env.plan.env_id == 0:
            raise Stop

    with pytest.raises(Stop):
        recording.record(plan, run_dir, stop)
    return run_dir


class TestPeopleAreToldOnce:
    """Of each alert, though the trainer is killed and lives through its epoch again."""

    @pytest.fixture
    def endpoint(self, monkeypatch):
        with served() as endpoint:
            monkeypatch.setenv("SAPFLOW_HOOK", endpoint.url)
            yield endpoint

    def plan(self):
        rule = 'name = "loud"\nwhen = "ratio_above"\nlevel = 20.0\nfor_epochs = 1\nactions = ["notify"]'
        rules = f'[notify]\nurls = ["${{SAPFLOW_HOOK}}"]\n[[rules]]\n{rule}'
        return RunPlan(task="digits-mlp", envs=1, epochs=4, plants=(Plant(0, "early", "explosive"),), rules=rules)

    def resumed(self, run_dir):
        recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        events = events_of(run_dir)
        raised = [event for event in events if isinstance(event.payload, AlertRaised)]
        told = [event for event in events if isinstance(event.payload, ActionTaken) and event.sequence is None]
        return len(raised), [event.payload.outcome for event in told]

    def test_where_the_journal_has_what_came_of_it(self, tmp_path, endpoint):
        run_dir = stopped_after(2, tmp_path / "run", self.plan())  # the checkpoint is of the epoch before the alert
        assert endpoint.got.qsize() == 1
        raised, told = self.resumed(run_dir)
        assert endpoint.got.qsize() == raised == len(told)

    @pytest.mark.parametrize("epochs", [2, 3])  # the alert is raised again, or is behind the checkpoint
    def test_where_the_trainer_was_killed_before_it_was_sent(self, tmp_path, endpoint, epochs):
        run_dir = stopped_after(epochs, tmp_path / "run", self.plan())
        endpoint.got.get_nowait()
        with sqlite3.connect(run_dir / "journal.sqlite") as journal:
            journal.execute("DELETE FROM events WHERE type = 'ACTION_TAKEN'")
        journal.close()
        raised, told = self.resumed(run_dir)
        assert endpoint.got.qsize() == raised
        assert told == ["sent"] * raised

    def test_and_a_service_that_is_not_known_any_more_leaves_nothing_open(self, tmp_path, endpoint, monkeypatch):
        run_dir = stopped_after(2, tmp_path / "run", self.plan())
        monkeypatch.delenv("SAPFLOW_HOOK")
        before = set(threading.enumerate())
        with pytest.raises(InputError, match="SAPFLOW_HOOK"):
            recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        assert not [thread for thread in threading.enumerate() if thread not in before]


class TestACheckpoint:
    def test_that_is_damaged_falls_back_to_the_one_before_and_says_so(self, tmp_path, whole, caplog):
        run_dir = stopped_after(4, tmp_path / "run")
        newest = sorted((run_dir / "checkpoints").iterdir())[-1]
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        assert [newest.name in record.message and "damaged" in record.message for record in caplog.records] == [True]
        assert_same_run(run_dir, whole)

    @pytest.mark.parametrize(
        "content",
        [b"", b"no checkpoint", MAGIC + bytes(32) + b"x" * 99, HOSTILE],
        ids=["empty", "text", "of another digest", "hostile"],
    )
    def test_that_is_none_is_passed_over_and_the_run_begins_anew(self, tmp_path, whole, caplog, content):
        run_dir = stopped_after(2, tmp_path / "run")
        for path in (run_dir / "checkpoints").iterdir():
            path.write_bytes(content)
        recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        assert_same_run(run_dir, whole)
        assert ["cannot be used" in record.message for record in caplog.records] == [True]

    @pytest.mark.parametrize("kept_epochs", [3, 1])  # one of the two checkpoints is ahead of it, or both
    def test_that_is_ahead_of_the_journal_is_not_used(self, tmp_path, whole, caplog, kept_epochs):
        """As after a loss of power, when the last transactions are missing."""
        run_dir = stopped_after(4, tmp_path / "run")
        with sqlite3.connect(run_dir / "journal.sqlite") as journal:
            last = "SELECT id FROM events WHERE epoch = ? LIMIT 1"
            journal.execute(f"DELETE FROM events WHERE id > ({last})", [kept_epochs])
        journal.close()
        recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        assert any("lacks what was said" in record.message for record in caplog.records)
        assert_same_run(run_dir, whole)

    def test_of_another_run_is_not_used(self, tmp_path, whole, caplog):
        run_dir = stopped_after(2, tmp_path / "run")
        checkpoints = Checkpoints(run_dir)
        checkpoints.write(9, {"envs": {0: {"accuracy": 1.0}, 7: {}}})
        checkpoints.write(10, {"nothing": 0})
        recording.record(recording.plan_of(run_dir), run_dir, resume=True)
        assert deterministic(events_of(run_dir)) == deterministic(events_of(whole))
        assert len([record for record in caplog.records if "does not fit" in record.message]) == 2

    def test_with_a_seed_of_a_blueprint_that_is_not_there_does_not_begin_the_run_anew(self, tmp_path, monkeypatch):
        monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
        blueprint("mine", dimensions=1)(lambda shape: nn.Linear(*shape, *shape))
        monkeypatch.setattr(LifeCycle, "choose", lambda _self, fitting, _actions: fitting[-1])
        plan = replace(PLAN, envs=1, plants=())
        run_dir = stopped_after(3, tmp_path / "run", plan)
        monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
        before = sorted((run_dir / "checkpoints").iterdir())
        with pytest.raises(BlueprintError, match="cannot go on here: no blueprint 'mine'"):
            recording.record(plan, run_dir, resume=True)
        assert sorted((run_dir / "checkpoints").iterdir()) == before

    def test_cannot_be_written_and_training_goes_on(self, tmp_path, whole, caplog):
        run_dir = tmp_path / "run"
        recording.prepare(PLAN, run_dir)
        (run_dir / "checkpoints").write_bytes(b"in the way")
        recording.record(PLAN, run_dir)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert deterministic(events_of(run_dir)) == deterministic(events_of(whole))

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    def test_finds_no_room_and_leaves_nothing_half_written(self, tmp_path, whole, caplog):
        run_dir = tmp_path / "run"
        recording.prepare(PLAN, run_dir)
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints" / UNFINISHED).symlink_to("/dev/full")
        Checkpoints(run_dir).write(1, {"envs": {}})
        assert "No space left" in caplog.text
        assert list((run_dir / "checkpoints").iterdir()) == []

    def test_leaves_two_whole_files_and_no_other(self, whole):
        names = sorted(path.name for path in (whole / "checkpoints").iterdir())
        assert names == ["epoch-0000004.pt", "epoch-0000005.pt"]


def test_a_run_that_had_not_begun_is_begun(tmp_path, whole):
    run_dir = tmp_path / "run"
    recording.prepare(PLAN, run_dir)
    (run_dir / "journal.sqlite").touch()
    recording.record(recording.plan_of(run_dir), run_dir, resume=True)
    assert_same_run(run_dir, whole)
    assert not [event for event in events_of(run_dir) if isinstance(event.payload, RunResumed)]


def test_drops_that_were_counted_stay_counted(tmp_path):
    run_dir = stopped_after(2, tmp_path / "run")
    journal = Journal(run_dir, resume=True, queue_size=0)
    with Source(run_dir) as source:
        (event, *_) = source.read()
    journal.emit(replace(event, sequence=99))
    journal.close()
    recording.record(recording.plan_of(run_dir), run_dir, resume=True)
    with Source(run_dir) as source:
        assert source.status().dropped_events == 1


def test_an_env_that_a_rule_has_ended_stays_ended(tmp_path):
    rules = """
    [[rules]]
    name = "enough"
    when = "ratio_above"
    level = 20.0
    for_epochs = 1
    actions = ["stop"]
    """
    plan = RunPlan(task="digits-mlp", envs=2, epochs=6, plants=(Plant(0, "early", "explosive"),), rules=rules)
    recording.prepare(plan, tmp_path / "whole")
    outcome = recording.record(plan, tmp_path / "whole")
    assert {env_id: env.epoch for env_id, env in outcome.completed.items()} == {0: 2, 1: 6}
    ended = {
        event.env_id: event.payload.epoch for event in events_of(tmp_path / "whole") if event.type == "ENV_COMPLETED"
    }
    assert ended == {0: 2, 1: 6}

    recording.prepare(plan, tmp_path / "run")

    def stop(env):
        if env.epoch == 4:
            raise Stop

    with pytest.raises(Stop):
        recording.record(plan, tmp_path / "run", stop)
    recording.record(recording.plan_of(tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_resume_that_comes_when_another_is_done_is_refused(tmp_path, whole):
    run_dir = stopped_after(3, tmp_path / "run")
    plans = [recording.plan_of(run_dir) for _ in range(2)]
    recording.record(plans[0], run_dir, resume=True)
    with pytest.raises(InputError, match="complete"):
        recording.record(plans[1], run_dir, resume=True)
    assert_same_run(run_dir, whole)


class TestTheCommand:
    def test_resumes(self, tmp_path, whole):
        run_dir = stopped_after(3, tmp_path / "run")
        done = finish_forked(["train", "--resume", str(run_dir)], tmp_path, WITH_FEW_DIGITS)
        assert done.returncode == 0, done.stderr
        assert_same_run(run_dir, whole)
        (resumed,) = [event.payload for event in events_of(run_dir) if isinstance(event.payload, RunResumed)]
        assert resumed.from_epoch == 2

    def test_resumes_with_exporters_that_were_there_first(self, tmp_path):
        run_dir = stopped_after(3, tmp_path / "run")
        done = finish_forked(["train", "--resume", str(run_dir), "--export", "jsonlines"], tmp_path, WITH_FEW_DIGITS)
        assert done.returncode == 0, done.stderr
        events = events_of(run_dir)
        assert f"jsonlines: {len(events)} events exported" in done.stdout
        assert len((run_dir / "exporters" / "events.jsonl").read_text().splitlines()) == len(events)

    def test_resumes_once_when_it_is_given_twice_at_once(self, tmp_path, whole):
        run_dir = stopped_after(3, tmp_path / "run")
        both = [Forked(["train", "--resume", str(run_dir)], tmp_path, code=WITH_FEW_DIGITS) for _ in range(2)]
        winner, loser = sorted((each.finish() for each in both), key=lambda each: each.returncode)
        assert winner.returncode == 0, winner.stderr
        assert loser.returncode == 2
        (line,) = loser.stderr.splitlines()
        assert str(run_dir) in line
        assert_same_run(run_dir, whole)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["{whole}"], "is complete: there is nothing to resume"),
            (["{tmp}/nowhere"], "holds no run that can be resumed"),
            (["{whole}", "--epochs", "7"], "--resume goes with --sanctum and --export alone"),
            (["{tmp}/broken"], "is no plan of a run"),
            (["{tmp}/large"], "too large"),
        ],
    )
    def test_refuses_in_one_line(self, tmp_path, whole, arguments, said):
        for name, content in (("broken", b'{"task": 1}'), ("large", b" " * 2**21)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "plan.json").write_bytes(content)
        given = [part.format(whole=whole, tmp=tmp_path) for part in arguments]
        refused(finish_forked(["train", "--resume", *given], tmp_path), said)
