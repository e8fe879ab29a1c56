"""TensorBoard, from outside: what its own reader finds in the files, also after a kill and on a full disk."""

import errno
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from journals import finished_run
from sanctum_events import RUN_ID, demo_run, epoch, explosion, seed
from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters import registry
from sapflow.exporters.exporter import Setting
from sapflow.exporters.run_identity import RunIdentity
from sapflow.exporters.series import GAIN
from sapflow.telemetry.events import (
    ActionTaken,
    AlertRaised,
    EnvCompleted,
    EnvStarted,
    EpochCompleted,
    RequestAnswered,
    TelemetryEvent,
)
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.vocabulary import Measurement

pytest.importorskip("tensorboard")

DEMO = demo_run(epochs=6, completed=True)
COUNTS = tuple(range(34))


def open_it(run_dir: Path, resumed: bool = False, cursor: int = 0, **options):
    setting = Setting(
        name="tensorboard", run_dir=run_dir, run=RunIdentity(RUN_ID), resumed=resumed, cursor=cursor, options=options
    )
    return registry.open_exporter(setting)


def write(run_dir: Path, events=DEMO, **more) -> Path:
    exporter = open_it(run_dir, **more)
    exporter.export(events)
    exporter.close()
    return run_dir / "exporters" / "tensorboard"


def reader(folder: Path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0}, tensor_size_guidance={
        "scalars": 0, "histograms": 0, "text": 0})  # fmt: skip
    return found.Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    return [(e.step, e.wall_time, float(make_ndarray(e.tensor_proto))) for e in reader(folder).Tensors(tag)]


def event(payload, env_id: int = 0) -> TelemetryEvent:
    return TelemetryEvent(run_id=RUN_ID, env_id=env_id, sequence=0, time=1_700_000_000.25, payload=payload)


def test_every_epoch_is_a_step_with_the_numbers_and_the_time_of_its_event(tmp_path):
    logdir = write(tmp_path)
    assert sorted(path.name for path in logdir.iterdir()) == [f"env-{env}" for env in range(4)]
    for env in range(4):
        done = [one for one in DEMO if isinstance(one.payload, EpochCompleted) and one.env_id == env]
        for slot in ("early", "mid", "late"):
            expected = [
                (one.payload.epoch, one.time, pytest.approx(found.grad_ratio, rel=1e-6))
                for one in done
                for found in one.payload.seeds
                if found.slot_id == slot and found.stage.alive and found.measurement is Measurement.MEASURED
            ]
            if expected:
                assert scalars(logdir / f"env-{env}", f"gradient.gain/{slot}") == expected
        assert [value for _, _, value in scalars(logdir / f"env-{env}", "env/accuracy")] == [
            pytest.approx(one.payload.accuracy, rel=1e-6) for one in done
        ]


def test_what_a_tag_is_is_said_with_it(tmp_path):
    found = reader(write(tmp_path, [event(epoch(1, seed("stem", 0.9))), event(epoch(2, seed("stem", 0.9)))]) / "env-0")
    said = found.SummaryMetadata("gradient.gain/stem")
    assert (said.plugin_data.plugin_name, said.summary_description) == ("scalars", GAIN.help)


def test_histograms_are_the_octaves_of_the_passes(tmp_path):
    from tensorboard.util.tensor_util import make_ndarray

    logdir = write(tmp_path, [event(epoch(1, seed("stem", 0.9, ratio_histogram=COUNTS)))])
    found = reader(logdir / "env-0")
    tag = "gradient.gain of passes/stem"
    assert found.SummaryMetadata(tag).plugin_data.plugin_name == "histograms"
    (only,) = found.Tensors(tag)
    buckets = make_ndarray(only.tensor_proto)
    # The bin of a gain of 1 is the octave from 2**0: the second half of the 34 begins with it.
    octaves = {place - 17: count for place, count in enumerate(COUNTS) if count}
    assert {left: count for left, right, count in buckets if count and right == left + 1} == octaves
    assert list(buckets[:, 0]) == list(range(min(octaves), max(octaves) + 1))


