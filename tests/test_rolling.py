"""Rolling a run into Parquet: nothing is lost, to the byte; whatever interrupts it, the run is as it was."""

import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import tempfile
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import sapflow
from commands import finish_forked, iter_events, refused
from journals import PATIENCE, event, finished_run, killed_run, open_folder, plain_user, python, small_files
from sanctum_events import demo_run
from sapflow.cli import run
from sapflow.errors import InputError, JournalError, RunDirectoryError
from sapflow.health.rule_file import dump_rules
from sapflow.health.rules import DEFAULT_RULES
from sapflow.history.manifest import preferred, summary_of
from sapflow.history.query import asked
from sapflow.history.restoring import with_journal
from sapflow.history.rolling import roll
from sapflow.history.summary import summarize
from sapflow.telemetry import codec, run_directory
from sapflow.telemetry.events import GradientHealth, GradientSampled, RunCompleted, RunStarted
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import CHECKPOINTS_NAME, JOURNAL_NAME, MANIFEST_NAME, ROLLED_NAME, TrainerLock
from sapflow.telemetry.source import RunState, Source
from sapflow.training.launcher import start
from sapflow.training.recording import plan_of, record
from sapflow.training.trainer import RunPlan

TABLES = ("gradients", "epochs", "seeds", "alerts", "events")


