"""Weights & Biases, from outside: the file that an offline run leaves, record by record; a server that refuses."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from commands import SAPFLOW, finish, refused
from journals import PATIENCE, finished_run
from receivers import receiver
from sanctum_events import RUN_ID, demo_run, epoch, seed
from sapflow.errors import BackendAwayError
from sapflow.exporters.exporter import Setting, event_key
from sapflow.exporters.ledger import path_of, read
from sapflow.exporters.run_identity import RunIdentity
from sapflow.exporters.wandb import WeightsAndBiases, _row
from sapflow.telemetry.events import AlertRaised, EpochCompleted, TelemetryEvent
from sapflow.telemetry.vocabulary import Measurement

pytest.importorskip("wandb")

TOKEN = "0123456789abcdef"
STARTED, *REST = demo_run(epochs=4, completed=True)
DEMO = [replace(STARTED, payload=replace(STARTED.payload, token=TOKEN)), *REST]
BLOCK = 32_768


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: protobuf in the log format of LevelDB, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        if BLOCK - place % BLOCK < 7:  # too little is left of a block for another part
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def items(group) -> dict[str, Any]:
    return {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in group}


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> list[Any]:
    run_dir = finished_run(tmp_path_factory.mktemp("wandb") / "run", *DEMO)
    done = finish(
        (*SAPFLOW, "follow", str(run_dir), "--export", "wandb", "--option", "wandb.mode=offline",
         "--option", "wandb.project=nursery"), run_dir,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"wandb: {len(DEMO)} events exported\n"), done.stderr
    (path,) = run_dir.glob("exporters/wandb/offline-run-*/run-*.wandb")
    return list(records(path))


def of_kind(offline: list[Any], kind: str) -> list[Any]:
    return [getattr(one, kind) for one in offline if one.WhichOneof("record_type") == kind]


def test_each_epoch_of_an_env_is_a_row_with_its_key_and_its_numbers(offline):
    rows = [items(one.item) for one in of_kind(offline, "history")]
    expected = [one for one in DEMO if isinstance(one.payload, EpochCompleted)]
    assert [row["key"] for row in rows] == [event_key(one, f"{RUN_ID}-{TOKEN}") for one in expected]
    for row, one in zip(rows, expected, strict=True):
        prefix = f"env-{one.env_id}"
        assert row[f"{prefix}/epoch"] == one.payload.epoch
        assert row[f"{prefix}/accuracy"] == one.payload.accuracy
        assert row[f"{prefix}/passes"] == one.payload.total_passes
        for told in one.payload.seeds:
            measured = told.stage.alive and told.measurement is Measurement.MEASURED
            assert row.get(f"{prefix}/{told.slot_id}/gradient.gain") == (told.grad_ratio if measured else None)


def test_every_slot_has_numbers_of_its_own_whatever_it_is_called():
    names = ("a/b", "a:b", "a.b")
    done = epoch(1, *(seed(name, float(gain)) for gain, name in enumerate(names, 1)))
    said = TelemetryEvent(run_id=RUN_ID, env_id=0, sequence=0, time=1.5, payload=done)
    gains = {name: value for name, value in _row(said, 0, done) if name.endswith("/gradient.gain")}
    assert sorted(gains.values()) == [1.0, 2.0, 3.0]
    assert gains["env-0/a:b/gradient.gain"] == 1.0


def test_charts_of_an_env_are_over_its_own_epochs(offline):
    axes = {one.glob_name: one.step_metric for one in of_kind(offline, "metric") if one.glob_name}
    assert axes == {f"env-{env}/*": f"env-{env}/epoch" for env in range(4)}


def test_alerts_are_alerts(offline):
    raised = [one for one in DEMO if isinstance(one.payload, AlertRaised)]
    (alert,) = of_kind(offline, "alert")
    assert len(raised) == 1
    assert (alert.title, alert.level) == ("Sapflow: exploding seed", "ERROR")
    assert "env 3" in alert.text
    assert "slot early" in alert.text
    assert "value 7.31" in alert.text


def test_the_run_has_its_name_its_configuration_and_its_outcome(offline):
    (run, *_) = of_kind(offline, "run")
    assert (run.run_id, run.display_name, run.project) == (TOKEN, RUN_ID, "nursery")
    config = {}
    for one in [run.config, *of_kind(offline, "config")]:
        config |= items(one.update)
    assert (config["task"], config["envs"]) == ("digits-cnn", 4)
    summary = {}
    for one in of_kind(offline, "summary"):
        summary |= items(one.update)
    last = {one.env_id: one.payload for one in DEMO if isinstance(one.payload, EpochCompleted)}
    assert summary["state"] == "completed"
    assert summary["alerts.open"] == 1
    assert summary["seeds.pruned"] == 1  # after the last epoch
    assert summary["accuracy.best"] == max(one.accuracy for one in last.values())


# Kills the process that W&B keeps beside the exporter's, between two batches, until that is noticed.
KILLER = """
import os, signal, sys
from pathlib import Path
from sanctum_events import RUN_ID
from test_wandb import DEMO, TOKEN
from sapflow.errors import BackendAwayError
from sapflow.exporters import registry
from sapflow.exporters.exporter import Setting
from sapflow.exporters.run_identity import RunIdentity