def test_alerts_are_text_that_no_name_can_turn_into_markup(tmp_path):
    from tensorboard.util.tensor_util import make_ndarray

    alert = explosion(since=2)
    logdir = write(tmp_path, [event(AlertRaised(epoch=3, alert=alert))])
    found = reader(logdir / "env-0")
    assert found.SummaryMetadata("events/early").plugin_data.plugin_name == "text"
    (only,) = found.Tensors("events/early")
    text = make_ndarray(only.tensor_proto).item().decode()
    assert (only.step, "exploding seed" in text, "ALERT\\_RAISED" in text or "ALERT_RAISED" in text) == (3, True, True)
    assert "7\\.31" in text


def test_what_is_not_measured_is_absent_and_what_is_not_finite_is_there(tmp_path):
    lost = seed("lost", 0.0, measurement=Measurement.PROBE_LOST)
    wild = seed("wild", math.inf, max_ratio=math.nan, entering_norm=1e300)
    logdir = write(tmp_path, [event(epoch(1, lost, wild))])
    tags = reader(logdir / "env-0").Tags()["tensors"]
    assert "gradient.gain/lost" not in tags
    assert scalars(logdir / "env-0", "gradient.measured/lost")[0][2] == 0.0
    assert scalars(logdir / "env-0", "gradient.gain/wild")[0][2] == math.inf
    assert math.isnan(scalars(logdir / "env-0", "gradient.gain_max/wild")[0][2])
    assert scalars(logdir / "env-0", "gradient.entering_norm/wild")[0][2] == math.inf  # a number there has 32 bits


@pytest.mark.parametrize(("acknowledged", "written"), [(50, 70), (70, 70), (1, 90), (len(DEMO) - 3, len(DEMO))])
def test_what_comes_again_after_a_kill_is_there_once(tmp_path, acknowledged, written):
    """Alerts come before and behind their epoch, and the place where it breaks off may be between any two of them."""
    expected = write(tmp_path / "once")
    run_dir = finished_run(tmp_path / "twice", *DEMO)
    killed = open_it(run_dir)
    killed.export(DEMO[:acknowledged])
    killed.export(DEMO[acknowledged:written])
    again = open_it(run_dir, resumed=True, cursor=acknowledged)
    again.export(DEMO[acknowledged:])
    again.close()
    killed.close()  # only so that no file stays open here: it writes nothing more
    for env in range(4):
        one, other = reader(expected / f"env-{env}"), reader(run_dir / "exporters" / "tensorboard" / f"env-{env}")
        assert one.Tags()["tensors"] == other.Tags()["tensors"]
        for tag in one.Tags()["tensors"]:
            assert one.Tensors(tag) == other.Tensors(tag), (env, tag)


def test_a_full_disk_is_waited_for_and_nothing_is_there_twice(tmp_path, monkeypatch):
    exporter = open_it(tmp_path)
    exporter.export(DEMO[:40])
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        from sapflow.exporters.tensorboard import _EventFile

        def flush(self):
            raise full

        patched.setattr(_EventFile, "flush", flush)
        with pytest.raises(BackendAwayError, match="No space"):
            exporter.export(DEMO[40:])
    exporter.export(DEMO[40:])
    exporter.close()
    logdir = tmp_path / "exporters" / "tensorboard"
    for env in range(4):
        steps = [step for step, _, _ in scalars(logdir / f"env-{env}", "env/accuracy")]
        assert steps == [1, 2, 3, 4, 5, 6]


def test_an_env_that_has_ended_holds_no_file_open_and_what_is_said_of_it_later_is_there(tmp_path):
    exporter = open_it(tmp_path)
    answered = RequestAnswered(epoch=1, slot_id="", request_id="7", action="stop", done=False, outcome="it has ended")
    files_open = len(list(Path("/proc/self/fd").iterdir()))
    for env in range(9):
        exporter.export([event(epoch(1, seed("stem", 0.9)), env), event(EnvCompleted(epoch=1), env)])
    assert len(list(Path("/proc/self/fd").iterdir())) == files_open
    exporter.export([event(answered, 8)])
    exporter.close()
    assert [step for step, _, _ in scalars(tmp_path / "exporters" / "tensorboard" / "env-8", "env/accuracy")] == [1]


def accuracies(run_dir: Path, env: int = 0) -> list[int]:
    return [step for step, _, _ in scalars(run_dir / "exporters" / "tensorboard" / f"env-{env}", "env/accuracy")]


def told(at: int) -> TelemetryEvent:
    """People were told of an alert long after its epoch: that is said aside, whenever it is done."""
    return event(ActionTaken(epoch=at, alert=explosion(since=1), action="notify", done=True, outcome="by mail"))


