"""`sapflow follow` as people use it: real processes, a live run, backends that go away, and SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from commands import (
    ENDLESS,
    SAPFLOW,
    TRAIN,
    Forked,
    Terminal,
    finish_forked,
    follow_to,
    read_whole,
    refused,
    started,
    wait_until,
)
from journals import PATIENCE, finished_run, python
from receivers import free_port, receiver
from sanctum_events import RUN_ID, demo_run
from sapflow.cli.followers import Exporting, Followers
from sapflow.exporters.exporter import event_key
from sapflow.exporters.ledger import path_of, read
from sapflow.exporters.run_identity import identity_of
from sapflow.telemetry import run_directory
from sapflow.telemetry.events import EpochCompleted
from sapflow.telemetry.run_directory import TrainerLock
from sapflow.telemetry.source import RunState

DEMO = demo_run(epochs=6, completed=True)
KEYS = [event_key(one, RUN_ID) for one in DEMO]
FOLLOW = ("follow",)

# A trainer that emits so many events slowly enough to be followed, and ends when its stdin does.
TRAINER = """
import sys
import threading
from pathlib import Path
from journals import PATIENCE, epoch_completed, run_completed
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import TrainerLock

run_dir = Path(sys.argv[1])
with TrainerLock(run_dir):
    journal = Journal(run_dir)
    epoch = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            epoch += 1
            journal.emit(epoch_completed(epoch))
        journal.flush(PATIENCE)
        print(epoch, flush=True)
    journal.emit(run_completed())
    journal.close()
"""


def retries(run_dir: Path, process: subprocess.Popen[str]) -> bool:
    progress = ledger(run_dir)
    return progress is not None and (progress.pid, progress.state) == (process.pid, "retrying")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run", *DEMO)


def webhook(run_dir: Path, url: str, *more: str) -> tuple[str, ...]:
    return (*FOLLOW, str(run_dir), "--export", "webhook", "--option", f"webhook.url={url}", *more)


def ledger(run_dir: Path, name: str = "webhook"):
    return read(path_of(run_dir, name))


def test_a_finished_run_goes_to_several_places_each_by_a_process_of_its_own(run_dir):
    with receiver() as server:
        done = finish_forked(webhook(run_dir, server.url, "--export", "jsonlines"), run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [
        f"jsonlines: {len(DEMO)} events exported",
        f"webhook: {len(DEMO)} events exported",
    ]
    assert server.keys == KEYS
    lines = (run_dir / "exporters" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == KEYS
    assert ledger(run_dir).pid != ledger(run_dir, "jsonlines").pid


def test_a_rolled_run_whose_journal_is_gone_is_exported_from_where_it_was(run_dir, tmp_path):
    pytest.importorskip("pyarrow")
    path_of(run_dir, "jsonlines").parent.mkdir()
    path_of(run_dir, "jsonlines").write_text('{"cursor": 10}')
    assert finish_forked(("roll", str(run_dir), "--remove-journal"), tmp_path).returncode == 0
    assert not (run_dir / "journal.sqlite").exists()
    done = finish_forked((*FOLLOW, str(run_dir), "--export", "jsonlines"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (run_dir / "exporters" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == KEYS[10:]


def test_to_a_pipe(run_dir):
    done = finish_forked((*FOLLOW, str(run_dir), "--export", "jsonlines", "--option", "jsonlines.path=-"), run_dir)
    lines = done.stdout.splitlines()
    assert [json.loads(line)["key"] for line in lines] == KEYS
    assert done.stderr == f"sapflow: jsonlines: {len(DEMO)} events exported\n"


def test_to_a_pipe_and_elsewhere(run_dir):
    with receiver() as server:
        more = ("--export", "jsonlines", "--option", "jsonlines.path=-")
        done = finish_forked(webhook(run_dir, server.url, *more), run_dir)
    assert [json.loads(line)["key"] for line in done.stdout.splitlines()] == KEYS
    assert f"webhook: {len(DEMO)} events exported" in done.stderr.splitlines()


def test_a_backend_that_hangs_holds_up_nobody_else(run_dir):
    with receiver() as server:
        server.always = lambda body: 200 if server.released.wait(PATIENCE) else 500
        server.released = threading.Event()
        with started((*SAPFLOW, *webhook(run_dir, server.url, "--export", "jsonlines")), run_dir) as both:
            wait_until(lambda: getattr(ledger(run_dir, "jsonlines"), "state", "") == "done", "the end of jsonlines")
            server.wait_for(lambda it: it.asked > 0, "a batch")
            assert ledger(run_dir).exported == 0
            server.released.set()
            assert both.wait(PATIENCE) == 0
    assert set(server.keys) == set(KEYS)


def test_sigkill_and_restarts_lose_nothing_and_duplicates_are_known_by_their_keys(tmp_path):
    """A live run; the follower is killed while a batch is on its way, the backend fails and restarts in between."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    port = free_port()
    kills, total = 4, 0
    taken: list[str] = []
    with python(TRAINER, run_dir) as trainer:

        def emit(count: int) -> None:
            trainer.stdin.write(f"{count}\n")
            trainer.stdin.flush()
            assert trainer.stdout.readline()

        for _ in range(kills):
            emit(30)
            total += 30
            # The backend is away when the follower begins, then fails, then takes a batch and never answers.
            with started(
                (*SAPFLOW, *webhook(run_dir, f"http://127.0.0.1:{port}", "--option", "webhook.timeout=30")), tmp_path
            ) as one:
                wait_until(lambda one=one: retries(run_dir, one), "a retry")
                with receiver(port) as server:
                    hanging = threading.Event()

                    def take_and_hang(body: bytes, server=server, hanging=hanging) -> int:
                        server.bodies.append(body)
                        hanging.set()
                        one.wait(PATIENCE)  # until it is killed
                        return 0

                    server.answers = [500]
                    server.always = take_and_hang
                    assert hanging.wait(PATIENCE)
                    one.send_signal(signal.SIGKILL)
                    assert one.wait(PATIENCE) == -signal.SIGKILL
                taken += server.keys
        with receiver(port) as server, started((*SAPFLOW, *webhook(run_dir, server.url)), tmp_path) as last:
            server.wait_for(lambda it: len(it.bodies) > 0, "a batch")
            trainer.stdin.close()
            assert last.wait(PATIENCE) == 0
        taken += server.keys
    events, state = read_whole(run_dir)
    assert state is RunState.COMPLETED
    assert len(events) == total + 1
    lost = {event_key(one, "run") for one in events} - set(taken)
    duplicates = len(taken) - len(set(taken))
    assert lost == set()
    assert duplicates == 30 + 60 + 90 + 120  # each kill left all that was there by then unacknowledged
    assert ledger(run_dir).retries >= 2 * kills


