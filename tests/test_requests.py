"""The operator's hand from outside: real processes ask a real trainer, which does it or says why not, exactly once."""

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from commands import ENDLESS, SAPFLOW, Forked, finish_forked, follow_to, program, read_whole, wait_until
from few_digits import few_digits
from requests_worker import PLAN, TRIALS, ask_after
from sapflow import SeedTraining, grow
from sapflow.health.rules import Condition, Rule
from sapflow.telemetry.events import (
    EnvCompleted,
    EpochCompleted,
    RequestAnswered,
    SeedPruned,
)
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training import recording
from test_grow import Script, batches
from test_resume import Stop, assert_same_run, events_of

S = SeedStage

# Another process, which asks as a viewer would.
ASK = """
import sys
from pathlib import Path
import msgspec
from sapflow.telemetry.mailbox import Mailbox, Request
for text in sys.argv[2:]:
    Mailbox(Path(sys.argv[1])).post(msgspec.json.decode(text, type=Request))
"""


def ask(run_dir, *requests):
    """From another process."""
    viewer = finish_forked([str(run_dir), *(json.dumps(request) for request in requests)], run_dir, ASK)
    assert viewer.returncode == 0, viewer.stderr


def asked(request_id="r", action="prune", **fields):
    return {"request_id": request_id, "env_id": 0, "action": action, "by": "ada"} | fields


