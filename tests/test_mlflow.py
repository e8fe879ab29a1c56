"""MLflow, against a real tracking server on SQLite: one process for all tests here, since it is slow to start."""

import math
import os
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import pytest

from commands import SAPFLOW, finish, refused
from journals import event, finished_run, run_completed
from receivers import free_port
from sanctum_events import RUN_ID, demo_run, epoch, seed
from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters import registry
from sapflow.exporters.exporter import Setting
from sapflow.exporters.ledger import path_of, read
from sapflow.exporters.mlflow import status_of
from sapflow.exporters.run_identity import RunIdentity
from sapflow.exporters.run_view import RunView
from sapflow.telemetry.events import EnvCompleted, EnvFailed, EnvStarted, EpochCompleted, TelemetryEvent
from sapflow.telemetry.run_directory import TrainerLock
from sapflow.telemetry.source import RunState
from sapflow.telemetry.vocabulary import Measurement

pytest.importorskip("mlflow")
pytest.importorskip("alembic", reason="the tracking server is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # MLflow's own
]

DEMO = demo_run(epochs=4, completed=True)
STARTING_SECONDS = 180.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/tracking.sqlite", "--default-artifact-root", str(folder / "files"),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes more
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + STARTING_SECONDS
    try:
        while not is_up(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)  # between two looks
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def client(server):
    from mlflow import MlflowClient

    return MlflowClient(server)


def open_it(uri: str, experiment: str, run_id: str = RUN_ID, token: str = "", run_dir: Path = Path()):
    options = {"tracking_uri": uri, "experiment": experiment}
    return registry.open_exporter(
        Setting(name="mlflow", run_dir=run_dir, run=RunIdentity(run_id, token), options=options)
    )


def runs_of(client, experiment: str) -> list:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def history(client, run, key: str) -> list[tuple[int, float]]:
    return sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, key))