def test_it_waits_for_a_run_that_is_yet_to_begin(tmp_path):
    run_dir = tmp_path / "run"
    with started((*SAPFLOW, *FOLLOW, str(run_dir), "--export", "jsonlines", "--wait", "60"), tmp_path) as follower:
        run_directory.create(run_dir)  # which has to be empty, or not there
        wait_until(lambda: getattr(ledger(run_dir, "jsonlines"), "state", "") == "waiting", "the follower")
        with python(TRAINER, run_dir) as trainer:
            trainer.communicate("5\n", timeout=PATIENCE)
        assert follower.wait(PATIENCE) == 0
        assert follower.stdout.read() == "jsonlines: 6 events exported\n"


def test_ctrl_c_and_sigterm_end_it_and_keep_its_place(run_dir):
    for number in (signal.SIGINT, signal.SIGTERM):
        command = webhook(run_dir, f"http://127.0.0.1:{free_port()}", "--export", "jsonlines")
        with started((*SAPFLOW, *command), run_dir) as both:
            wait_until(lambda: getattr(ledger(run_dir), "state", "") == "retrying", "a retry")
            both.send_signal(number)
            assert both.wait(PATIENCE) == 130
            assert "Traceback" not in both.stderr.read()
        assert ledger(run_dir).cursor == 0
        path_of(run_dir, "webhook").unlink()


def test_a_backend_that_stays_away_is_given_up_with_one_line(run_dir):
    done = finish_forked(webhook(run_dir, f"http://127.0.0.1:{free_port()}", "--patience", "0"), run_dir)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr


def test_bad_input_is_one_line(run_dir, tmp_path):
    follow = (*FOLLOW, str(run_dir))
    refused(finish_forked(follow, tmp_path), "--export")
    refused(finish_forked((*follow, "--export", "promethius"), tmp_path), "no exporter 'promethius'")
    refused(finish_forked((*follow, "--export", "webhook"), tmp_path), "needs a url")
    refused(finish_forked((*FOLLOW, str(tmp_path), "--export", "jsonlines"), tmp_path), "no journal")
    refused(finish_forked((*FOLLOW, "nowhere", "--export", "jsonlines"), tmp_path), "nowhere")
    with receiver() as server:
        server.always = 401
        refused(finish_forked(webhook(run_dir, server.url), tmp_path), "401", "credentials")