setting = Setting(name="wandb", run_dir=Path(sys.argv[1]), run=RunIdentity(RUN_ID, TOKEN), options={"mode": "offline"})
exporter = registry.open_exporter(setting)
half = len(DEMO) // 2
exporter.export(DEMO[:half])
for children in Path("/proc/self/task").glob("*/children"):
    for child in children.read_text().split():
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
for _ in range(1_000):
    try:
        exporter.export(DEMO[half:])
    except BackendAwayError as error:
        print(error)
        break
exporter.export(DEMO[half:])
exporter.close()
"""


def test_when_its_own_service_is_killed_it_is_started_again_and_nothing_is_dropped(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    (run_dir / "exporters").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, run_dir], env=environment, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "W&B's own service is gone" in done.stdout
    last = max(run_dir.glob("exporters/wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    rows = [items(one.item) for one in of_kind(list(records(last)), "history")]
    half = len(DEMO) // 2
    expected = [one for one in DEMO[half:] if isinstance(one.payload, EpochCompleted)]
    assert [row["key"] for row in rows] == [event_key(one, f"{RUN_ID}-{TOKEN}") for one in expected]


def test_an_end_that_the_service_is_not_told_is_none(tmp_path):
    """All was handed over before but what came of the run."""

    def begin():
        raise BackendAwayError("away")

    run_dir = finished_run(tmp_path / "run", *DEMO)
    away = WeightsAndBiases(begin, Setting(name="wandb", run_dir=run_dir, run=RunIdentity(RUN_ID), cursor=len(DEMO)))
    with pytest.raises(BackendAwayError):
        away.close()


def test_what_the_service_refuses_is_one_line(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    follow = [*SAPFLOW, "follow", str(run_dir), "--export", "wandb", "--patience", "0"]

    def online(url: str, **more: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        environment = {**clean, "WANDB_BASE_URL": url, "HOME": str(tmp_path), **more}
        return subprocess.run(
            follow, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=tmp_path
        )

    with receiver() as server:
        refused(online(server.url), "No API key")
        server.always = 401
        done = online(server.url, WANDB_API_KEY="a" * 40)
        assert (done.returncode, "401" in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    assert read(path_of(run_dir, "wandb")).cursor == 0
    refused(finish((*follow, "--option", "wandb.mode=onlien"), tmp_path), "'onlien'", "offline")


def test_a_missing_package_is_named(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO[:1])
    script = "import sys; sys.modules['wandb'] = None; from sapflow.cli import main; main()"
    refused(
        finish((sys.executable, "-c", script, "follow", str(run_dir), "--export", "wandb"), tmp_path), "sapflow[wandb]"
    )