def rows_of(run_dir: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection:
        return connection.execute("SELECT * FROM events ORDER BY id").fetchall()


def tables_of(run_dir: Path) -> dict[str, str]:
    with sapflow.open_run(run_dir) as run:
        return {name: repr(run.batches(name).read_all().to_pylist()) for name in TABLES}


def raw(run_dir: Path, *rows: tuple[object, ...]) -> None:
    """Rows that no Journal would write: env, sequence, epoch, type, time, body."""
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.executemany(
            "INSERT INTO events (env, sequence, epoch, type, time, body) VALUES (?, ?, ?, ?, ?, ?)", rows
        )


@pytest.fixture
def demo(tmp_path):
    return finished_run(tmp_path / "demo", *demo_run(completed=True))


def test_a_rolled_run_is_the_same_run(demo):
    rows, tables = rows_of(demo), tables_of(demo)
    with sapflow.open_run(demo) as run, Source(demo) as source:
        summary, events = run.summary, list(iter_events(source))
    done = roll(demo, remove_journal=True)
    assert done.removed
    assert not (demo / JOURNAL_NAME).exists()
    assert sorted(path.name for path in (demo / ROLLED_NAME).iterdir()) == sorted(
        [MANIFEST_NAME, *(f"{name}.parquet" for name in TABLES)]
    )
    assert tables_of(demo) == tables
    with sapflow.open_run(demo) as run:
        assert run.summary == summary
        assert run.gradients(columns=["ratio"], env=1, slot="early", epochs=(3, 5)).num_rows == 6
    with with_journal(demo) as restored, Source(restored) as source:
        assert rows_of(restored) == rows
        assert list(iter_events(source)) == events
        assert source.status().state is RunState.COMPLETED
    assert not restored.exists()
    assert list(demo.glob(".rolling-*")) == []


def test_counts_of_drops_are_kept(tmp_path):
    journal = Journal(tmp_path, queue_size=0)
    journal.emit(event(RunCompleted(completed_envs=1), env=None))
    journal.close()
    roll(tmp_path, remove_journal=True)
    with with_journal(tmp_path) as restored, Source(restored) as source:
        assert source.status().dropped_events == 1
    with sapflow.open_run(tmp_path) as run:
        assert run.summary.dropped_events == 1


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
SAMPLED = st.builds(
    lambda slot, passes: codec.encode(
        event(
            GradientSampled(
                epoch=1,
                slot_id=slot,
                pass_index=tuple(index for index, _, _ in passes),
                entering=tuple(entering for _, entering, _ in passes),
                leaving=tuple(leaving for _, _, leaving in passes),
                health=GradientHealth(),
            ),
            sequence=None,
        )
    ),
    st.text(max_size=3),
    st.lists(st.tuples(st.integers(0, 2**64 - 1), FLOATS, FLOATS), max_size=3),
)
# What an older, a newer or another writer may have left: other widths of numbers, more after the end, nonsense.
FOREIGN = SAMPLED.map(lambda body: body.replace(b"\x00", b"\xcc\x00")) | SAMPLED.map(lambda body: body + b"!")
TIMES = st.floats(-1e12, 1e12)
ROWS = st.lists(
    st.tuples(st.just(0), st.none(), st.just(1), st.just("GRADIENT_SAMPLED"), TIMES, SAMPLED | FOREIGN)
    | st.tuples(
        st.none() | st.integers(0, 3),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.integers(0, 2**31 - 1),
        st.sampled_from(["GRADIENT_SAMPLED", "EPOCH_COMPLETED", "UNHEARD_OF"]),
        TIMES,
        SAMPLED | FOREIGN | st.binary(max_size=10),
    ),
    max_size=8,
)


@example(rows=[(2, -(2**63), 64, "UNHEARD_OF", -5e-324, b"")])
@given(rows=ROWS)
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_the_journal_holds_comes_back_to_the_byte_or_is_refused(rows, tmp_path_factory):
    run_dir = finished_run(tmp_path_factory.mktemp("any"))
    raw(run_dir, *rows)
    before, tables = rows_of(run_dir), tables_of(run_dir)
    roll(run_dir, remove_journal=True)
    assert tables_of(run_dir) == tables
    with with_journal(run_dir) as restored:
        assert rows_of(restored) == before


@pytest.mark.parametrize(
    "row",
    [
        ("zero", None, None, "RUN_STARTED", 1.0, b""),
        (0, "one", None, "RUN_STARTED", 1.0, b""),
        (0, None, 2**40, "RUN_STARTED", 1.0, b""),
        (0, None, None, "RUN_STARTED", "now", b""),
        (0, None, None, b"RUN_STARTED", 1.0, b""),
        (0, None, None, "RUN_STARTED", 1.0, "text"),
        (0, None, None, "RUN_STARTED", 1.0, bytes(16 * 2**20 + 1)),
    ],
    ids=["env", "sequence", "epoch", "time", "type", "body", "size"],
)
def test_what_would_not_come_back_keeps_the_journal(tmp_path, row):
    run_dir = finished_run(tmp_path / "run", *demo_run(1, completed=True))
    raw(run_dir, row)
    before = (run_dir / JOURNAL_NAME).read_bytes()
    with pytest.raises(JournalError, match=r"journal stays|cannot be rolled"):
        roll(run_dir, remove_journal=True)
    assert (run_dir / JOURNAL_NAME).read_bytes() == before
    assert not (run_dir / ROLLED_NAME).exists()
    assert list(run_dir.glob(".rolling-*")) == []


@pytest.mark.parametrize("change", ["UPDATE events SET type = {} WHERE id = 5", "INSERT INTO meta VALUES ({}, 1)"])
def test_a_text_that_is_none_keeps_the_journal(demo, change):
    with closing(sqlite3.connect(demo / JOURNAL_NAME)) as connection, connection:
        connection.execute(change.format("CAST(x'ff' AS TEXT)"))
    with pytest.raises(JournalError, match=r"journal stays|cannot be rolled"):
        roll(demo, remove_journal=True)
    assert (demo / JOURNAL_NAME).exists()
    assert not (demo / ROLLED_NAME).exists()


def test_a_run_that_could_not_be_opened_without_its_journal_keeps_it(demo):
    with closing(sqlite3.connect(demo / JOURNAL_NAME)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES ('more', NULL)")
    with pytest.raises(JournalError, match="says of its run does not come back"):
        roll(demo, remove_journal=True)
    assert (demo / JOURNAL_NAME).exists()
    assert not (demo / ROLLED_NAME).exists()


def test_a_run_that_says_more_of_itself_than_can_be_read_back_keeps_its_journal(tmp_path):
    start = RunStarted(task="digits", envs=1, epochs=1, versions={"sapflow": "1" * 2**20})
    run_dir = finished_run(tmp_path / "run", event(start, None))
    with pytest.raises(JournalError, match="says of its run does not come back"):
        roll(run_dir, remove_journal=True)
    assert (run_dir / JOURNAL_NAME).exists()


def test_a_directory_whose_name_no_parquet_can_have_is_said(tmp_path):
    run_dir = finished_run(tmp_path / os.fsdecode(b"odd\xff"), *demo_run(1, completed=True))
    with pytest.raises(InputError, match="rename it first"):
        roll(run_dir, remove_journal=True)


def test_a_live_run_is_refused(demo):
    (demo / JOURNAL_NAME).unlink()
    journal = Journal(demo)
    with TrainerLock(demo), pytest.raises(InputError, match="demo is live: roll it when its training is over"):
        roll(demo)
    journal.close()


def test_a_complete_run_whose_directory_is_held_is_refused(demo):
    with TrainerLock(demo), pytest.raises(RunDirectoryError, match="another trainer"):
        roll(demo)


def test_a_run_that_is_rolled_twice_at_once_is_rolled(demo, monkeypatch):
    before = tables_of(demo)

    def meanwhile(*arguments):
        monkeypatch.undo()
        found = summarize(*arguments)
        roll(demo, remove_journal=True)
        return found

    monkeypatch.setattr("sapflow.history.rolling.summarize", meanwhile)
    assert roll(demo, remove_journal=True).removed
    assert tables_of(demo) == before


def test_a_run_that_is_rolled_while_it_is_opened_opens(demo, monkeypatch):
    before = tables_of(demo)

    def meanwhile(run_dir):
        monkeypatch.undo()
        found = preferred(run_dir)
        roll(run_dir, remove_journal=True)
        return found

    monkeypatch.setattr("sapflow.history.run.preferred", meanwhile)
    assert tables_of(demo) == before
    assert not (demo / JOURNAL_NAME).exists()


def test_a_run_that_is_rolled_while_it_is_open_goes_on_being_told_of(demo):
    with sapflow.open_run(demo) as run:
        before = run.summary, repr(run.epochs().to_pylist())
        roll(demo, remove_journal=True)
        assert (run.summary, repr(run.epochs().to_pylist())) == before


def test_a_killed_run_is_rolled_with_what_its_wal_holds(tmp_path):
    run_dir = killed_run(tmp_path / "run", acknowledged=200)
    before = tables_of(run_dir)
    assert (run_dir / f"{JOURNAL_NAME}-wal").stat().st_size > 0
    roll(run_dir, remove_journal=True)
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(JOURNAL_NAME)] == []
    assert tables_of(run_dir) == before
    with sapflow.open_run(run_dir) as run:
        assert run.summary.state is RunState.ENDED


def test_the_journal_of_a_run_that_can_be_resumed_stays(tmp_path):
    run_dir = killed_run(tmp_path / "run")
    (run_dir / CHECKPOINTS_NAME).mkdir()
    with pytest.raises(InputError, match="its journal is needed to resume it"):
        roll(run_dir, remove_journal=True)
    roll(run_dir)
    assert (run_dir / JOURNAL_NAME).exists()


def test_a_run_that_went_on_is_read_from_its_journal_and_rolled_again(demo):
    roll(demo)
    journal = Journal(demo, resume=True)
    journal.emit(event(GradientSampled(
        epoch=15, slot_id="mid", pass_index=(0,), entering=(1.0,), leaving=(2.0,), health=GradientHealth()
    ), sequence=None))  # fmt: skip
    assert journal.close(PATIENCE).acknowledged == 1
    after = tables_of(demo)
    with sapflow.open_run(demo) as run:
        assert run.gradients(epochs=(15, 15)).column("ratio").to_pylist() == [2.0]
    roll(demo, remove_journal=True)
    assert tables_of(demo) == after


def test_a_rolled_run_without_its_journal_takes_no_other(demo):
    roll(demo, remove_journal=True)
    plan = RunPlan(task="digits-mlp", envs=1, epochs=1)
    (demo / run_directory.PLAN_NAME).write_bytes(msgspec.json.encode(plan))
    before, tables = sorted(demo.rglob("*")), tables_of(demo)
    for attempt in (
        lambda: plan_of(demo),
        lambda: record(plan, demo, resume=True),
        lambda: record(plan, demo),
        lambda: start(demo, resume=True),
        lambda: Journal(demo),
    ):
        with pytest.raises(RunDirectoryError, match="is rolled and its journal removed"):
            attempt()
    refused(finish_forked(["train", "--resume", str(demo)], demo.parent), "is rolled and its journal removed")
    (demo / JOURNAL_NAME).touch()  # what a trainer leaves that is killed at once
    with pytest.raises(RunDirectoryError, match="is rolled and its journal removed"):
        plan_of(demo)
    assert tables_of(demo) == tables
    assert summary_of(demo).run_id
    roll(demo)
    (demo / JOURNAL_NAME).unlink()
    assert sorted(demo.rglob("*")) == before
    assert tables_of(demo) == tables


@pytest.mark.parametrize("other", ["nothing", "fewer events", "another run", "a run of the same name"])
def test_what_was_rolled_gives_way_to_no_journal_that_lacks_it(demo, tmp_path, other):
    tables, rows = tables_of(demo), rows_of(demo)
    roll(demo, remove_journal=True)
    started, *events = demo_run(completed=True)
    said = {
        "nothing": [],
        "fewer events": [started, *events[:-1]],
        "another run": [replace(each, run_id="other") for each in demo_run(8, completed=True)],
        "a run of the same name": [replace(started, time=started.time + 1), *events, *events],
    }[other]
    strange = finished_run(tmp_path / "strange", *said) / JOURNAL_NAME
    shutil.move(strange, demo / JOURNAL_NAME)
    assert tables_of(demo) == tables
    assert summary_of(demo).state is RunState.COMPLETED
    with with_journal(demo) as restored:
        assert rows_of(restored) == rows
    parquet = {path: path.read_bytes() for path in (demo / ROLLED_NAME).iterdir()}
    for remove in (False, True):
        with pytest.raises(InputError, match=r"holds events that .* does not"):
            roll(demo, remove_journal=remove)
    assert {path: path.read_bytes() for path in (demo / ROLLED_NAME).iterdir()} == parquet
    assert (demo / JOURNAL_NAME).exists()


def test_rolling_again_changes_nothing_and_repairs_what_was_damaged(demo):
    tables = tables_of(demo)
    roll(demo)
    parquet = demo / ROLLED_NAME / "events.parquet"
    before = parquet.stat().st_ino
    roll(demo)
    assert parquet.stat().st_ino == before
    damaged = bytearray(parquet.read_bytes())
    damaged[100:200] = bytes(100)
    parquet.write_bytes(damaged)
    roll(demo, remove_journal=True)
    assert tables_of(demo) == tables
    assert roll(demo, remove_journal=True).removed  # again, without a journal


def test_damage_is_said_in_one_line(demo):
    roll(demo, remove_journal=True)
    parquet = demo / ROLLED_NAME / "gradients.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-100])
    with (
        sapflow.open_run(demo) as run,
        pytest.raises(JournalError, match=r"gradients.parquet cannot") as caught,
    ):
        run.gradients()
    assert "\n" not in str(caught.value)
    whole = (demo / ROLLED_NAME / MANIFEST_NAME).read_text()
    for text, words in [
        ('{"format": 99}', "newer Sapflow"),
        ('{"format": 1}', "is damaged"),
        ("nonsense", "is damaged"),
        (re.sub(r'("started": ".*)Z"', r'\1"', whole), "is damaged"),  # a time in no time zone
        ("x" * (2**20 + 1), "too large"),
    ]:
        (demo / ROLLED_NAME / MANIFEST_NAME).write_text(text)
        with pytest.raises(JournalError, match=words):
            sapflow.open_run(demo)


@pytest.mark.parametrize("table", TABLES)
def test_other_columns_than_ours_are_said_in_one_line(demo, table):
    roll(demo, remove_journal=True)
    pq.write_table(pa.table({"env": ["zero"], "id": ["one"]}), demo / ROLLED_NAME / f"{table}.parquet")
    with sapflow.open_run(demo) as run, pytest.raises(JournalError, match=rf"{table}.parquet cannot be read"):
        run.batches(table).read_all()
    if table in ("events", "gradients"):  # which a journal is made of
        with pytest.raises(JournalError, match=rf"{table}.parquet cannot be read"), with_journal(demo):
            pass
    with (
        sapflow.open_run(demo) as run,
        pytest.raises(InputError) as caught,
        asked({"demo": run}, f"SELECT * FROM {table}") as reader,
    ):
        reader.read_all()
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_no_harm_beside_a_journal(demo):
    tables = tables_of(demo)
    roll(demo)
    (demo / ROLLED_NAME / MANIFEST_NAME).write_text("nonsense")
    assert tables_of(demo) == tables


def test_an_old_run_is_no_newer_for_being_rolled(tmp_path):
    old, new = (finished_run(tmp_path / name, *demo_run(1, completed=True)) for name in ("old", "new"))
    os.utime(old / JOURNAL_NAME, (100, 100))
    os.utime(new / JOURNAL_NAME, (200, 200))
    roll(old, remove_journal=True)
    roll(new, remove_journal=True)
    assert run_directory.newest(tmp_path) == new
    assert run_directory.all_under(tmp_path) == [new, old]


ROLLER = """
import shutil, sys
from pathlib import Path
from sapflow.history.rolling import roll

run_dir = Path(sys.argv[1])
roll(run_dir)
print("warm", flush=True)
while True:
    shutil.rmtree(run_dir / "parquet")
    sys.stdout.write("go\\n")
    sys.stdout.flush()
    roll(run_dir)
    sys.stdin.readline()
"""


def test_sigkill_at_any_moment_leaves_the_run_as_it_was(tmp_path):
    pristine = finished_run(tmp_path / "pristine", *demo_run(completed=True))
    journal, tables = (pristine / JOURNAL_NAME).read_bytes(), tables_of(pristine)
    moments = random.Random(0)
    interrupted = 0
    for trial in range(6):
        run_dir = shutil.copytree(pristine, tmp_path / f"trial-{trial}")
        with python(ROLLER, run_dir) as roller:
            assert roller.stdout.readline() == "warm\n"
            assert roller.stdout.readline() == "go\n"
            time.sleep(trial * moments.uniform(0.0, 0.03))  # the moment is meant to be any
            roller.send_signal(signal.SIGKILL)
            roller.wait(PATIENCE)
        interrupted += not (run_dir / ROLLED_NAME).exists()
        assert (run_dir / JOURNAL_NAME).read_bytes() == journal
        assert tables_of(run_dir) == tables
        roll(run_dir, remove_journal=True)
        assert tables_of(run_dir) == tables
        assert list(run_dir.glob(".rolling-*")) == []
    assert interrupted


FULL_DISK = """
import resource, signal, sys
from sapflow.cli import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # half of it would be written, and found by all who import it after
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
sys.exit(run(["roll", sys.argv[1]]))
"""


def test_a_full_disk_is_one_line_and_leaves_the_run_as_it_was(demo, capfd):
    journal = (demo / JOURNAL_NAME).read_bytes()
    with python(FULL_DISK, demo) as roller:
        assert roller.wait(PATIENCE) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "File too large" in line
    assert (demo / JOURNAL_NAME).read_bytes() == journal
    assert not (demo / ROLLED_NAME).exists()
    assert list(demo.glob(".rolling-*")) == []


def test_no_room_to_make_a_journal_again_is_one_line_that_says_where_to_make_some(demo, capsys, monkeypatch, tmp_path):
    roll(demo, remove_journal=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "rules.toml").write_text(dump_rules(DEFAULT_RULES))
    with small_files(20_000):
        assert run(["rules", "check", str(tmp_path / "rules.toml"), "--run", str(demo)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "TMPDIR" in line
    assert list(tmp_path.glob("sapflow-*")) == []


@pytest.mark.parametrize("column", ["id", "type"])
def test_rows_that_no_journal_has_are_said_in_one_line(demo, column):
    roll(demo, remove_journal=True)
    path = demo / ROLLED_NAME / "events.parquet"
    table = pq.read_table(path)
    values = {"id": [1] * len(table), "type": [None] * len(table)}[column]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), path)
    with pytest.raises(JournalError, match="holds what no journal has"), with_journal(demo):
        pass


def test_a_directory_that_cannot_be_written_is_said():
    with open_folder() as folder:
        run_dir = finished_run(folder / "run", *demo_run(1, completed=True))
        run_dir.chmod(0o555)
        (run_dir / JOURNAL_NAME).chmod(0o444)
        with plain_user(), pytest.raises(RunDirectoryError, match="cannot write to the run directory"):
            roll(run_dir)


def test_the_folder_has_the_permissions_of_its_run(demo):
    demo.chmod(0o750)
    roll(demo)
    assert stat.S_IMODE((demo / ROLLED_NAME).stat().st_mode) == 0o750


def test_the_command(demo, tmp_path):
    done = finish_forked(("roll", "demo", "--remove-journal"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("demo: 128 events and 112 rows of gradients in ")
    assert done.stdout.endswith("of Parquet, read back and the same; the journal is gone\n")
    refused(finish_forked(("roll", "missing"), tmp_path), "there is no journal at")
    refused(finish_forked(("sanctum", "demo"), tmp_path), "Sanctum needs a terminal")  # so the run was found
    (tmp_path / "rules.toml").write_text(finish_forked(("rules", "default"), tmp_path).stdout)
    checked = finish_forked(("rules", "check", "rules.toml", "--run", "demo"), tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "in 56 epochs of all envs" in checked.stdout
