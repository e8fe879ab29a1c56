"""`sapflow runs`, `show`, `query` and `export` as processes: what they print, what they refuse, and how they end."""

import contextlib
import csv
import fcntl
import io
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

import sapflow
from commands import SAPFLOW, Terminal, finish, refused, started, wait_until, without
from journals import PATIENCE, event, finished_run, killed_run, small_files
from sanctum_events import demo_run
from sapflow.cli import run
from sapflow.errors import InputError
from sapflow.history.journal_rows import JournalRows
from sapflow.history.output import write
from sapflow.history.query import asked
from sapflow.history.rolling import roll
from sapflow.telemetry.events import RunStarted, SeedGerminated
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock

COUNT = "SELECT count(*) AS n FROM gradients"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """A directory with runs/ in it: a demo, the same rolled and without its journal, and one that was cut off."""
    home = tmp_path_factory.mktemp("home")
    (home / "runs").mkdir()
    finished_run(home / "runs" / "demo", *demo_run(completed=True))
    roll(finished_run(home / "runs" / "rolled", *demo_run(completed=True)), remove_journal=True)
    killed_run(home / "runs" / "killed", acknowledged=1)
    return home


class Home:
    """`sapflow` called where the runs are: within this process, whose streams are caught as a shell would see them."""

    def __init__(self, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capfd = capfd

    def sap(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self._capfd.readouterr()
        with contextlib.chdir(self.path):
            code = run(list(arguments))
        sys.stdout.flush()
        seen = self._capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, seen.out, seen.err)

    def answer(self, *arguments: str) -> str:
        done = self.sap(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def rows(self, sql: str, *runs: str) -> list[dict[str, object]]:
        return json.loads(self.answer("query", *(runs or ("runs/demo",)), sql, "--format", "json"))


@pytest.fixture
def home(homes, capfd):
    return Home(homes, capfd)


@pytest.fixture
def elsewhere(tmp_path, capfd):
    return Home(tmp_path, capfd)


def test_runs_are_listed_with_what_became_of_their_seeds(home):
    head, line, *lines = home.answer("runs").splitlines()
    assert head.split() == ["when", "run", "task", "envs", "state", "grown", "pruned", "fossilised", "alerts"]
    assert set(line) == {"─"}
    assert len(lines) == 3
    text = home.answer("runs", "runs")
    for name in ("demo", "rolled"):
        (row,) = [each for each in text.splitlines() if f" {name} " in each]
        assert row.split()[2:] == [name, "digits-cnn", "4", "completed", "4", "1", "0", "1"]
    (row,) = [each for each in text.splitlines() if "killed" in each]
    assert "cut off" in row


def test_live_and_unreadable_runs_are_listed_too(elsewhere, tmp_path):
    live = finished_run(tmp_path / "live", event(RunStarted(task="now", envs=1, epochs=0), env=None))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / JOURNAL_NAME).write_text("no journal at all, but some text")
    with TrainerLock(live):
        text = elsewhere.answer("runs", ".")
    assert "  now      1  live" in text
    (row,) = [each for each in text.splitlines() if "strange" in each]
    assert "unreadable" in row
    assert "is no journal" in row
    refused(elsewhere.sap("runs", "missing"), "there is no run under missing")


@pytest.mark.parametrize(
    ("zone", "seconds", "shown"),
    [("UTC+12", -62_135_590_000.0, "1-01-01 01:53"), ("UTC-12", 253_402_300_000.0, "9999-12-31 23:46")],
)
def test_a_time_at_an_end_of_the_calendar_is_shown_in_utc(elsewhere, tmp_path, monkeypatch, zone, seconds, shown):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    finished_run(tmp_path / "odd", replace(event(RunStarted(task="now", envs=1, epochs=0), env=None), time=seconds))
    text = elsewhere.answer("runs", ".") + elsewhere.answer("show", "odd")
    monkeypatch.undo()
    time.tzset()
    assert text.count(shown) == 3


def test_runs_are_listed_without_pyarrow(home):
    done = finish(without("pyarrow", "runs"), home.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits-cnn" in done.stdout
    refused(finish(without("pyarrow", "query", "runs/demo", COUNT), home.path), "pip install 'sapflow[history]'")
    refused(finish(without("duckdb", "query", "runs/demo", COUNT), home.path), "pip install 'sapflow[history]'")


@pytest.mark.parametrize("name", ["demo", "rolled"])
def test_show_tells_of_every_seed_and_alert(home, name):
    text = home.answer("show", f"runs/{name}")
    assert "task        digits-cnn, 4 envs, 40 epochs, rng seed 7" in text
    assert "seeds       4 grown, 1 pruned, 0 fossilised" in text
    assert "lost        0 events and 0 samples were never written" in text
    assert "pruned 14, vanishing seed" in text
    assert "germinated 1 → training 1 → blending 1" in text
    assert "exploding seed  critical    3  early  early-1  14 to open   7.31  ratio 7.31 for 3 epochs" in text


@pytest.mark.parametrize("name", ["demo", "rolled"])
def test_sql_is_answered_from_a_journal_and_from_parquet_alike(home, name):
    sql = """
        SELECT g.env, g.slot, count(*) AS n, quantile_cont(g.ratio, 0.5) AS middle, any_value(e.stage) AS stage
        FROM gradients g JOIN epochs e USING (env, slot, epoch)
        WHERE g.epoch BETWEEN 3 AND 5 GROUP BY ALL ORDER BY ALL
    """
    found = home.rows(sql, f"runs/{name}")
    assert [(row["env"], row["slot"], row["n"], row["middle"]) for row in found] == [
        (env, "early", 6, 1.0) for env in range(4)
    ]
    assert found[0]["stage"] == "FOSSILIZED"
    assert home.rows("FROM runs", f"runs/{name}")[0]["state"] == "COMPLETED"


def test_many_runs_are_one_set_of_tables(home):
    sql = "SELECT run, count(*) AS n FROM gradients GROUP BY run ORDER BY run"
    assert home.rows(sql, "runs/demo", "runs/rolled") == [{"run": "demo", "n": 112}, {"run": "rolled", "n": 112}]
    assert home.rows(sql, f"runs/demo/{JOURNAL_NAME}", "runs/rolled")[0] == {"run": "demo", "n": 112}


def test_many_runs_are_joined_at_once_however_many(home):
    runs = ("runs/demo", "runs/rolled", "runs/killed")
    plan = home.answer("query", *runs, "EXPLAIN SELECT count(*) FROM gradients")
    assert plan.count("Union") == 1  # each within another costs another step, of which each is bound anew
    assert home.rows("SELECT count(DISTINCT run) AS n FROM events", *runs) == [{"n": 3}]


def test_of_runs_no_more_is_read_than_is_asked_for(home, monkeypatch):
    def unreadable(*_):
        raise AssertionError("every event is looked at")

    whole = home.rows("SELECT * EXCLUDE skipped FROM runs", "runs/demo", "runs/rolled", "runs/killed")
    assert home.rows("SELECT run FROM runs WHERE skipped = 0", "runs/demo") == [{"run": "demo"}]
    monkeypatch.setattr(JournalRows, "unreadable", unreadable)
    assert home.rows("SELECT * EXCLUDE skipped FROM runs", "runs/demo", "runs/rolled", "runs/killed") == whole
    assert home.rows("SELECT count(*) AS n FROM runs WHERE state = 'ENDED'", "runs/killed") == [{"n": 1}]


def test_runs_of_one_name_are_told_apart_and_one_named_twice_is_refused(home, elsewhere, tmp_path):
    for other in ("a", "b"):
        (tmp_path / other).mkdir()
        finished_run(tmp_path / other / "demo", *demo_run(completed=True))
    sql = "SELECT run, grown FROM runs ORDER BY run"
    assert elsewhere.rows(sql, "a/demo", "b/demo") == [{"run": "a/demo", "grown": 4}, {"run": "b/demo", "grown": 4}]
    (tmp_path / "link").symlink_to("a")
    for twice in ("a/demo", "./b/../a/demo", "link/demo", f"a/demo/{JOURNAL_NAME}"):
        refused(elsewhere.sap("query", "a/demo", twice, sql), f"{'a/demo'} is named more than once")


def test_a_run_is_asked_whatever_its_directory_is_called(elsewhere):
    odd = os.fsdecode(b"odd\xff")
    for name in (odd, "even"):
        finished_run(elsewhere.path / name, *demo_run(completed=True))
    assert elsewhere.rows("SELECT run FROM runs", odd) == [{"run": "odd\\xff"}]
    count = "SELECT run, count(*) AS n FROM epochs GROUP BY run ORDER BY run"
    assert elsewhere.rows(count, odd, "even") == [{"run": "even", "n": 168}, {"run": "odd\\xff", "n": 168}]


def test_formats_say_the_same(home, tmp_path):
    sql = """SELECT 'a"b,c' AS text, NULL AS nothing, 'nan'::DOUBLE AS nan, '-inf'::DOUBLE AS low, 0.1::DOUBLE AS tenth,
        [1, 2] AS list, {'a': 'inf'::DOUBLE} AS struct, sum(i) AS huge, MAP {'k': 1} AS map, 1.5 AS half,
        TIMESTAMPTZ '2026-11-25 10:00:00+00' AS time, true AS yes FROM range(3) t(i)"""
    (row,) = home.rows(sql)
    time = row.pop("time")
    assert row == {
        "text": 'a"b,c', "nothing": None, "nan": "NaN", "low": "-Infinity", "tenth": 0.1, "list": [1, 2],
        "struct": {"a": "Infinity"}, "huge": 3, "map": {"k": 1}, "half": 1.5, "yes": True,
    }  # fmt: skip
    assert datetime.fromisoformat(time).timestamp() == 1795600800.0
    (line,) = csv.DictReader(home.answer("query", "runs/demo", sql, "--format", "csv").splitlines())
    assert (line["text"], line["nothing"], line["nan"], line["low"]) == ('a"b,c', "", "nan", "-inf")
    assert (float(line["tenth"]), json.loads(line["list"]), line["huge"]) == (0.1, [1, 2], "3")
    head, _, cells = home.answer("query", "runs/demo", sql).splitlines()
    assert head.split()[:3] == ["text", "nothing", "nan"]
    assert cells.split()[:5] == ['a"b,c', "–", "nan", "-inf", "0.1"]
    for name, read in [("x.parquet", pq.read_table), ("x.arrow", lambda path: pa.ipc.open_file(path).read_all())]:
        home.answer("query", "runs/demo", sql, "-o", str(tmp_path / name))
        assert repr(read(tmp_path / name).column("low").to_pylist()) == "[-inf]"


def test_times_are_in_utc_wherever_they_are_asked_for(homes):
    sql = "SELECT min(time) AS time, strftime(min(time), '%Y-%m-%dT%H:%M') AS text FROM events"
    done = subprocess.run(
        (*SAPFLOW, "query", "runs/demo", sql, "--format", "json"), cwd=homes, env={**os.environ, "TZ": "Asia/Kolkata"},
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    assert row["time"].endswith("+00:00")
    assert row["time"].startswith(row["text"])


@pytest.mark.parametrize("table", ["gradients", "epochs", "seeds", "alerts", "events"])
def test_a_whole_table_is_exported_in_every_format(home, tmp_path, table):
    with sapflow.open_run(home.path / "runs" / "demo") as opened:
        wanted = opened.batches(table).read_all()
    for suffix in ("csv", "json", "parquet", "arrow"):
        path = tmp_path / f"{table}.{suffix}"
        assert home.answer("export", "runs/rolled", table, "-o", str(path)).startswith(f"{path}: {wanted.num_rows} row")
    assert pq.read_table(tmp_path / f"{table}.parquet").equals(wanted) or table in ("gradients", "epochs", "seeds")
    assert repr(pq.read_table(tmp_path / f"{table}.parquet").to_pylist()) == repr(wanted.to_pylist())
    with pa.ipc.open_file(tmp_path / f"{table}.arrow") as file:
        assert repr(file.read_all().to_pylist()) == repr(wanted.to_pylist())
    found = json.loads((tmp_path / f"{table}.json").read_text())
    assert [row["slot"] for row in found] == wanted.column("slot").to_pylist()
    with (tmp_path / f"{table}.csv").open(newline="") as file:
        assert [int(row["env"] or -1) for row in csv.DictReader(file)] == [
            -1 if env is None else env for env in wanted.column("env").to_pylist()
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a run and ask"),
        (("runs/demo",), "name a run and ask"),
        (("missing", COUNT), "there is no journal at"),
        (("runs/demo", "SELECT"), "Parser Error"),
        (("runs/demo", "SELECT nothing FROM gradients"), 'Referenced column "nothing" not found'),
        (("runs/demo", "SELECT * FROM losses"), "Table with name losses does not exist"),
        (("runs/demo", "SELECT 1 AS a, 2 AS a"), "two columns of the answer are called 'a'"),
        (("runs/demo", "SELECT (pass * 1000)::TINYINT FROM gradients"), "Conversion Error"),
        (("runs/demo", ""), "a query is one SELECT"),
        (("runs/demo", os.fsdecode(b"SELECT '\xff'")), "a query is text in UTF-8"),
        (("runs/demo", "SELECT 1; SELECT 2"), "a query is one SELECT"),
        (("runs/demo", "COPY gradients TO 'x.csv'"), "a query is one SELECT"),
        (("runs/demo", "ATTACH 'x.db'"), "a query is one SELECT"),
        (("runs/demo", "SET memory_limit = '64GB'"), "a query is one SELECT"),
        (("runs/demo", "INSTALL httpfs"), "a query is one SELECT"),
        (("runs/demo", "EXPLAIN ANALYZE COPY gradients TO 'x.csv'"), "disabled by configuration"),
        (("runs/demo", "SELECT * FROM read_csv('/etc/passwd')"), "disabled by configuration"),
        (("runs/demo", "SELECT * FROM read_text('/etc/passwd')"), "disabled by configuration"),
        (("runs/demo", "SELECT * FROM 'runs/demo/plan.json'"), "disabled by configuration"),
        (("runs/demo", "SELECT * FROM glob('*')"), "disabled by configuration"),
        (("runs/demo", "SELECT * FROM sniff_csv('/etc/passwd')"), "disabled by configuration"),
        (("runs/demo", "FROM query('COPY gradients TO ''x.csv''')"), "Expected a single SELECT statement"),
        (("runs/demo", "SELECT list(repeat('x', 1000) || i) FROM range(500000) t(i)"), "more than 100MB of memory"),
        (("runs/demo", COUNT, "--format", "xml"), "xml"),
        (("runs/demo", COUNT, "--format", "parquet"), "name a file with -o"),
        (("runs/demo", COUNT, "-o", "there.csv"), "there.csv exists: choose another name"),
        (("runs/demo", COUNT, "-o", "nowhere/x.csv"), "there is no directory nowhere"),
        (("runs/demo", COUNT, "-o", "runs"), "runs is a directory"),
        (("runs/demo", COUNT, "-o", "x.xls"), "does not say its format"),
        (("runs/demo", COUNT, "-o", "/proc/x.csv"), "/proc/x.csv cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(home, monkeypatch, arguments, words):
    monkeypatch.setattr("sapflow.history.query.MEMORY", "100MB")  # of which an answer takes too much sooner
    (home.path / "there.csv").write_text("mine")
    before = sorted(path.name for path in home.path.rglob("*"))
    refused(home.sap("query", *arguments), words)
    assert sorted(path.name for path in home.path.rglob("*")) == before
    assert (home.path / "there.csv").read_text() == "mine"


def test_an_export_of_what_is_not_there_is_refused(home):
    refused(home.sap("export", "runs/demo", "losses", "-o", "l.csv"), "there is no table 'losses'")
    refused(home.sap("export", "missing", "seeds"), "there is no journal at")
    refused(home.sap("show", "missing"), "there is no journal at")
    assert not (home.path / "l.csv").exists()


def test_a_file_is_overwritten_only_when_that_is_asked_for_and_only_by_a_whole_answer(home, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("mine")
    refused(home.sap("query", "runs/demo", "SELECT (pass * 1000)::TINYINT FROM gradients", "-o", str(file), "--force"))
    assert file.read_text() == "mine"
    home.answer("query", "runs/demo", COUNT, "-o", str(file), "--force")
    assert file.read_text() == '"n"\n112\n'
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask()


@pytest.mark.parametrize("name", ["demo", "rolled"])
@pytest.mark.parametrize("how", ["csv", "parquet"])
def test_a_full_disk_is_one_line_and_no_bad_question(home, tmp_path, name, how):
    path = tmp_path / f"all.{how}"
    for question in (("query", f"runs/{name}", "SELECT * FROM gradients"), ("export", f"runs/{name}", "gradients")):
        with small_files(500):
            done = home.sap(*question, "-o", str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert "File too large" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_will_do(home, tmp_path, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "count.csv"
    home.answer("query", "runs/demo", COUNT, "-o", str(path))
    assert path.read_text() == '"n"\n112\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name",
    [
        JOURNAL_NAME, f"{JOURNAL_NAME}-wal", f"{JOURNAL_NAME}-shm", "plan.json", "trainer.lock", "trainer.log",
        "run.token", "parquet/events.parquet", "parquet/new.csv", "requests/x.json", "checkpoints/deep/x",
        "exporters/events.jsonl", "../link/parquet/manifest.json", "../pointer.csv",
    ],
)  # fmt: skip
def test_no_answer_takes_the_place_of_a_run_s_own_files(elsewhere, tmp_path, name):
    run_dir = finished_run(tmp_path / "demo", *demo_run(1, completed=True))
    roll(run_dir)
    (tmp_path / "link").symlink_to(run_dir)
    (tmp_path / "pointer.csv").symlink_to(run_dir / JOURNAL_NAME)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = ("-o", f"demo/{name}")
    for arguments in (("query", "demo", COUNT), ("export", "demo", "seeds")):
        refused(elsewhere.sap(*arguments, *output, "--format", "csv"), "belongs to the run in")
        refused(elsewhere.sap(*arguments, *output, "--format", "csv", "--force"), "belongs to the run in")
    refused(elsewhere.sap("report", "demo", *output, "--force"), "belongs to the run in")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_answer_may_lie_beside_a_run_s_own_files(elsewhere, tmp_path):
    finished_run(tmp_path / "demo", *demo_run(1, completed=True))
    (tmp_path / "parquet").mkdir()  # nobody's, although it is called so
    for name in ("demo/seeds.csv", "parquet/seeds.csv"):
        elsewhere.answer("export", "demo", "seeds", "-o", name)


STRANGE = """
SELECT date '290000-01-01' AS late, 'infinity'::TIMESTAMP AS never, '-infinity'::DATE AS ever,
    'infinity'::TIMESTAMPTZ AS zoned, TIMESTAMP '290000-01-01 01:02:03.5' AS moment, [date '-4713-01-01'] AS dates,
    INTERVAL 14 MONTH AS span, [INTERVAL 1 DAY] AS spans, {'INTERVAL': INTERVAL 1 DAY} AS named,
    'ab'::BLOB AS blob, 'x'::ENUM('x', 'y') AS kind, DATE '2026-01-02' AS day, TIME '10:20:30' AS clock
"""
STRANGE_TEXTS = {
    "late": "290000-01-01", "never": "infinity", "ever": "-infinity", "zoned": "infinity",
    "moment": "290000-01-01 01:02:03.500000", "span": "1 year 2 months", "blob": "6162", "kind": "x",
    "day": "2026-01-02", "clock": "10:20:30",
}  # fmt: skip


def test_values_that_python_has_not_are_written_as_in_sql(home, tmp_path):
    (row,) = home.rows(STRANGE)
    assert row["dates"] == ["-4713-01-01"]
    assert (row["spans"], row["named"]) == (["1 day"], {"INTERVAL": "1 day"})
    assert {name: row[name] for name in STRANGE_TEXTS} == STRANGE_TEXTS
    (line,) = csv.DictReader(home.answer("query", "runs/demo", STRANGE, "--format", "csv").splitlines())
    assert {name: line[name] for name in STRANGE_TEXTS} == STRANGE_TEXTS
    assert json.loads(line["spans"]) == ["1 day"]
    _, _, cells = home.answer("query", "runs/demo", STRANGE).splitlines()
    assert {"290000-01-01", "infinity", "-infinity", "year", '"6162"'} <= set(cells.split())
    home.answer("query", "runs/demo", STRANGE, "-o", str(tmp_path / "x.parquet"))
    (kept,) = pq.read_table(tmp_path / "x.parquet", columns=["span", "spans"]).to_pylist()
    assert kept == {"span": "1 year 2 months", "spans": ["1 day"]}


def test_an_answer_that_fails_at_once_leaves_no_half_of_an_array(home):
    def failing() -> Iterator[pa.RecordBatch]:
        raise InputError("it cannot be")
        yield

    file = io.BytesIO()
    with pytest.raises(InputError):
        write(pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), failing()), file, "json")
    assert file.getvalue() == b""
    assert home.answer("query", "runs/demo", "SELECT 1 WHERE false", "--format", "json") == "[\n]\n"


def test_a_cell_is_cut_however_long_its_value(home):
    long = "repeat('x', 1000000)"
    sql = f"SELECT {long} AS text, [{long}, {long}] AS list, range(100000) AS numbers, {long}::BLOB AS blob"
    _, _, line = home.answer("query", "runs/demo", sql).splitlines()
    assert len(line) == 4 * 300 + 3 * 2
    assert line.count("…") == 4
    exact = home.answer("query", "runs/demo", f"SELECT {long} AS text", "--format", "csv")
    assert exact == '"text"\n"' + "x" * 1_000_000 + '"\n'


@pytest.mark.parametrize("how", ["csv", "json"])
def test_what_goes_to_a_terminal_cannot_steer_it_and_what_goes_elsewhere_is_exact(home, how):
    sql = "SELECT 'é層' || chr(27) || '[31m' || chr(155) || '2J' AS text, 1 AS n"
    command = (*SAPFLOW, "query", "runs/demo", sql, "--format", how)
    with Terminal(command, home.path) as terminal:
        assert terminal.wait() == 0
    assert not set(terminal.output) & {"\x1b", "\x9b"}
    assert "é層\\x1b[31m" in terminal.output or "é層\\u001b[31m" in terminal.output
    exact = home.answer("query", "runs/demo", sql, "--format", how)
    text = json.loads(exact)[0]["text"] if how == "json" else next(csv.DictReader(exact.splitlines()))["text"]
    assert text == "é層\x1b[31m\x9b2J"


def test_the_tables_are_those_of_a_run_and_a_plan_is_drawn(home):
    names = [row["name"] for row in home.rows("SHOW TABLES")]
    assert names == ["alerts", "epochs", "events", "gradients", "runs", "seeds"]
    for runs in (("runs/demo",), ("runs/demo", "runs/rolled")):
        plan = home.answer("query", *runs, "EXPLAIN SELECT count(*) FROM gradients WHERE epoch = 3")
        assert len(plan.splitlines()) > 5
        assert "�" not in plan


def test_small_numbers_are_told_in_words_that_fit(home, tmp_path):
    path = tmp_path / "one.csv"
    assert home.answer("query", "runs/demo", "SELECT 1 AS n", "-o", str(path)) == f"{path}: 1 row, 6 bytes\n"


def test_what_a_run_without_events_was_is_not_known(elsewhere, tmp_path):
    finished_run(tmp_path / "none")
    text = elsewhere.answer("show", "none")
    assert "task        not known\n" in text
    assert "None" not in text


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_no_name_can_steer_the_terminal_and_none_can_break_out_of_the_sql(elsewhere, tmp_path):
    name = "it's; DROP"
    born = SeedGerminated(epoch=1, slot_id="\x1b[31mred\n", seed_id="s", blueprint_id="b", seed_params=1, birth_gain=1)
    finished_run(tmp_path / name, event(born))
    finished_run(tmp_path / "other", event(born))
    for text in (
        elsewhere.answer("query", name, "SELECT slot FROM seeds"),
        elsewhere.answer("show", name),
        elsewhere.answer("export", name, "seeds"),
    ):
        assert "�[31mred�" in text
        assert "\x1b" not in text
    found = elsewhere.rows("SELECT run, slot FROM seeds ORDER BY run", name, "other")
    assert [row["run"] for row in found] == [name, "other"]
    assert found[0]["slot"] == "\x1b[31mred\n"


def test_a_journal_that_is_damaged_within_is_one_line(elsewhere, tmp_path):
    journal = finished_run(tmp_path / "run", *demo_run(completed=True)) / JOURNAL_NAME
    pages = bytearray(journal.read_bytes())
    for start in range(8 * 4096, len(pages), 3 * 4096):
        pages[start : start + 2000] = bytes(2000)
    journal.write_bytes(pages)
    refused(elsewhere.sap("query", "run", "SELECT sum(ratio) FROM gradients"), "is truncated or damaged")
    done = elsewhere.sap("query", "run", "SELECT sum(ratio) FROM gradients")
    assert done.stderr.startswith(f"sapflow: {journal} is truncated")
    refused(elsewhere.sap("show", "run"), "is truncated or damaged")
    refused(elsewhere.sap("roll", "run", "--remove-journal"), "is truncated or damaged")
    assert journal.read_bytes() == pages


def test_variables_of_the_program_are_no_tables(home):
    gradients_of_mine = pa.table({"a": [1]})
    with (
        sapflow.open_run(home.path / "runs" / "demo") as opened,
        pytest.raises(InputError, match="gradients_of_mine does not exist"),
        asked({"demo": opened}, "SELECT * FROM gradients_of_mine"),
    ):
        pass
    assert gradients_of_mine.num_rows == 1


def test_a_big_answer_is_a_stream_that_may_be_left(home):
    sql = "SELECT i FROM range(1000000000000) t(i)"
    with started((*SAPFLOW, "query", "runs/demo", sql, "--format", "csv"), home.path) as process:
        assert [process.stdout.readline() for _ in range(3)] == ['"i"\n', "0\n", "1\n"]
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_a_table_shows_the_first_rows_and_says_how_many_there_are(home):
    lines = home.answer("query", "runs/demo", "FROM range(1000) t(i)").splitlines()
    assert len(lines) == 2 + 200 + 1
    assert lines[-1] == "(1000 rows, of which 200 are shown: --format csv has all)"


INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process was born with
from sapflow.cli import main
main()
"""


def test_ctrl_c_ends_a_query_in_one_line_and_leaves_no_file(home, tmp_path):
    sql = "SELECT i FROM range(1000000000000) t(i)"
    file = tmp_path / "x.csv"
    command = (sys.executable, "-c", INTERRUPTIBLE, "query", "runs/demo", sql, "-o", str(file))
    with started(command, home.path) as process:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == "sapflow: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["csv", "json"])
def test_ctrl_c_ends_an_answer_that_nobody_takes(home, how):
    sql = "SELECT i FROM range(1000000000000) t(i)"
    command = (sys.executable, "-c", INTERRUPTIBLE, "query", "runs/demo", sql, "--format", how)
    with started(command, home.path) as process:
        pipe = process.stdout.fileno()
        room = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        wait_until(lambda: waiting(pipe) > room - select.PIPE_BUF, "a full pipe")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == "sapflow: interrupted\n"


def waiting(pipe: int) -> int:
    """The bytes in a pipe that nobody has read."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
