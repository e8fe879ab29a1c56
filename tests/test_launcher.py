"""Training that is cut off or watched, from outside: signals, SIGKILL, and the trainer behind Sanctum."""

import os
import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import (
    ENDLESS,
    SAPFLOW,
    TRAIN,
    Forked,
    Terminal,
    deterministic,
    finish_forked,
    follow_to,
    read_whole,
    wait_until,
    without,
)
from journals import PATIENCE
from sapflow.errors import InputError, SapflowError
from sapflow.telemetry.events import EpochCompleted, TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import JOURNAL_NAME, LOG_NAME, trainer_is_alive, wal_of
from sapflow.telemetry.source import RunState
from sapflow.training import launcher
from sapflow.training.recording import prepare, record
from sapflow.training.trainer import RunPlan


def launched(plan: RunPlan, run_dir: Path) -> subprocess.Popen[bytes]:
    """A trainer behind Sanctum, as `sapflow train --sanctum` starts it."""
    prepare(plan, run_dir)
    return launcher.start(run_dir)


@dataclass
class Cut:
    """A training that was cut off after its second epoch: what a reader had seen by then, and how it ended."""

    run_dir: Path
    seen: list[TelemetryEvent]
    code: int
    errors: str


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Three trainings, side by side, cut off in mid-run: killed, told to stop, and stopped by an impatient person."""
    cwd = tmp_path_factory.mktemp("cut")
    endless = ENDLESS[len(SAPFLOW) :]
    trainers = {name: Forked([*endless, "--run-dir", name], cwd) for name in ("killed", "told", "impatient")}
    try:
        seen = {name: follow_to(cwd / name, EpochCompleted, 2) for name in trainers}
        trainers["told"].send_signal(signal.SIGTERM)
        while trainers["impatient"].poll() is None:  # Ctrl-C, again and again, until it is gone
            trainers["impatient"].send_signal(signal.SIGINT)
        wait_until(lambda: trainers["told"].poll() is not None, "the end of a trainer that was told to stop")
    finally:
        for trainer in trainers.values():
            trainer.send_signal(signal.SIGKILL)
    done = {name: trainer.finish() for name, trainer in trainers.items()}
    return {name: Cut(cwd / name, seen[name], done[name].returncode, done[name].stderr) for name in trainers}


@pytest.mark.parametrize("name", ["killed", "told", "impatient"])
def test_all_that_was_seen_of_a_run_that_was_cut_off_stays_and_it_is_shown_as_ended(cut, name):
    events, state = read_whole(cut[name].run_dir)
    assert state is RunState.ENDED
    assert not trainer_is_alive(cut[name].run_dir)
    assert events[: len(cut[name].seen)] == cut[name].seen
    numbers = [sequence for env_id, sequence, _ in deterministic(events) if env_id == 0]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("name", ["told", "impatient"])
def test_a_stopped_trainer_closes_its_journal_and_says_where_it_is_in_one_line(cut, name):
    assert cut[name].code == 130
    kept = f"what was recorded is kept: sapflow sanctum {name}; to go on: sapflow train --resume {name}"
    assert cut[name].errors == f"sapflow: stopped; {kept}\n"
    assert not wal_of(cut[name].run_dir / JOURNAL_NAME).exists()


def test_sanctum_shows_a_killed_run_as_ended_without_completion(cut):
    run_dir = cut["killed"].run_dir
    with Terminal((*SAPFLOW, "sanctum", str(run_dir)), run_dir.parent) as terminal:
        terminal.wait_for("trainer gone since")
        terminal.type("q")
        assert terminal.wait() == 0
        terminal.assert_left_clean()


def test_training_goes_on_behind_sanctum_and_without_it(tmp_path):
    command = (*TRAIN, "--epochs", "8", "--run-dir", "my run", "--sanctum")
    run_dir = tmp_path / "my run"
    with Terminal(command, tmp_path) as terminal:
        follow_to(run_dir, EpochCompleted)
        (trainer,) = map(int, re.findall(r"process (\d+) trains", (run_dir / LOG_NAME).read_text()))
        os.kill(trainer, signal.SIGSTOP)  # so that it cannot be done before Sanctum is
        try:
            assert os.getsid(trainer) == trainer != terminal.process.pid
            terminal.wait_for("digits-mlp")
            terminal.wait_for("/8")
            terminal.type("q")
            assert terminal.wait() == 0
            terminal.assert_left_clean()
        finally:
            os.kill(trainer, signal.SIGCONT)
        after = terminal.output.rpartition("\x1b[?1049l")[2]
    assert f"process {trainer}" in after
    assert f"sapflow sanctum {shlex.quote('my run')}" in after
    wait_until(lambda: not trainer_is_alive(run_dir), "the end of the training")
    events, state = read_whole(run_dir)
    assert state is RunState.COMPLETED
    assert len([event for event in events if isinstance(event.payload, EpochCompleted)]) == 8
    assert "completed 1 of 1 envs" in (run_dir / LOG_NAME).read_text()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((*TRAIN, "--sanctum", "--epochs", "0"), "at least 1 epoch"),
        (without("textual", "train", "--sanctum"), "pip install 'sapflow[tui]'"),
    ],
)
def test_bad_input_in_a_terminal_is_one_line_and_leaves_nothing(command, words, tmp_path):
    with Terminal(command, tmp_path) as terminal:
        assert terminal.wait() == 2
        (line,) = terminal.output.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_launched_trainer_stops_in_order_when_it_is_told_to(tmp_path):
    run_dir = tmp_path / "run"
    trainer = launched(RunPlan(task="digits-mlp", envs=1, epochs=1_000_000), run_dir)
    try:
        follow_to(run_dir, EpochCompleted)
        trainer.terminate()
        assert trainer.wait(PATIENCE) == 130
    finally:
        trainer.kill()
    assert read_whole(run_dir)[1] is RunState.ENDED
    assert not wal_of(run_dir / JOURNAL_NAME).exists()
    log = (run_dir / LOG_NAME).read_text()
    assert "stopped by a signal" in log
    assert "Traceback" not in log


def test_what_may_be_a_secret_is_neither_in_the_arguments_nor_in_the_log(tmp_path):
    rules = (
        '[[rules]]\nname = "loud"\nwhen = "exploding"\nfor_epochs = 9\nactions = ["notify"]\n'
        '[notify]\nurls = ["json://ada:hunter2@localhost"]\n'
    )
    trainer = launched(RunPlan(task="digits-mlp", envs=1, epochs=1, rules=rules), tmp_path / "run")
    assert trainer.wait(PATIENCE) == 0
    assert "hunter2" not in " ".join(map(str, trainer.args))
    log = (tmp_path / "run" / LOG_NAME).read_text()
    assert "trains RunPlan(task='digits-mlp', envs=1" in log
    assert "hunter2" not in log


def test_what_cannot_be_trained_is_not_launched(tmp_path):
    with pytest.raises(InputError, match="at least 1 env"):
        launched(RunPlan(envs=0), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_never_begins_is_reported_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher.sys, "executable", "/bin/false")
    with pytest.raises(SapflowError, match=rf"ended with code 1 before it began: see .*{LOG_NAME}"):
        launched(RunPlan(task="digits-mlp"), tmp_path / "run")


def test_ctrl_c_before_anything_was_made_is_one_line(tmp_path):
    script = "import signal; from sapflow.cli import main; import sapflow.training.trainer as trainer\n"
    script += "trainer.RunPlan.check = lambda plan: signal.raise_signal(signal.SIGINT)\nmain()"
    done = finish_forked(["train"], tmp_path, script)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sapflow: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_there_is_anything_to_watch_takes_the_trainer_along(tmp_path, monkeypatch):
    trainers = []

    def launch(*arguments, **options):
        trainers.append(subprocess.Popen(*arguments, **options))
        return trainers[0]

    def ctrl_c(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(Popen=launch, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(launcher, "time", SimpleNamespace(sleep=ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        launched(RunPlan(task="digits-mlp", envs=1, epochs=1_000_000), tmp_path / "run")
    (trainer,) = trainers
    try:
        assert trainer.wait(PATIENCE) in (-signal.SIGTERM, 130)
    finally:
        trainer.kill()


def test_ctrl_c_while_the_journal_closes_comes_too_late(tmp_path, monkeypatch):
    close = Journal.close

    def close_late(journal):
        signal.raise_signal(signal.SIGINT)
        return close(journal)

    monkeypatch.setattr(Journal, "close", close_late)
    handler = signal.getsignal(signal.SIGINT)
    outcome = record(RunPlan(task="digits-mlp", envs=1, epochs=1), tmp_path)
    assert list(outcome.completed) == [0]
    assert read_whole(tmp_path)[1] is RunState.COMPLETED
    assert signal.getsignal(signal.SIGINT) is handler