def test_what_is_dropped_is_said_and_counted(run_dir):
    poison = KEYS[7].encode()
    with receiver() as server:
        server.always = lambda body: 422 if b'"' + poison + b'"' in body else 200
        done = finish_forked(webhook(run_dir, server.url), run_dir)
    assert done.returncode == 1
    assert done.stdout == f"webhook: {len(DEMO) - 1} events exported, 1 dropped\n"
    assert "1 BatchAtFaultError" in done.stderr.splitlines()[-1]
    assert sorted(server.keys) == sorted(set(KEYS) - {KEYS[7]})
    assert ledger(run_dir).dropped == {"BatchAtFaultError": 1}


def test_what_was_refused_once_is_refused_again_and_nobody_s_file_is_touched(run_dir, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    follow = (*FOLLOW, str(run_dir), "--export", "jsonlines", "--option", f"jsonlines.path={tmp_path / 'mine.txt'}")
    for _ in range(2):
        refused(finish_forked(follow, tmp_path), "mine.txt", "choose another path")
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("option", ["--wait", "--patience"])
@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_a_time_that_is_none_is_refused(run_dir, tmp_path, option, seconds):
    done = finish_forked((*FOLLOW, str(run_dir), "--export", "jsonlines", f"{option}={seconds}"), tmp_path)
    refused(done, f"{option} {seconds}")


def own_exporter(tmp_path: Path, code: str) -> None:
    """A package with the exporter "sticky", in tmp_path/site."""
    info = tmp_path / "site" / "sticky-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sticky\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sapflow.exporters]\nsticky = sticky:open_it\n")
    (tmp_path / "site" / "sticky.py").write_text(f"import atexit, threading\n{code}")


def test_the_process_is_over_although_a_backend_left_threads_and_exit_hooks_behind(run_dir, tmp_path):
    own_exporter(
        tmp_path,
        "forever = threading.Event().wait\n"
        "class Sticky:\n    def export(self, events): pass\n    def close(self): pass\n"
        "def open_it(setting):\n    threading.Thread(target=forever).start()\n    atexit.register(forever)\n"
        "    return Sticky()\n",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), *sys.path))}
    done = subprocess.run(
        [*SAPFLOW, *FOLLOW, str(run_dir), "--export", "sticky"], env=environment, capture_output=True, timeout=PATIENCE,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"sticky: {len(DEMO)} events exported\n")


# Beside the training


def test_a_training_is_exported_while_it_runs_and_to_its_end(tmp_path):
    with receiver() as server:
        done = finish_forked(
            (*TRAIN[len(SAPFLOW) :], "--epochs", "3", "--run-dir", "run", "--export", "webhook",
             "--export", "jsonlines", "--export-option", f"webhook.url={server.url}"),
            tmp_path,
        )  # fmt: skip
    run_dir = tmp_path / "run"
    events, state = read_whole(run_dir)
    assert (done.returncode, done.stderr, state) == (0, "", RunState.COMPLETED)
    assert events[0].payload.token == identity_of(run_dir).token != ""
    assert server.keys == [event_key(one, identity_of(run_dir).key) for one in events]
    for name in ("webhook", "jsonlines"):
        assert f"{name}: {len(events)} events exported" in done.stdout


def test_a_training_goes_on_when_its_exporter_is_killed_and_its_backend_away(tmp_path):
    url = f"webhook.url=http://127.0.0.1:{free_port()}"
    run_dir = tmp_path / "run"
    endless = ENDLESS[len(SAPFLOW) :]
    trainer = Forked((*endless, "--run-dir", "run", "--export", "webhook", "--export-option", url), tmp_path)
    try:
        follow_to(run_dir, EpochCompleted, 1)
        wait_until(lambda: ledger(run_dir).state == "retrying", "a retry")
        follower = ledger(run_dir).pid
        os.kill(follower, signal.SIGKILL)
        follow_to(run_dir, EpochCompleted, 3)
        trainer.send_signal(signal.SIGINT)
        wait_until(lambda: trainer.poll() is not None, "the end of the training")
        assert trainer.returncode == 130
    finally:
        trainer.send_signal(signal.SIGKILL)
    events, _ = read_whole(run_dir)
    with receiver() as server:  # and everything is there for another follower
        assert finish_forked(webhook(run_dir, server.url), tmp_path).returncode == 0
    assert server.keys == [event_key(one, identity_of(run_dir).key) for one in events]