EPOCHS = [event(epoch(number, seed("stem", 0.9))) for number in range(1, 7)]
ENDED = event(EnvCompleted(epoch=6))
ANOTHER = event(EnvStarted(host="cnn", host_params=1, slot_ids=("stem",), epochs=6), 1)


@pytest.mark.parametrize("at", [2, 6])
@pytest.mark.parametrize("before", [[*EPOCHS, ENDED], [*EPOCHS, ENDED, ANOTHER]], ids=["ended", "long ended"])
def test_what_is_said_of_an_earlier_epoch_of_an_env_that_has_ended_takes_no_epoch_s_place(tmp_path, before, at):
    exporter = open_it(tmp_path)
    files_open = len(list(Path("/proc/self/fd").iterdir()))
    exporter.export(before)
    exporter.export([told(at)])
    assert len(list(Path("/proc/self/fd").iterdir())) == files_open
    exporter.close()
    assert accuracies(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_restart_that_begins_with_something_old_or_with_another_env_takes_no_epoch_s_place(tmp_path):
    rest = [ANOTHER, told(2), event(epoch(7, seed("stem", 0.9)))]
    run_dir = finished_run(tmp_path / "run", *EPOCHS, *rest)
    for resumed, part in enumerate((EPOCHS, rest)):
        exporter = open_it(run_dir, resumed=bool(resumed), cursor=resumed * len(EPOCHS))
        exporter.export(part)
        exporter.close()
    assert accuracies(run_dir) == [1, 2, 3, 4, 5, 6, 7]


def test_a_restart_is_read_last_even_if_the_clock_was_set_back(tmp_path, monkeypatch):
    run_dir = finished_run(tmp_path / "run", *EPOCHS)
    for resumed, nanoseconds in enumerate((1_700_000_000 * 10**9, 1_600_000_000 * 10**9)):
        monkeypatch.setattr("time.time_ns", lambda now=nanoseconds: now)
        exporter = open_it(run_dir, resumed=bool(resumed), cursor=3 * resumed)
        exporter.export(EPOCHS[3 * resumed :][:3])
        exporter.close()
    assert accuracies(run_dir) == [1, 2, 3, 4, 5, 6]


def test_what_comes_after_the_place_of_a_restart_is_there_once_where_something_before_it_is_unreadable(tmp_path):
    run_dir = finished_run(tmp_path / "run", *EPOCHS)
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.execute("UPDATE events SET type = 'OF_TOMORROW', body = x'00' WHERE id = 1")
    for resumed, part in enumerate((EPOCHS[1:3], EPOCHS[3:])):
        exporter = open_it(run_dir, resumed=bool(resumed), cursor=3 * resumed)
        exporter.export(part)
        exporter.close()
    assert accuracies(run_dir) == [2, 3, 4, 5, 6]


def test_an_event_at_fault_has_the_others_of_its_batch_there_once(tmp_path):
    exporter = open_it(tmp_path)
    exporter.export(EPOCHS[:2])
    with pytest.raises(ValueError, match="range"):
        exporter.export([*EPOCHS[2:], event(epoch(2**63, seed("stem", 0.9)))])
    exporter.export(EPOCHS[2:])
    exporter.close()
    assert accuracies(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_run_s_name_that_no_folder_can_have_is_made_one(tmp_path):
    setting = Setting(
        name="tensorboard", run_dir=tmp_path, run=RunIdentity("a/b\0c"), options={"logdir": str(tmp_path / "logs")}
    )
    registry.open_exporter(setting).close()
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["a_b_c"]


def test_nobody_s_folder_is_written_into(tmp_path):
    (tmp_path / "logs" / RUN_ID).mkdir(parents=True)
    (tmp_path / "logs" / RUN_ID / "theirs").write_text("precious")
    for resumed in (False, True):
        with pytest.raises(ExporterRefusedError, match="is not empty"):
            open_it(tmp_path, resumed, logdir=str(tmp_path / "logs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ExporterRefusedError, match="cannot be written"):
        open_it(tmp_path, logdir=str(tmp_path / "file"))
    exporter = open_it(tmp_path, logdir=str(tmp_path / "other"))
    exporter.export(DEMO)
    exporter.close()
    assert (tmp_path / "other" / RUN_ID / "env-3").is_dir()