class Loop:
    """A model in which one seed, "1-1", grows in slot "1"; people ask before the epochs that they are given for."""

    def __init__(self, tmp_path, requests, *, rules=(), gain=1.0, stages=None, epochs=3, before=None, close=()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def build(shape):
            layer = nn.Linear(*shape, *shape, bias=False)
            nn.init.orthogonal_(layer.weight, gain=gain)
            return layer.requires_grad_(False)

        with grow(
            model, {"1": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", rules=rules,
            controller=Script(build, **(stages or {})), training=SeedTraining(blending_steps=10),
        ) as growth:  # fmt: skip
            self.slot, self.paused, self.alphas = growth.actions.slots["1"], [], []
            mailbox = Mailbox(growth.run_dir)
            for epoch in range(1, epochs + 1):
                for x, y in batches(4):
                    optimizer.zero_grad()
                    growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
                    optimizer.step()
                if before is not None:
                    before(epoch, self.slot, mailbox)
                for fields in requests.get(epoch, ()):
                    mailbox.post(Request(**fields))
                growth.epoch(lambda net: 50.0)
                self.paused.append(self.slot.state.paused)
                self.alphas.append(self.slot.state.alpha)
            for fields in close:
                mailbox.post(Request(**fields))
            self.stop_reason = growth.stop_reason
        self.left = [path.name for path in mailbox.folder.iterdir()]
        self.events, self.state = read_whole(growth.run_dir)

    @property
    def answers(self):
        return [event.payload for event in self.events if isinstance(event.payload, RequestAnswered)]

    @property
    def outcomes(self):
        return [(answer.epoch, answer.done, answer.outcome) for answer in self.answers]


SEED = {"slot_id": "1", "seed_id": "1-1"}


def test_prune(tmp_path):
    loop = Loop(tmp_path, {2: [asked(**SEED, asked_at=12.5)]})
    (answer,) = loop.answers
    assert (answer.request_id, answer.action, answer.by, answer.asked_at) == ("r", "prune", "ada", 12.5)
    assert (answer.slot_id, answer.seed_id, answer.blueprint_id) == ("1", "1-1", "scripted")
    assert loop.outcomes == [(2, True, "pruned in TRAINING")]
    (pruned,) = (event.payload for event in loop.events if isinstance(event.payload, SeedPruned))
    assert (pruned.epoch, pruned.rule, pruned.evidence) == (2, "by hand", "asked for by ada")
    assert loop.slot.state.stage is S.PRUNED
    assert loop.left == []
    said = [event.type for event in loop.events if event.sequence is not None and event.env_id == 0]
    assert said.index("EPOCH_COMPLETED") < said.index("REQUEST_ANSWERED") < said.index("SEED_PRUNED")
    numbers = [event.sequence for event in loop.events if event.env_id == 0 and event.sequence is not None]
    assert numbers == list(range(len(numbers)))


def test_hold_and_resume(tmp_path):
    blending = {"after_1": [S.BLENDING]}
    requests = {2: [asked("a", "hold", **SEED)], 4: [asked("b", "resume", **SEED)]}
    loop = Loop(tmp_path, requests, stages=blending, epochs=5)
    assert loop.paused == [False, True, True, False, False]
    assert loop.alphas[1] == loop.alphas[2] == loop.alphas[3] < loop.alphas[4]
    assert loop.outcomes == [(2, True, "held in BLENDING"), (4, True, "goes on in BLENDING")]


def test_stop(tmp_path):
    loop = Loop(tmp_path, {2: [asked(action="stop")]})
    assert loop.stop_reason == "by hand: asked for by ada"
    assert loop.outcomes == [(2, True, "the env ends after this epoch")]


def test_what_a_person_holds_no_rule_lets_go(tmp_path):
    def heal(epoch, slot, _mailbox):
        if epoch == 2:  # its passes are over
            nn.init.orthogonal_(slot.seed.weight, gain=1.0)

    loud = Rule(name="loud", when=Condition.RATIO_ABOVE, level=2.0, for_epochs=1, clear_after=1, actions=("hold",))
    by_rule = Loop(tmp_path / "rule", {}, rules=[loud], gain=5.0, before=heal)
    by_hand = Loop(tmp_path / "hand", {2: [asked(action="hold", **SEED)]}, rules=[loud], gain=5.0, before=heal)
    assert by_rule.paused == [True, True, False]
    assert by_hand.paused == [True, True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slot_id": "nowhere", "seed_id": "1-1"}, "there is no slot 'nowhere'"),
        ({"slot_id": "", "seed_id": ""}, "there is no slot ''"),
        ({"slot_id": "1", "seed_id": "1-0"}, "the seed is gone: the slot is TRAINING"),
        ({"slot_id": "1", "seed_id": ""}, "the seed is gone: the slot is TRAINING"),
        ({"env_id": 7} | SEED, "there is no env 7"),
    ],
)
@pytest.mark.parametrize("action", ["prune", "hold", "resume"])
def test_refusals(tmp_path, action, fields, words):
    loop = Loop(tmp_path, {1: [asked(action=action, **fields)]}, epochs=1)
    assert loop.outcomes == [(1, False, words)]
    assert (loop.slot.state.stage, loop.slot.state.paused, loop.left) == (S.TRAINING, False, [])


@pytest.mark.parametrize("action", ["prune", "hold", "resume"])
def test_a_fossil_stays(tmp_path, action):
    grown = {"after_1": [S.BLENDING], "after_4": [S.HOLDING], "after_5": [S.FOSSILIZED]}
    loop = Loop(tmp_path, {6: [asked(action=action, **SEED)]}, stages=grown, epochs=6)
    assert loop.outcomes == [(6, False, "the seed is fossilized: a part of its host for good")]
    assert loop.slot.state.stage is S.FOSSILIZED


def test_of_two_at_once_the_first_is_done_and_the_second_refused(tmp_path):
    loop = Loop(tmp_path, {2: [asked("late", **SEED, asked_at=2.0), asked("early", **SEED, asked_at=1.0)]})
    assert [(answer.request_id, answer.done) for answer in loop.answers] == [("early", True), ("late", False)]
    assert loop.answers[1].outcome == "the seed is gone: the slot is PRUNED"


def test_nothing_stays_pending_when_the_run_ends(tmp_path):
    loop = Loop(tmp_path, {}, close=[asked("a", **SEED), asked("b", "stop", env_id=3)])
    assert loop.outcomes == [(3, False, "the env has ended"), (3, False, "there is no env 3")]
    assert [event.env_id for event in loop.events if isinstance(event.payload, RequestAnswered)] == [0, None]
    assert (loop.left, loop.state) == ([], RunState.COMPLETED)


def test_what_lies_in_the_folder_breaks_nothing_and_is_said_once(tmp_path, caplog):
    def litter(epoch, _slot, mailbox):
        (mailbox.folder / f"r{epoch}.json").write_bytes(b"\xff" * 10_000)
        (mailbox.folder / "secret.json").unlink(missing_ok=True)
        (mailbox.folder / "secret.json").symlink_to("/etc/passwd")

    with caplog.at_level(logging.WARNING):
        loop = Loop(tmp_path, {3: [asked("x", **SEED)]}, before=litter)
    assert [answer.request_id for answer in loop.answers] == ["x"]
    assert sorted(record.name for record in caplog.records) == ["sapflow.requests"] * 2
    assert loop.state is RunState.COMPLETED


def test_a_folder_that_goes_away_breaks_nothing(tmp_path):
    def remove(_epoch, _slot, mailbox):
        if mailbox.folder.is_dir():
            mailbox.folder.rmdir()
            mailbox.folder.write_bytes(b"")

    with pytest.raises(NotADirectoryError):
        Loop(tmp_path, {}, before=remove)
    events, state = read_whole(tmp_path / "run")
    assert sum(isinstance(event.payload, EpochCompleted) for event in events) == 3
    assert state is RunState.COMPLETED


# The trainer as a process, and viewers as processes


@pytest.fixture(scope="module")
def asked_run(tmp_path_factory):
    """Two endless envs: a seed of env 0 is pruned, env 1 is stopped and asked again, env 0 is stopped."""
    run_dir = tmp_path_factory.mktemp("asked") / "run"
    endless = [*ENDLESS[len(SAPFLOW) :], "--run-dir", str(run_dir)]
    endless[endless.index("--envs") + 1] = "2"
    trainer = Forked(endless, Path.cwd())
    try:
        follow_to(run_dir, EpochCompleted, times=6)
        living = next(seed for seed in last_epoch(run_dir).seeds if seed.stage.alive)
        ask(run_dir, asked("prune", slot_id=living.slot_id, seed_id=living.seed_id), asked("no-env", env_id=9))
        ask(run_dir, asked("again", slot_id=living.slot_id, seed_id=living.seed_id, asked_at=1.0))
        follow_to(run_dir, RequestAnswered, times=3)
        ask(run_dir, asked("stop-1", "stop", env_id=1))
        follow_to(run_dir, EnvCompleted)
        ask(run_dir, asked("too-late", "stop", env_id=1))
        follow_to(run_dir, RequestAnswered, times=5)
        ask(run_dir, asked("stop-0", "stop"))
        wait_until(lambda: trainer.poll() is not None, "the end of the run")
    finally:
        trainer.send_signal(signal.SIGKILL)
    assert trainer.finish().returncode == 0, trainer.finish().stderr
    return run_dir, living.seed_id


def last_epoch(run_dir, env_id=0):
    with Source(run_dir) as source:
        return source.moment(env_id).payload


def answers_in(run_dir):
    events, _ = read_whole(run_dir)
    return {event.payload.request_id: event for event in events if isinstance(event.payload, RequestAnswered)}


def test_a_viewer_in_another_process_prunes_a_seed_of_a_real_run(asked_run):
    run_dir, seed_id = asked_run
    answers = answers_in(run_dir)
    assert set(answers) == {"prune", "again", "no-env", "stop-1", "too-late", "stop-0"}
    assert [answers[one].payload.done for one in ("prune", "again")] == [True, False]
    events, state = read_whole(run_dir)
    (pruned,) = (e.payload for e in events if isinstance(e.payload, SeedPruned) and e.payload.seed_id == seed_id)
    assert pruned.rule == "by hand"
    with Source(run_dir) as source:
        after = source.moment(0, pruned.epoch + 1).payload
    assert all(seed.seed_id != seed_id or seed.stage is S.PRUNED for seed in after.seeds)
    assert state is RunState.COMPLETED
    assert list((run_dir / "requests").iterdir()) == []


def test_an_env_that_is_stopped_by_hand_ends_and_the_others_go_on(asked_run):
    run_dir, _ = asked_run
    answers = answers_in(run_dir)
    assert last_epoch(run_dir, 1).epoch == answers["stop-1"].payload.epoch
    assert last_epoch(run_dir, 0).epoch == answers["stop-0"].payload.epoch > last_epoch(run_dir, 1).epoch
    aside = [answers["too-late"], answers["no-env"]]
    assert [event.payload.outcome for event in aside] == ["the env has ended", "there is no env 9"]
    assert [(event.env_id, event.sequence) for event in aside] == [(1, None), (None, None)]


# Killed and resumed


@pytest.fixture(scope="module", autouse=True)
def _few_digits():
    with few_digits():
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that was never stopped, and asked so that it answered at the end of a given epoch."""
    runs: dict[int, Path] = {}

    def answered_at(epoch):
        if epoch not in runs:
            run_dir = tmp_path_factory.mktemp("reference") / "run"
            recording.prepare(PLAN, run_dir)
            if epoch == 1:
                ask_after(run_dir, 0, lock=True)(None)
            recording.record(PLAN, run_dir, ask_after(run_dir, epoch - 1))
            runs[epoch] = run_dir
        return runs[epoch]

    return answered_at


def answer_in(run_dir):
    (answer,) = (event.payload for event in events_of(run_dir) if isinstance(event.payload, RequestAnswered))
    return answer


@pytest.mark.timeout(240)
def test_killed_around_an_answer_and_resumed_it_is_the_run_that_was_asked_then(tmp_path, reference):
    """SIGKILL at random moments around a request, and resumed from a checkpoint that is up to three epochs old."""
    done = finish_forked([str(tmp_path)], tmp_path, program("requests_worker.py"))
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS
    assert sum(trial["kills"] for trial in trials) >= TRIALS / 2
    for trial in trials:
        run_dir = tmp_path / trial["run"]
        assert_same_run(run_dir, reference(answer_in(run_dir).epoch))
        assert list((run_dir / "requests").iterdir()) == []


@pytest.mark.parametrize("checkpoints_left", [True, False])
@pytest.mark.parametrize("where", ["inbox.Inbox._settle", "mailbox.Mailbox.remove"])
def test_ended_between_the_answer_and_the_files_removal(tmp_path, reference, monkeypatch, where, checkpoints_left):
    run_dir = tmp_path / "run"
    recording.prepare(PLAN, run_dir)

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(f"sapflow.telemetry.{where}", stop)
        with pytest.raises(Stop):
            recording.record(PLAN, run_dir, ask_after(run_dir, 4))
    assert len(list((run_dir / "requests").iterdir())) == 1
    if not checkpoints_left:
        for path in (run_dir / "checkpoints").iterdir():
            path.unlink()
    recording.record(recording.plan_of(run_dir), run_dir, resume=True)
    assert answer_in(run_dir).epoch == 5
    assert_same_run(run_dir, reference(5))
    assert list((run_dir / "requests").iterdir()) == []


def test_what_is_asked_while_nobody_trains_waits_for_the_first_epoch_that_is_new(tmp_path, reference):
    """And not for one that is lived through again, of which the journal knows how it went on."""
    run_dir = tmp_path / "run"
    recording.prepare(PLAN, run_dir)

    def stop(env):
        if env.epoch == 5:
            raise Stop

    with pytest.raises(Stop):
        recording.record(PLAN, run_dir, stop)
    ask_after(run_dir, 0, lock=True)(None)
    recording.record(recording.plan_of(run_dir), run_dir, resume=True)
    assert answer_in(run_dir).epoch in (5, 6), "5 where the controller said nothing more after it"
    assert_same_run(run_dir, reference(answer_in(run_dir).epoch))