def test_a_training_that_cannot_be_exported_as_was_asked_does_not_begin(tmp_path):
    train = (*TRAIN[len(SAPFLOW) :], "--epochs", "1", "--run-dir", "run")
    with receiver() as server:
        taken = f"prometheus.port={server.port}"
        bad = {
            "a bad name": (("--export", "webhok"), "did you mean webhook?"),
            "a bad option": (("--export", "webhook", "--export-option", "webhook.colour=1"), "no option 'colour'"),
            "a port in use": (("--export", "prometheus", "--export-option", taken), "in use"),
            "no file": (("--export-config", "missing.toml"), "missing.toml"),
        }
        for arguments, words in bad.values():
            done = finish_forked((*train, *arguments), tmp_path)
            assert words in done.stderr
            refused(done, words)
            assert not (tmp_path / "run").exists()


def test_a_training_under_sanctum_begins_when_its_exporters_are_open_too(tmp_path):
    with receiver() as server:
        taken = f"prometheus.port={server.port}"
        train = (*TRAIN, "--epochs", "1", "--run-dir", "run", "--sanctum")
        with Terminal((*train, "--export", "prometheus", "--export-option", taken), tmp_path) as terminal:
            assert terminal.wait() == 2
            assert "in use" in terminal.text
    assert not (tmp_path / "run").exists()


def test_followers_started_in_a_script_s_background_are_stopped_as_elsewhere(tmp_path):
    """There SIGINT is ignored, and so it is by all that is started from there."""
    run_dir = finished_run(tmp_path / "run", *DEMO[:-1])
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from sapflow.cli import main
sys.argv[1:] = ["follow", {str(run_dir)!r}, "--export", "jsonlines", "--export", "webhook",
    "--option", "webhook.url=http://127.0.0.1:{free_port()}/"]
main()
"""
    with TrainerLock(run_dir), python(script) as follower:  # a run that has no end for them to find
        for name, state in (("jsonlines", "following"), ("webhook", "retrying")):
            wait_until(lambda name=name, state=state: (at := ledger(run_dir, name)) and at.state == state, state)
        follower.terminate()
        assert follower.wait(PATIENCE) == 130
    assert {ledger(run_dir, name).state for name in ("jsonlines", "webhook")} == {"stopped"}


def test_a_training_tells_of_an_exporter_that_was_killed(tmp_path, capsys):
    (tmp_path / "exporters").mkdir()
    followers = Followers(tmp_path, {"webhook": subprocess.Popen(["sleep", "60"])})
    followers.log("webhook").write_text("sapflow: webhook: 500 events exported\n")  # of a time before
    followers.processes["webhook"].kill()
    followers.finish()
    assert capsys.readouterr().out.startswith("exporter webhook: killed by signal 9; ")


@pytest.mark.parametrize("begin", [lambda exporting, run_dir: exporting.run_beside(run_dir, []), Exporting.start])
def test_an_interrupt_before_the_second_follower_has_started_leaves_none_behind(tmp_path, monkeypatch, begin):
    run_dir = finished_run(tmp_path / "run", *DEMO[:-1])
    begun: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupted_at_the_second(command: list[str], **how) -> subprocess.Popen[bytes]:
        if begun:
            raise KeyboardInterrupt
        begun.append(start(command, **how))
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted_at_the_second)
    with TrainerLock(run_dir), pytest.raises(KeyboardInterrupt):  # a run that has no end for them to find
        begin(Exporting({"jsonlines": [], "prometheus": []}), run_dir)
    assert begun[0].poll() is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_while_its_exporters_open_leaves_none_behind(tmp_path, number):
    own_exporter(tmp_path, "def open_it(setting):\n    threading.Event().wait()\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), *sys.path))}
    train = (*TRAIN, "--run-dir", "run", "--export", "sticky")
    with subprocess.Popen(train, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as training:
        wait_until(lambda: ledger(tmp_path / "run", "sticky"), "a follower")
        follower = ledger(tmp_path / "run", "sticky").pid
        training.send_signal(number)
        assert training.wait(PATIENCE) == 130
    assert not (tmp_path / "run").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(follower, 0)
