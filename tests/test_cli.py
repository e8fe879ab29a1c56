"""`sapflow` from outside, as processes: bad input, good runs, pipes that break, packages that are missing."""

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from commands import (
    SAPFLOW,
    TRAIN,
    Forked,
    Terminal,
    deterministic,
    finish,
    finish_all,
    finish_forked,
    read_whole,
    refused,
    started,
    without,
)
from journals import PATIENCE, epoch_completed, finished_run, run_completed
from sapflow.telemetry.events import EnvFailed, RunStarted, SeedPruned
from sapflow.telemetry.run_directory import (
    CHECKPOINTS_NAME,
    JOURNAL_NAME,
    LOCK_NAME,
    PLAN_NAME,
    REQUESTS_NAME,
    TOKEN_NAME,
    trainer_is_alive,
)
from sapflow.telemetry.source import RunState

ODD_NAME = "a [/red] 50%s :bug: ünï"

# Arguments, and what the one line has to say of them.
BAD_TRAINING = {
    "unknown task": (["--task", "nothing"], ["'nothing'", "digits-cnn, digits-mlp"]),
    "no envs": (["--envs", "0"], ["--envs 0", "at least 1"]),
    "negative epochs": (["--epochs", "-3"], ["--epochs -3", "at least 1"]),
    "negative epochs, joined": (["--epochs=-3"], ["--epochs -3", "at least 1"]),
    "plant in no env": (["--envs", "2", "--plant", "2:early:norm"], ["no env 2", "0 to 1"]),
    "plant in no slot": (["--plant", "0:attic:norm"], ["'attic'", "early, mid, late"]),
    "plant of no blueprint": (["--plant", "0:mid:oak"], ["'oak'", "sigmoid"]),
    "malformed plant": (["--plant", "mid:sigmoid"], ["'mid:sigmoid'", "ENV:SLOT:BLUEPRINT"]),
    "planted twice": (["--plant", "0:mid:conv", "--plant", "0:mid:norm"], ["env 0 slot 'mid'", "more than once"]),
    "taken directory": (["--run-dir", "taken"], ["taken exists and is not empty", "choose another"]),
    "directory below a file": (["--run-dir", "file/below"], ["cannot make the run directory file/below", "choose"]),
    "sanctum without a terminal": (["--sanctum"], ["needs a terminal"]),
    "no number": (["--envs", "many"], ["--envs", "'many'", "whole number"]),
    "no whole number": (["--epochs", "1.5"], ["--epochs", "'1.5'", "whole number"]),
    "unknown option": (["--colour"], ["--colour", "sapflow train --help"]),
    "unexpected argument": (["now"], ["now", "sapflow train --help"]),
    "option without its value": (["--run-dir"], ["--run-dir", "sapflow train --help"]),
    "option given twice": (["--epochs", "2", "--epochs", "3"], ["--epochs", "multiple times"]),
}
BAD_COMMANDS = {
    "unknown command": (["dance"], ["dance", "train, sanctum,"]),
    "sanctum of nothing": (["sanctum", "missing"], ["missing", "no journal"]),
    "sanctum of an empty directory": (["sanctum", "empty"], ["empty", "no journal"]),
    "sanctum of a text file": (["sanctum", "file"], ["file is no journal"]),
    "sanctum of another program's database": (["sanctum", "foreign.sqlite"], ["database of another program"]),
    "sanctum of a truncated journal": (["sanctum", "truncated"], ["truncated"]),
    "sanctum of a newer journal": (["sanctum", "newer"], ["newer Sapflow", "99", "upgrade"]),
    "sanctum of a name that no file has": (["sanctum", "x" * 300], ["cannot be read (File name too long)"]),
    "sanctum without runs": (["sanctum"], ["no run under runs"]),
    "sanctum of two runs": (["sanctum", "finished", "newer"], ["newer Sapflow", "99", "upgrade"]),
    "sanctum without a terminal": (["sanctum", "finished"], ["needs a terminal"]),
    "show of no record": (["records", "show", "TELE-1"], ["'TELE-1'", "sapflow records"]),
    "show of nothing": (["records", "show"], ["RECORD_ID", "sapflow records show --help"]),
    "verify of no record": (["records", "verify", "oak"], ["'OAK'", "sapflow records"]),
    "unknown command of records": (["records", "dance"], ["dance", "sapflow records --help"]),
}
# What is missing, who asks for it, and the extra that brings it.
MISSING = {
    "cyclopts": (["--version"], "cli"),
    "rich": (["records"], "cli"),
    "torch": (["train"], "train"),
    "sklearn": (["train"], "train"),
    "textual": (["sanctum", "finished"], "tui"),
    "torch, to verify": (["records", "verify"], "all"),
}
FAILING_ENV = """
from sapflow.cli import main
from sapflow.training.env import Env

run_epoch = Env.run_epoch

def failing(env):
    if env.plan.env_id == 0:
        raise RuntimeError("out of cheese")
    run_epoch(env)

Env.run_epoch = failing
main()
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A directory with everything that can be mistaken for something else."""
    scene = tmp_path_factory.mktemp("scene")
    (scene / "empty").mkdir()
    (scene / "file").write_text("not a journal, " * 1000)
    (scene / "taken").mkdir()
    (scene / "taken" / "thesis.txt").write_text("mine")
    with closing(sqlite3.connect(scene / "foreign.sqlite")) as connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, body BLOB)")
    epochs = [epoch_completed(epoch) for epoch in range(1, 400)]
    finished_run(scene / "finished", *epochs, run_completed())
    shutil.copytree(scene / "finished", scene / "truncated")
    journal = scene / "truncated" / JOURNAL_NAME
    os.truncate(journal, journal.stat().st_size // 2)
    shutil.copytree(scene / "finished", scene / "newer")
    with closing(sqlite3.connect(scene / "newer" / JOURNAL_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
    return scene


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def refusals(scene) -> dict[str, subprocess.CompletedProcess[str]]:
    """What came of all bad input, given in one place; nothing there may change by it."""
    before = content(scene)
    done = {name: finish_forked(["train", *arguments], scene) for name, (arguments, _) in BAD_TRAINING.items()}
    done |= {f"{name}.": finish_forked(arguments, scene) for name, (arguments, _) in BAD_COMMANDS.items()}
    done |= finish_all(
        {f"no {name}": (without(name.split(",")[0], *arguments), scene) for name, (arguments, _) in MISSING.items()}
    )
    assert content(scene) == before
    return done


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_training_that_cannot_be_is_refused_in_one_line(refusals, name):
    refused(refusals[name], *BAD_TRAINING[name][1])


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_commands_that_cannot_be_are_refused_in_one_line(refusals, name):
    refused(refusals[f"{name}."], *BAD_COMMANDS[name][1])


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_named_with_the_command_that_installs_it(refusals, name):
    refused(refusals[f"no {name}"], f"pip install 'sapflow[{MISSING[name][1]}]'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory in which four runs were made; what came of each, by its name."""
    cwd = tmp_path_factory.mktemp("trained")
    planted = (*TRAIN[len(SAPFLOW) :], "--epochs", "5", "--plant", "0:early:sigmoid", "--rng-seed", "7")
    short = (*TRAIN, "--epochs", "2", "--run-dir")
    failing = ("train", "--task", "digits-mlp", "--envs", "2", "--epochs", "2", "--run-dir", "failing")
    unread = ("sh", "-c", '"$@" | head -1', "sh", *short, os.fsdecode(b"unread\xff"))
    return cwd, {
        "default": finish_forked(planted, cwd),
        ODD_NAME: finish_forked((*planted, "--run-dir", ODD_NAME), cwd),
        "failing": finish_forked(failing, cwd, FAILING_ENV),
        "unread": finish(unread, cwd),
    }


@pytest.mark.parametrize("name", ["default", ODD_NAME])
def test_a_good_run_ends_by_saying_where_it_is_and_how_to_open_it(trained, name):
    cwd, done = trained
    assert done[name].returncode == 0
    assert done[name].stderr == ""
    *_, kept, look = done[name].stdout.splitlines()
    prefix, _, command = look.partition(": ")
    *sanctum, run_dir = shlex.split(command)
    assert (prefix, sanctum) == ("look at it", ["sapflow", "sanctum"])
    assert kept.endswith(f" events kept in {run_dir}")
    events, state = read_whole(cwd / run_dir)
    assert kept.split()[0] == str(len(events))
    assert state is RunState.COMPLETED
    assert {event.run_id for event in events} == {Path(run_dir).name}
    assert not trainer_is_alive(cwd / run_dir)


def test_without_a_run_dir_a_run_is_kept_under_runs(trained):
    cwd, _ = trained
    (run_dir,) = (cwd / "runs").iterdir()
    assert run_dir.name.startswith("digits-mlp-")
    names = {JOURNAL_NAME, LOCK_NAME, TOKEN_NAME, PLAN_NAME, CHECKPOINTS_NAME, REQUESTS_NAME}
    assert {path.name for path in run_dir.iterdir()} == names


def test_a_planted_seed_that_vanishes_is_pruned_and_the_table_says_so(trained):
    cwd, done = trained
    events, _ = read_whole(cwd / ODD_NAME)
    (pruned,) = [event.payload for event in events if isinstance(event.payload, SeedPruned)]
    assert (pruned.slot_id, pruned.blueprint_id) == ("early", "sigmoid")
    (row,) = [line for line in done[ODD_NAME].stdout.splitlines() if "sigmoid*" in line]
    assert f"pruned {pruned.epoch}, {pruned.rule}" in row


def test_the_same_seed_gives_the_same_telemetry_in_another_process(trained):
    cwd, _ = trained
    (default,) = (cwd / "runs").iterdir()
    (one, _), (other, _) = read_whole(default), read_whole(cwd / ODD_NAME)
    assert len(deterministic(one)) > 5
    assert deterministic(one) == deterministic(other)


def test_a_failing_env_is_said_and_exits_1_while_the_others_complete(trained):
    cwd, done = trained
    assert done["failing"].returncode == 1
    assert done["failing"].stderr.splitlines()[-1] == "sapflow: 1 of 2 envs failed"
    events, state = read_whole(cwd / "failing")
    assert state is RunState.COMPLETED
    assert [event.env_id for event in events if isinstance(event.payload, EnvFailed)] == [0]


def test_training_goes_on_when_the_reader_of_its_output_leaves(trained):
    cwd, done = trained
    assert done["unread"].returncode == 0
    assert done["unread"].stderr == ""
    assert len(done["unread"].stdout.splitlines()) == 1
    events, state = read_whole(cwd / os.fsdecode(b"unread\xff"))
    assert state is RunState.COMPLETED
    assert isinstance(events[0].payload, RunStarted)  # whose run_id has to be text, unlike the directory's name


def test_of_two_trainers_in_one_directory_one_is_refused_and_neither_needs_a_stdout(tmp_path):
    command = (*TRAIN[len(SAPFLOW) :], "--epochs", "2", "--run-dir", "one")
    both = [Forked(command, tmp_path, output=False) for _ in range(2)]
    winner, loser = sorted((each.finish() for each in both), key=lambda each: each.returncode)
    assert (winner.returncode, winner.stderr) == (0, "")
    refused(loser, "one")
    events, state = read_whole(tmp_path / "one")
    assert state is RunState.COMPLETED
    assert len([event for event in events if isinstance(event.payload, RunStarted)]) == 1


ANSWERS = {
    "--help": "train",
    "train --help": "--rng-seed",
    "sanctum --help": "RUN_DIR",
    "records --help": "verify",
    "query --help": "The tables are gradients",
    "show --help": "asterisk",
    "--version": "0.",
    "records": "TELE-557",
}


@pytest.mark.parametrize("arguments", ANSWERS)
def test_a_question_is_answered_and_exits_0_without_torch(arguments, tmp_path):
    done = finish(without("torch", *arguments.split()), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ANSWERS[arguments] in done.stdout


def test_a_record_is_shown_without_torch_too(tmp_path):
    done = finish(without("torch", "records", "show", "557"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[TELE-557] Seed Grad Ratio" in done.stdout


@pytest.mark.parametrize("arguments", ["--help", "--version", "records"])
def test_a_reader_that_is_gone_is_no_error(arguments, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*SAPFLOW, *arguments.split()], cwd=tmp_path, stdout=writing, stderr=-1, timeout=PATIENCE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", ["--version", "records", "records show 557"])
def test_characters_that_the_output_has_none_for_are_no_error(arguments, tmp_path):
    command = ("env", "PYTHONIOENCODING=ascii", *without("torch", *arguments.split()))
    done = finish(command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_on_a_full_disk_is_one_line_and_exit_1(tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*SAPFLOW, "--version"], cwd=tmp_path, stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_any_command_that_is_told_to_stop_says_so_and_exits_130(scene):
    pytest.importorskip("pyarrow")
    with started((*SAPFLOW, "export", "finished", "events", "--format", "json"), scene) as export:
        os.read(export.stdout.fileno(), 1)  # there is more than the pipe holds
        export.terminate()
        assert export.wait(PATIENCE) == 130
        assert export.stderr.read() == "sapflow: interrupted\n"


def test_sanctum_opens_the_newest_run_and_needs_no_torch(tmp_path):
    finished_run(tmp_path / "first", epoch_completed(1), run_completed())
    (tmp_path / "runs").mkdir()
    finished_run(tmp_path / "runs" / "older", epoch_completed(1), run_completed())
    finished_run(tmp_path / "runs" / "newer", epoch_completed(77), run_completed())
    os.utime(tmp_path / "runs" / "older" / JOURNAL_NAME, (1, 1))
    with Terminal(without("torch", "sanctum"), tmp_path) as terminal:
        terminal.wait_for("77/99")
        terminal.wait_for("completed")
        terminal.type("q")
        assert terminal.wait() == 0
        terminal.assert_left_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_sanctum_and_leaves_the_terminal_clean(number, scene):
    with Terminal((*SAPFLOW, "sanctum", "finished"), scene) as terminal:
        terminal.wait_for("completed")
        terminal.process.send_signal(number)
        assert terminal.wait() == 0
        terminal.assert_left_clean()