def test_a_run_from_the_command_line_is_there_whole(server, client, tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    (tmp_path / "sapflow.toml").write_text(f'[exporters.mlflow]\ntracking_uri = "{server}"\nexperiment = "whole"\n')
    done = finish((*SAPFLOW, "follow", str(run_dir), "--config", "sapflow.toml"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"mlflow: {len(DEMO)} events exported"  # behind where MLflow shows the run
    (run,) = runs_of(client, "whole")
    assert (run.info.run_name, run.info.status) == (RUN_ID, "FINISHED")
    assert run.data.params["task"] == "digits-cnn"
    assert "exploding seed" in run.data.tags["sapflow.latest_alert"]
    for env in range(4):
        done = [one.payload for one in DEMO if isinstance(one.payload, EpochCompleted) and one.env_id == env]
        assert history(client, run, f"env-{env}/accuracy") == [(one.epoch, one.accuracy) for one in done]
        for slot in ("early", "mid", "late"):
            expected = [
                (one.epoch, found.grad_ratio)
                for one in done
                for found in one.seeds
                if found.slot_id == slot and found.stage.alive and found.measurement is Measurement.MEASURED
            ]
            assert history(client, run, f"env-{env}/{slot}/gradient.gain") == expected


def test_a_store_without_a_server_gets_the_same(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # where such a store keeps its files
    uri = f"sqlite:///{tmp_path}/tracking.sqlite"
    open_it(uri, "direct").export(DEMO)
    client = MlflowClient(uri)
    (run,) = runs_of(client, "direct")
    done = [one.payload for one in DEMO if isinstance(one.payload, EpochCompleted) and one.env_id == 2]
    assert history(client, run, "env-2/accuracy") == [(one.epoch, one.accuracy) for one in done]


def test_every_slot_has_metrics_of_its_own_whatever_it_is_called(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    names = ("", "the model", ".", "..", "層.一", "層.二", "n" * 300, "n" * 299 + "m", "a/b", "a:b")
    said = epoch(1, *(seed(name, float(gain)) for gain, name in enumerate(names, 1)))
    uri = f"sqlite:///{tmp_path}/tracking.sqlite"
    open_it(uri, "names").export([TelemetryEvent(run_id=RUN_ID, env_id=0, sequence=0, time=1.5, payload=said)])
    (run,) = runs_of(MlflowClient(uri), "names")
    gains = {key: value for key, value in run.data.metrics.items() if key.endswith("/gradient.gain")}
    assert sorted(gains.values()) == [float(gain) for gain, _ in enumerate(names, 1)]
    assert gains["env-0/the model/gradient.gain"] == 1.0  # "" is the model itself
    assert gains["env-0/a:b/gradient.gain"] == 9.0


def test_what_comes_again_is_there_once_and_a_restart_goes_on_with_the_same_run(server, client):
    first = open_it(server, "twice")
    first.export(DEMO[:60])
    second = open_it(server, "twice")
    second.export(DEMO[30:])
    second.close()
    (run,) = runs_of(client, "twice")
    assert [step for step, _ in history(client, run, "env-0/accuracy")] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_two_runs_of_one_name_are_two(server, client):
    for token in ("0123456789abcdef", "fedcba9876543210"):
        open_it(server, "namesakes", token=token).export(DEMO[:3])
    assert [run.info.run_name for run in runs_of(client, "namesakes")] == [RUN_ID, RUN_ID]


def test_a_run_that_was_cut_off_says_so_and_odd_names_and_numbers_are_taken(server, client, tmp_path):
    odd = seed('a/b "c"\n{d}', math.inf, max_ratio=math.nan)
    event = TelemetryEvent(run_id="o'dd", env_id=0, sequence=0, time=1.5, payload=epoch(1, odd))
    run_dir = finished_run(tmp_path / "run", event)
    exporter = open_it(server, "odd", run_id='o\'dd "run"', run_dir=run_dir)
    exporter.export([event])
    exporter.close()
    (run,) = runs_of(client, "odd")
    assert run.info.status == "KILLED"
    assert run.info.run_name == 'o\'dd "run"'
    name = f"env-0/a:b _c___d_-{zlib.crc32(odd.slot_id.encode()):08x}"
    ((_, gain),) = history(client, run, f"{name}/gradient.gain")
    ((_, largest),) = history(client, run, f"{name}/gradient.gain_max")
    assert gain == sys.float_info.max  # as MLflow keeps infinity
    assert math.isnan(largest)


def test_a_run_that_is_followed_no_longer_and_goes_on_is_running(server, client, tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO[:-1])
    with TrainerLock(run_dir):
        exporter = open_it(server, "left", run_dir=run_dir)
        exporter.export(DEMO[:-1])
        exporter.close()
    (run,) = runs_of(client, "left")
    assert run.info.status == "RUNNING"


@pytest.mark.parametrize(
    ("state", "ends", "status"),
    [
        (RunState.LIVE, [EnvFailed], ""),
        (RunState.ENDED, [EnvCompleted], "KILLED"),
        (RunState.ENDED, [EnvFailed], "FAILED"),  # as an error leaves a run of `sapflow.grow`
        (RunState.ENDED, [EnvFailed, None], "KILLED"),
        (RunState.COMPLETED, [EnvCompleted], "FINISHED"),
        (RunState.COMPLETED, [EnvCompleted, EnvFailed], "FAILED"),
    ],
)
def test_a_run_ends_as_its_envs_did(state, ends, status):
    view = RunView()
    for env_id, end in enumerate(ends):
        view.take(event(EnvStarted(host="host", host_params=1, slot_ids=(), epochs=1), env_id, 0))
        if end is not None:
            view.take(event(end(epoch=1, **({"error": "error"} if end is EnvFailed else {})), env_id, 1))
    if state is RunState.COMPLETED:
        view.take(run_completed())
    assert status_of(view, state) == status


def test_an_experiment_that_was_deleted_is_for_a_person_to_restore(server, client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ExporterRefusedError, match="active"):
        open_it(server, "gone")


def test_an_experiment_that_another_follower_makes_at_the_same_time_is_taken(server, client, monkeypatch):
    """Both look for it, neither finds it, and the other is quicker."""
    from mlflow import MlflowClient

    look, looks = MlflowClient.get_experiment_by_name, []

    def look_before_the_other_has_made_it(self, name: str):
        looks.append(name)
        if len(looks) == 1:
            client.create_experiment(name)
            return None
        return look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look_before_the_other_has_made_it)
    open_it(server, "race").export(DEMO[:60])
    assert len(runs_of(client, "race")) == 1


def test_a_server_that_is_away_is_tried_again_and_one_that_refuses_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    away = open_it(f"http://127.0.0.1:{free_port()}", "away")
    with pytest.raises(BackendAwayError, match="MLflow"):
        away.export(DEMO)
    with pytest.raises(ExporterRefusedError, match="MLFLOW_TRACKING_URI"):
        open_it("", "nowhere")
    with pytest.raises(ExporterRefusedError, match="ftp"):
        open_it("ftp://host", "nowhere")
    with pytest.raises(ExporterRefusedError, match="credentials") as raised:
        open_it("http://user:secret@host", "nowhere")
    assert "secret" not in str(raised.value)


def test_an_end_that_a_server_is_not_told_is_none(tmp_path):
    """All was handed over before but how the run ended."""
    run_dir = finished_run(tmp_path / "run", *DEMO)
    options = {"tracking_uri": f"http://127.0.0.1:{free_port()}"}
    away = registry.open_exporter(
        Setting(name="mlflow", run_dir=run_dir, run=RunIdentity(RUN_ID), cursor=len(DEMO), options=options)
    )
    with pytest.raises(BackendAwayError, match="MLflow"):
        away.close()


def test_bad_input_is_one_line_and_keeps_the_place(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    follow = (*SAPFLOW, "follow", str(run_dir), "--export", "mlflow", "--patience", "0", "--option")
    done = finish((*follow, f"mlflow.tracking_uri=http://127.0.0.1:{free_port()}"), tmp_path)
    assert done.returncode == 1
    assert read(path_of(run_dir, "mlflow")).cursor == 0
    refused(finish((*follow, "mlflow.uri=http://x"), tmp_path), "no option 'uri'")
