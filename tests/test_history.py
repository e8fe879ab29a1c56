"""Runs as data: what was written is what the tables say, whoever asks, and nothing is read that was not asked for."""

import math
import sqlite3
import threading
import tracemalloc
from contextlib import closing
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sapflow
from journals import PATIENCE, add_rows, epoch_completed, event, finished_run, killed_run
from sanctum_events import demo_run
from sapflow.errors import InputError, JournalError
from sapflow.history.rolled import stored_rows
from sapflow.history.rolling import roll
from sapflow.history.run import JournalTables
from sapflow.history.selection import Selection
from sapflow.telemetry.events import (
    Alert,
    AlertCleared,
    AlertRaised,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    RunCompleted,
    RunStarted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import ROLLED_NAME, TrainerLock
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity

TABLES = ("gradients", "epochs", "seeds", "alerts", "events")


def sampled(epoch: int, passes, entering, leaving, env: int = 0, slot: str = "mid", **health) -> TelemetryEvent:
    return event(
        GradientSampled(
            epoch=epoch,
            slot_id=slot,
            seed_id=f"{slot}-1",
            blueprint_id="conv",
            pass_index=tuple(passes),
            entering=tuple(entering),
            leaving=tuple(leaving),
            health=GradientHealth(**{"measurement": Measurement.MEASURED} | health),
        ),
        env,
        sequence=None,
    )


def grown(epoch: int = 1, env: int = 0, slot: str = "mid", number: int = 1, **fields) -> TelemetryEvent:
    fields = {"seed_params": 10, "birth_gain": 1.25} | fields
    return event(
        SeedGerminated(epoch=epoch, slot_id=slot, seed_id=f"{slot}-{number}", blueprint_id="conv", **fields), env
    )


def moved(epoch: int, before: SeedStage, after: SeedStage, env: int = 0, slot: str = "mid", seed: str = "mid-1"):
    return event(
        SeedStageChanged(
            epoch=epoch, slot_id=slot, seed_id=seed, blueprint_id="conv", from_stage=before, to_stage=after
        ),
        env,
    )


def closed(epoch: int, *seeds: SeedTelemetry, env: int = 0, **fields) -> TelemetryEvent:
    return event(EpochCompleted(epoch=epoch, epochs=9, seeds=seeds, **fields), env)


def seed(ratio: float = 0.5, slot: str = "mid", number: int = 1, **fields) -> SeedTelemetry:
    defaults = {"stage": SeedStage.TRAINING, "measurement": Measurement.MEASURED, "blueprint_id": "conv"}
    return SeedTelemetry(slot_id=slot, seed_id=f"{slot}-{number}", grad_ratio=ratio, **(defaults | fields))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Four envs of three slots, over 14 epochs."""
    return finished_run(tmp_path_factory.mktemp("runs") / "demo", *demo_run(completed=True))


def test_every_pass_is_a_row_and_every_float_survives(tmp_path):
    entering = (1.0, 2.0, 0.0, nan, 1.0, inf, 5e-324, 1e308)
    leaving = (0.5, 5.0, 1.0, 1.0, inf, 1.0, 1e308, 0.0)
    run_dir = finished_run(tmp_path / "run", grown(), sampled(2, range(8), entering, leaving, has_vanishing=True))
    with sapflow.open_run(run_dir) as run:
        rows = run.gradients().to_pydict()
    assert list(map(repr, rows["entering"])) == list(map(repr, entering))
    assert list(map(repr, rows["leaving"])) == list(map(repr, leaving))
    assert list(map(repr, rows["ratio"])) == ["0.5", "2.5", *["nan"] * 5, "0.0"]
    assert rows["pass"] == list(range(8))
    for name, value in {
        "env": 0, "slot": "mid", "seed": "mid-1", "blueprint": "conv", "stage": "GERMINATED", "epoch": 2,
        "vanishing": True, "exploding": False, "status": "MEASURED",
    }.items():  # fmt: skip
        assert rows[name] == [value] * 8, name


def test_a_sample_has_the_stage_of_its_own_time(tmp_path):
    def at(epoch):
        return sampled(epoch, [epoch], [1.0], [1.0])

    run_dir = finished_run(
        tmp_path / "run",
        at(0),
        grown(1),
        at(1),
        moved(1, SeedStage.GERMINATED, SeedStage.TRAINING),
        at(2),
        at(3),
        moved(3, SeedStage.TRAINING, SeedStage.BLENDING),
        at(4),
        moved(4, SeedStage.BLENDING, SeedStage.TRAINING, slot="late", seed="late-1"),
        at(5),
    )
    with sapflow.open_run(run_dir) as run:
        expected = [None, "GERMINATED", "TRAINING", "TRAINING", "BLENDING", "BLENDING"]
        assert run.gradients(columns=["stage"]).column("stage").to_pylist() == expected
        assert run.gradients(columns=["stage"], epochs=(3, 4)).column("stage").to_pylist() == ["TRAINING", "BLENDING"]


def test_epochs_say_what_the_event_says(tmp_path):
    whole = seed(
        0.25, alpha=0.5, seed_params=7, min_ratio=0.125, max_ratio=2.0, last_ratio=0.75, entering_norm=2.0,
        leaving_norm=0.5, passes=6, non_finite_passes=2, has_vanishing=True, evidence="seen", accuracy_delta=-1.5,
        masked_values=3, paused=True, ratio_histogram=(1, 2, 3), measurement_reason="",
    )  # fmt: skip
    unmeasured = seed(0.0, "late", measurement=Measurement.PROBE_LOST, measurement_reason="never fired")
    run_dir = finished_run(
        tmp_path / "run", closed(3, whole, unmeasured, env=2, accuracy=90.5, train_loss=nan, validation_loss=None)
    )
    with sapflow.open_run(run_dir) as run:
        first, second = run.epochs().to_pylist()
    assert math.isnan(first.pop("train_loss"))
    assert first == {
        "env": 2, "epoch": 3, "slot": "mid", "seed": "mid-1", "blueprint": "conv", "stage": "TRAINING", "alpha": 0.5,
        "params": 7, "ratio": 0.25, "min_ratio": 0.125, "max_ratio": 2.0, "last_ratio": 0.75, "entering": 2.0,
        "leaving": 0.5, "passes": 6, "non_finite": 2, "vanishing": True, "exploding": False, "status": "MEASURED",
        "reason": "", "fault": None, "evidence": "seen", "accuracy_delta": -1.5, "masked": 3, "paused": True,
        "histogram": [1, 2, 3], "accuracy": 90.5, "validation_loss": None,
        "time": datetime.fromtimestamp(1_700_000_000.5, UTC),
    }  # fmt: skip
    assert (second["status"], second["reason"], second["slot"]) == ("PROBE_LOST", "never fired", "late")
    assert all(math.isnan(second[name]) for name in ("ratio", "min_ratio", "max_ratio", "last_ratio"))


def test_seeds_are_lives(tmp_path):
    run_dir = finished_run(
        tmp_path / "run",
        grown(1, planted=True),
        moved(1, SeedStage.GERMINATED, SeedStage.TRAINING),
        closed(2, seed(0.25, seed_params=10)),
        closed(3, seed(0.0, measurement=Measurement.NO_GRADIENT), seed(1.0, "late", stage=SeedStage.WATCHED)),
        moved(3, SeedStage.TRAINING, SeedStage.PRUNED),
        event(
            SeedPruned(epoch=3, slot_id="mid", seed_id="mid-1", stage=SeedStage.TRAINING, rule="dying", grad_ratio=0)
        ),
        moved(3, SeedStage.PRUNED, SeedStage.EMBARGOED),
        moved(5, SeedStage.EMBARGOED, SeedStage.DORMANT, seed=""),
        grown(6, number=2),
        event(SeedFossilized(epoch=9, slot_id="mid", seed_id="mid-2", seed_params=12, accuracy_delta=1.5)),
    )
    with sapflow.open_run(run_dir) as run:
        dead, watched, fossil = run.seeds().to_pylist()
        living = run.seeds(columns=["seed"], epochs=(4, 6)).column("seed").to_pylist()
    assert (dead["seed"], dead["planted"], dead["born_epoch"], dead["birth_gain"]) == ("mid-1", True, 1, 1.25)
    assert [(entry["stage"], entry["epoch"]) for entry in dead["stages"]] == [
        ("GERMINATED", 1), ("TRAINING", 1), ("PRUNED", 3)
    ]  # fmt: skip
    assert (dead["died_epoch"], dead["died_of"], dead["last_stage"]) == (3, "dying", "PRUNED")
    assert (dead["last_ratio"], dead["params"]) == (0.25, 0)
    assert (watched["seed"], watched["born_epoch"], watched["birth_gain"]) == ("late-1", None, None)
    assert (fossil["seed"], fossil["died_epoch"], fossil["died_of"]) == ("mid-2", None, None)
    assert (fossil["last_stage"], fossil["params"], fossil["accuracy_delta"]) == ("FOSSILIZED", 12, 1.5)
    assert math.isnan(fossil["last_ratio"])
    assert living == ["late-1", "mid-2"]


def test_alerts_are_open_until_they_are_cleared(tmp_path):
    def alert(rule: str, value: float = 0.1) -> Alert:
        return Alert(
            rule=rule, severity=Severity.CRITICAL, slot_id="mid", seed_id="mid-1", blueprint_id="conv", since_epoch=2,
            value=value, evidence="ratio 0.1", actions=("prune", "notify"),
        )  # fmt: skip

    run_dir = finished_run(
        tmp_path / "run",
        event(AlertRaised(epoch=3, alert=alert("dying", nan))),
        event(AlertRaised(epoch=3, alert=alert("runaway"))),
        event(AlertCleared(epoch=5, alert=alert("dying"), reason="back to normal")),
        event(AlertRaised(epoch=7, alert=alert("dying"))),
    )
    with sapflow.open_run(run_dir) as run:
        first, second, third = run.alerts().to_pylist()
        assert run.alerts(epochs=(6, 6)).column("rule").to_pylist() == ["runaway"]
    assert math.isnan(first.pop("value"))
    assert first == {
        "env": 0, "slot": "mid", "seed": "mid-1", "blueprint": "conv", "rule": "dying", "severity": "critical",
        "evidence": "ratio 0.1", "since_epoch": 2, "raised_epoch": 3, "cleared_epoch": 5,
        "cleared_reason": "back to normal", "actions": ["prune", "notify"],
    }  # fmt: skip
    assert (second["rule"], second["cleared_epoch"], second["cleared_reason"]) == ("runaway", None, None)
    assert (third["rule"], third["raised_epoch"], third["cleared_epoch"]) == ("dying", 7, None)


def test_events_are_rows_in_their_order_with_the_words_of_the_log(demo):
    with sapflow.open_run(demo) as run:
        rows = run.events().to_pylist()
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == len(demo_run(completed=True))
    first, last = rows[0], rows[-1]
    assert (first["env"], first["epoch"], first["type"]) == (None, None, "RUN_STARTED")
    assert first["text"] == "run started · digits-cnn · 4 envs · 40 epochs"
    assert (last["type"], last["text"]) == ("RUN_COMPLETED", "run completed · 4 envs")
    assert {row["sequence"] for row in rows if row["type"] == "GRADIENT_SAMPLED"} == {None}


def begun(table: str, row: dict[str, Any]) -> float:
    epoch = row[{"seeds": "born_epoch", "alerts": "raised_epoch"}.get(table, "epoch")]
    return epoch if epoch is not None else -inf if table == "seeds" else nan


def ended(table: str, row: dict[str, Any]) -> float:
    epoch = row[{"seeds": "died_epoch", "alerts": "cleared_epoch"}.get(table, "epoch")]
    return epoch if epoch is not None else inf if table in ("seeds", "alerts") else nan


@pytest.mark.parametrize("table", TABLES)
def test_what_is_pushed_down_is_what_a_filter_of_the_whole_gives(demo, table):
    with sapflow.open_run(demo) as run:
        method = getattr(run, table)
        whole = method().to_pylist()
        for env, slot, epochs in [(1, None, None), (None, "mid", None), (None, None, (3, 5)), (3, "early", (2, 14))]:
            found = method(env=env, slot=slot, epochs=epochs)
            first, last = epochs or (0, 0)
            kept = [row for row in whole if env in (None, row["env"]) and slot in (None, row["slot"])]
            if epochs is not None:
                kept = [row for row in kept if begun(table, row) <= last and ended(table, row) >= first]
            assert repr(found.to_pylist()) == repr(kept)
        for name in method().schema.names:
            assert method(columns=[name], slot="mid").schema.names == [name]
            assert repr(method(columns=[name]).to_pylist()) == repr([{name: row[name]} for row in whole])


@pytest.mark.parametrize("table", TABLES)
def test_types_are_the_same_with_and_without_rows(tmp_path, demo, table):
    with sapflow.open_run(demo) as full, sapflow.open_run(finished_run(tmp_path / "empty")) as empty:
        assert getattr(full, table)().schema == getattr(empty, table)().schema
        assert getattr(empty, table)().num_rows == 0


def test_a_summary_says_who_it_is_and_how_far_it_came(demo):
    with sapflow.open_run(demo) as run:
        summary = run.summary
    assert (summary.task, summary.envs, summary.epochs, summary.rng_seed) == ("digits-cnn", 4, 40, 7)
    assert (summary.state, summary.grown, summary.pruned, summary.alerts) == (RunState.COMPLETED, 4, 1, 1)
    assert summary.started < summary.ended
    assert (summary.dropped_events, summary.dropped_samples, summary.skipped) == (0, 0, {})


def test_what_cannot_be_read_is_counted_and_passed_over(tmp_path):
    uneven = event(
        GradientSampled(
            epoch=1, slot_id="mid", pass_index=(0, 1), entering=(1.0,), leaving=(1.0,), health=GradientHealth()
        ),
        sequence=None,
    )
    run_dir = finished_run(
        tmp_path / "run", sampled(1, [0], [1.0], [0.5]), uneven, closed(2**40, seed()), sampled(1, [2**63], [1], [1])
    )
    with sqlite3.connect(run_dir / "journal.sqlite") as connection:
        connection.execute("INSERT INTO events (env, type, time, body) VALUES ('x', 'FROM_THE_FUTURE', 1e300, 'text')")
        connection.execute("INSERT INTO events (env, type, time, body) VALUES (0, 'ODD', 5, x'c1')")
    connection.close()
    with sapflow.open_run(run_dir) as run:
        assert run.summary.skipped == {"out of range": 3, "malformed": 2}
        assert run.summary.skipped == {"out of range": 3, "malformed": 2}  # asking again counts nothing twice
        assert run.gradients().num_rows == 1
        assert run.epochs().num_rows == 0
        events = run.events().to_pylist()
    assert [row["type"] for row in events][-2:] == ["FROM_THE_FUTURE", "ODD"]
    assert [row["text"] for row in events] == ["", None, None, None, None, None]
    assert events[-2]["time"] is None


def test_a_text_that_is_none_is_the_trouble_of_its_own_row(tmp_path):
    run_dir = finished_run(tmp_path / "run", *(sampled(n, [0], [1.0], [0.5]) for n in (1, 2, 3)))
    with sqlite3.connect(run_dir / "journal.sqlite") as connection:
        connection.execute("UPDATE events SET type = CAST(x'ff' AS TEXT) WHERE id = 2")
        connection.execute("UPDATE events SET env = CAST(x'ff' AS TEXT) WHERE id = 3")
    connection.close()
    with sapflow.open_run(run_dir) as run, Source(run_dir) as source:
        assert run.summary.skipped == {"malformed": 2}
        assert run.gradients(columns=["epoch"]).column("epoch").to_pylist() == [1]
        assert run.events(columns=["env", "type"]).to_pylist() == [
            {"env": 0, "type": "GRADIENT_SAMPLED"},
            {"env": 0, "type": "\\udcff"},
            {"env": None, "type": "GRADIENT_SAMPLED"},
        ]
        assert [each.epoch for each in source.read()] == [1, 2, 3]  # who follows goes by the event, which is whole


def test_drops_are_in_the_summary(tmp_path):
    journal = Journal(tmp_path, queue_size=0)
    journal.emit(event(RunCompleted(completed_envs=0), env=None))
    journal.close()
    journal.emit(sampled(1, [0], [1.0], [1.0]))  # too late, and known to nobody else
    with sapflow.open_run(tmp_path) as run:
        assert (run.summary.dropped_events, run.summary.dropped_samples) == (1, 0)


def test_a_live_run_is_read_as_it_stands(tmp_path):
    with TrainerLock(tmp_path), sapflow.open_run(tmp_path) as early:
        assert early.summary.state is RunState.LIVE
        assert early.gradients().num_rows == 0
        journal = Journal(tmp_path)
        journal.emit(event(RunStarted(task="live", envs=1, epochs=0), env=None))
        journal.emit(sampled(1, [0, 1], [1.0, 1.0], [0.5, 2.0]))
        assert journal.flush(PATIENCE)
        with sapflow.open_run(tmp_path) as run:
            assert run.gradients().num_rows == early.gradients().num_rows == 2
            assert (run.summary.state, run.summary.task, run.summary.ended) == (RunState.LIVE, "live", None)
            journal.emit(sampled(1, [2], [1.0], [1.0]))
            assert journal.flush(PATIENCE)
            assert run.gradients().column("pass").to_pylist() == [0, 1, 2]
        journal.close()


def test_a_killed_run_opens(tmp_path):
    with sapflow.open_run(killed_run(tmp_path / "run", acknowledged=100)) as run:
        epochs = run.epochs(columns=["epoch"]).column("epoch").to_pylist()
        assert run.summary.state is RunState.ENDED
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 100


def test_a_run_of_more_envs_than_sqlite_takes_parameters(tmp_path):
    count = 33_000
    run_dir = finished_run(tmp_path / "run", event(RunStarted(task="gym", envs=0, epochs=0), env=None))
    add_rows(run_dir, *(grown(env=env) for env in range(count)))
    with sapflow.open_run(run_dir) as run:
        assert run.seeds(columns=["env"]).column("env").to_pylist() == list(range(count))
        assert run.summary.envs == count  # which the run itself did not say


def test_a_big_table_is_a_stream_of_small_batches(tmp_path):
    count = 200_000
    events = [sampled(1, range(first, first + 500), [1.0] * 500, [0.5] * 500) for first in range(0, count, 500)]
    with sapflow.open_run(finished_run(tmp_path / "run", *events)) as run:
        sizes = []
        reader = run.batches("gradients", columns=["pass"])
        thread = threading.Thread(target=lambda: sizes.extend(batch.num_rows for batch in reader))
        thread.start()  # whoever takes Arrow's streams may do so in a thread of its own
        thread.join()
    assert sum(sizes) == count
    assert max(sizes) < 70_000


def test_large_events_are_read_and_made_again_without_having_all_of_them_in_memory(tmp_path):
    large, count = 2**20, 100
    run_dir = finished_run(tmp_path / "run", *(epoch_completed(number, text="x" * large) for number in range(count)))
    roll(run_dir)
    tracemalloc.start()
    try:
        with closing(JournalTables(run_dir)) as tables:
            assert sum(batch.num_rows for batch in tables.batches(Selection(table="events", columns=("id",)))) == count
        assert sum(1 for _ in stored_rows(run_dir / ROLLED_NAME)) == count
        assert tracemalloc.get_traced_memory()[1] < count * large / 2
    finally:
        tracemalloc.stop()


def test_the_tables_go_to_pandas_polars_and_duckdb_without_a_copy(tmp_path):
    events = [sampled(1, range(1000), [2.0] * 1000, [1.0] * 1000)]
    with sapflow.open_run(finished_run(tmp_path / "run", *events)) as run:
        table = run.gradients()
    address = table.column("leaving").chunk(0).buffers()[1].address
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    assert frame["leaving"].array.__arrow_array__().chunk(0).buffers()[1].address == address
    assert pl.from_arrow(table).get_column("leaving").to_arrow().buffers()[1].address == address
    gradients = table
    assert gradients is table  # DuckDB takes the Arrow table itself, by the name of this variable
    with duckdb.connect() as connection:
        answer = connection.sql("SELECT count(*), avg(ratio) FROM gradients WHERE slot = 'mid'").fetchall()
    assert answer == [(1000, 0.5)]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda run: run.gradients(columns=["loss"]), "there is no column 'loss' in gradients: it has env, slot"),
        (lambda run: run.batches("passes"), "there is no table 'passes': there are gradients, epochs"),
        (lambda run: run.epochs(epochs=(3, 2)), r"epochs are \(first, last\)"),
        (lambda run: run.epochs(epochs=(3, 2**63)), f"{2**63} is beyond every env and epoch"),
        (lambda run: run.gradients(env=-(2**64)), f"-{2**64} is beyond every env and epoch"),
    ],
)
def test_what_is_not_there_is_said(demo, ask, words):
    with sapflow.open_run(demo) as run, pytest.raises(InputError, match=words):
        ask(run)


def test_no_run_is_said(tmp_path):
    with pytest.raises(JournalError, match="there is no journal at"):
        sapflow.open_run(tmp_path / "missing")


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
PASSES = st.lists(st.tuples(st.integers(0, 2**63 - 1), FLOATS, FLOATS), max_size=4)
SAMPLES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["a", "b"]), st.integers(0, 2**31 - 1), PASSES), max_size=6
)


@given(samples=SAMPLES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_samples_come_back_to_the_bit(samples, tmp_path_factory):
    events = [
        sampled(epoch, *zip(*passes, strict=True), env=env, slot=slot) if passes else sampled(epoch, (), (), ())
        for env, slot, epoch, passes in samples
    ]
    with sapflow.open_run(finished_run(tmp_path_factory.mktemp("any"), *events)) as run:
        found = run.gradients(columns=["env", "slot", "epoch", "pass", "entering", "leaving"]).to_pylist()
    sent = [(env, slot, epoch, *one) for env, slot, epoch, passes in samples for one in passes]
    assert list(map(repr, (tuple(row.values()) for row in found))) == list(map(repr, sent))
