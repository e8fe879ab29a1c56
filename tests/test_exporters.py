"""What every exporter owes: each event at least once, whatever the backend does; and the JSON that people get."""

import hashlib
import hmac
import json
import logging
import math
import os
import re
import threading
import time
import tomllib
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journals import PATIENCE, epoch_completed, event, finished_run, gradient_sampled, run_completed, small_files
from receivers import free_port, receiver
from sanctum_events import RUN_ID, demo_run
from sapflow.errors import BackendAwayError, ExporterRefusedError, InputError, RunDirectoryError, SapflowError
from sapflow.exporters import follower, registry
from sapflow.exporters.config import chosen
from sapflow.exporters.exporter import Setting, event_key
from sapflow.exporters.follower import Follower
from sapflow.exporters.json_form import json_form, json_line
from sapflow.exporters.jsonlines import JsonLines
from sapflow.exporters.ledger import Ledger, path_of, read
from sapflow.exporters.run_identity import RunIdentity, identity_of, wait_for_run
from sapflow.telemetry import run_directory
from sapflow.telemetry.events import (
    SCHEMA_VERSION,
    GradientHealth,
    GradientSampled,
    RunCompleted,
    RunStarted,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.json_schema import event_schema
from sapflow.telemetry.keeping import Keeping
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock
from sapflow.telemetry.source import Source

DEMO = demo_run(epochs=6, completed=True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run", *DEMO)


class Backend:
    """Takes what it is brought, unless `whims` has an error to raise for the call instead."""

    def __init__(self, *whims: Exception | None) -> None:
        self.whims = list(whims)
        self.taken: list[TelemetryEvent] = []
        self.largest = 0
        self.closed = 0

    def export(self, events):
        whim = self.whims.pop(0) if self.whims else None
        if whim is not None:
            raise whim
        self.taken.extend(events)
        self.largest = max(self.largest, len(events))

    def close(self):
        self.closed += 1


def follow(run_dir: Path, backend, patience: float = PATIENCE, wait=lambda seconds: None, wait_for_run: float = 0.0):
    with Ledger(run_dir, "mine") as ledger:
        Follower(run_dir, backend, ledger, patience=patience, wait=wait).run(wait_for_run)
    return read(path_of(run_dir, "mine"))


# Following


def test_all_events_of_a_finished_run_come_once_and_in_order(run_dir):
    backend = Backend()
    progress = follow(run_dir, backend)
    assert backend.taken == DEMO
    assert (progress.exported, progress.dropped, progress.retries) == (len(DEMO), {}, 0)
    assert (progress.state, backend.closed) == ("done", 1)


def test_started_again_it_goes_on_where_it_was(run_dir):
    follow(run_dir, Backend())
    again = Backend()
    progress = follow(run_dir, again)
    assert again.taken == []
    assert progress.exported == len(DEMO)


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 40))
@settings(deadline=None, max_examples=15)
def test_nothing_is_lost_however_often_it_breaks_off(tmp_path_factory, outcomes, batch):
    run_dir = finished_run(tmp_path_factory.mktemp("run"), *DEMO)
    seen: list[TelemetryEvent] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(follower, "BATCH_EVENTS", batch)
        for gets_through in [*outcomes, True]:
            # Breaks off after a batch: before (the batch is not the backend's) or after it was handed over.
            backend = Backend(*([] if gets_through else [None, KeyboardInterrupt()]))
            try:
                follow(run_dir, backend)
            except KeyboardInterrupt:
                assert not gets_through
            seen += backend.taken
    assert seen == DEMO


def test_a_live_run_is_followed_to_its_end(tmp_path):
    backend = Backend()
    enough = threading.Event()

    def wait(seconds):
        if len(backend.taken) == 3:
            enough.set()
        threading.Event().wait(0.01)

    with TrainerLock(tmp_path):
        journal = Journal(tmp_path)
        thread = threading.Thread(target=follow, args=(tmp_path, backend), kwargs={"wait": wait})
        thread.start()
        for one in DEMO[:3]:
            journal.emit(one)
        assert enough.wait(PATIENCE)
        for one in DEMO[3:]:
            journal.emit(one)
        journal.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert backend.taken == DEMO


def test_a_run_that_was_cut_off_and_resumed_is_followed_on(tmp_path):
    finished_run(tmp_path, *DEMO[:40])
    first, second = Backend(), Backend()
    follow(tmp_path, first)
    journal = Journal(tmp_path, resume=True)
    for one in DEMO[40:]:
        journal.emit(one)
    journal.close()
    follow(tmp_path, second)
    assert first.taken + second.taken == DEMO


def test_a_run_that_was_cut_off_and_is_yet_to_go_on_is_waited_for(tmp_path):
    finished_run(tmp_path, *DEMO[:40])
    backend, waits = Backend(), threading.Event()

    def wait(seconds):
        if backend.taken == DEMO[:40]:
            waits.set()
        threading.Event().wait(0.01)

    how = {"wait": wait, "wait_for_run": 2 * PATIENCE}
    thread = threading.Thread(target=follow, args=(tmp_path, backend), kwargs=how)
    thread.start()
    assert waits.wait(PATIENCE)
    with TrainerLock(tmp_path):
        journal = Journal(tmp_path, resume=True)
        for one in DEMO[40:]:
            journal.emit(one)
        journal.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert backend.taken == DEMO


def test_a_backend_that_is_away_is_tried_with_growing_pauses_until_it_is_back(run_dir):
    pauses: list[float] = []
    backend = Backend(*[BackendAwayError("away")] * 9, BackendAwayError("busy", retry_after=100.0), None)
    progress = follow(run_dir, backend, patience=200.0, wait=pauses.append)
    assert backend.taken == DEMO
    assert progress.retries == 10
    for tried, pause in enumerate(pauses[:9]):
        most = min(0.5 * 2**tried, follower.LONGEST_PAUSE_SECONDS)
        assert most / 2 <= pause <= most
    assert pauses[9] == 100.0


def test_after_the_end_nobody_is_waited_for_beyond_the_patience_whatever_he_asks(run_dir):
    pauses: list[float] = []
    follow(run_dir, Backend(BackendAwayError("busy", retry_after=300.0), None), patience=5.0, wait=pauses.append)
    assert 4.0 < pauses[0] <= 5.0


def test_patience_ends_with_no_run_that_goes_on_after_it_was_cut_off(tmp_path):
    finished_run(tmp_path, *DEMO[:40])
    backend = Backend(BackendAwayError("away"), BackendAwayError("away"), None)
    with ExitStack() as trainer:

        def wait(seconds):
            if backend.taken:
                trainer.close()
            elif len(backend.whims) == 2:
                trainer.enter_context(TrainerLock(tmp_path))
                time.sleep(0.01)  # longer than the patience

        follow(tmp_path, backend, patience=0.001, wait=wait)
    assert backend.taken == DEMO[:40]


def test_a_backend_that_stays_away_after_the_end_is_given_up_and_nothing_is_lost(run_dir):
    with pytest.raises(BackendAwayError, match="away"):
        follow(run_dir, Backend(*[BackendAwayError("away")] * 3), patience=0.0)
    progress = read(path_of(run_dir, "mine"))
    assert (progress.cursor, progress.state, progress.error) == (0, "stopped", "away")
    backend = Backend()
    follow(run_dir, backend)
    assert backend.taken == DEMO


@given(st.sets(st.integers(0, len(DEMO) - 1)))
@settings(deadline=None, max_examples=10)
def test_of_a_batch_only_the_events_at_fault_are_dropped_and_counted(tmp_path_factory, poisonous):
    run_dir = finished_run(tmp_path_factory.mktemp("run"), *DEMO)
    poison = [DEMO[index] for index in poisonous]

    class Picky(Backend):
        def export(self, events):
            if any(one in poison for one in events):
                raise ZeroDivisionError("a bug")
            super().export(events)

    backend = Picky()
    progress = follow(run_dir, backend)
    assert backend.taken == [one for one in DEMO if one not in poison]
    assert progress.dropped == ({"ZeroDivisionError": len(poison)} if poison else {})


def test_what_was_dropped_of_a_batch_that_comes_again_is_counted_once(run_dir):
    class Picky(Backend):
        def export(self, events):
            if DEMO[0] in events:
                raise ZeroDivisionError("a bug")
            super().export(events)

    with pytest.raises(BackendAwayError):
        follow(run_dir, Picky(BackendAwayError("away")), patience=0.0)
    assert read(path_of(run_dir, "mine")).dropped == {}  # it is not done with
    assert follow(run_dir, Picky()).dropped == {"ZeroDivisionError": 1}


def test_what_a_backend_refuses_of_what_it_takes_is_counted(run_dir, monkeypatch):
    monkeypatch.setattr(follower, "BATCH_EVENTS", len(DEMO) // 2 + 1)

    class Choosy(Backend):
        def export(self, events):
            super().export(events)
            return {"data points": 3, "log records": 0}

    progress = follow(run_dir, Choosy(BackendAwayError("away"), None, None))
    assert (progress.dropped, progress.exported) == ({"data points": 6}, len(DEMO))


def test_an_answer_that_is_none_is_an_exporter_s_bug_as_others_are(run_dir):
    class Chatty(Backend):
        def export(self, events):
            return 7

    assert follow(run_dir, Chatty()).dropped == {"TypeError": len(DEMO)}


def test_an_exporter_s_bug_is_logged_once(run_dir, caplog):
    class Broken(Backend):
        def export(self, events):
            raise ValueError("always")

    with caplog.at_level(logging.WARNING):
        progress = follow(run_dir, Broken())
    assert progress.dropped == {"ValueError": len(DEMO)}
    assert len(caplog.records) == 1


def test_what_a_person_has_to_change_ends_it_at_once_and_keeps_the_place(run_dir, monkeypatch):
    monkeypatch.setattr(follower, "BATCH_EVENTS", 10)
    backend = Backend(None, None, ExporterRefusedError("who are you?"))
    with pytest.raises(ExporterRefusedError):
        follow(run_dir, backend)
    assert backend.closed == 1
    after = Backend()
    follow(run_dir, after)
    assert backend.taken + after.taken == DEMO


def test_unreadable_events_are_counted_and_passed_over(run_dir):
    import sqlite3

    with sqlite3.connect(run_dir / "journal.sqlite") as connection:
        connection.execute("UPDATE events SET body = x'00' WHERE id = 7")
    connection.close()
    backend = Backend()
    progress = follow(run_dir, backend)
    assert backend.taken == DEMO[:6] + DEMO[7:]
    assert progress.dropped == {"unreadable: malformed": 1}


def test_a_close_that_hangs_does_not_hold_up_the_end(run_dir, monkeypatch):
    monkeypatch.setattr(follower, "CLOSING_SECONDS", 0.05)
    release = threading.Event()

    class Hanging(Backend):
        def close(self):
            release.wait(PATIENCE)

    with pytest.raises(BackendAwayError, match="was not done"):
        follow(run_dir, Hanging())
    release.set()


def test_a_run_directory_that_goes_away_is_said_and_not_made_again(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)

    class Vandal(Backend):
        def export(self, events):
            for path in sorted(run_dir.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            run_dir.rmdir()

    with pytest.raises(RunDirectoryError, match="is gone"):
        follow(run_dir, Vandal())
    assert not run_dir.exists()


def test_one_follower_a_run_and_exporter(run_dir):
    at_work = f"already, as process {os.getpid()}: wait until it is done, or stop it"
    with Ledger(run_dir, "mine"), Ledger(run_dir, "yours"), pytest.raises(RunDirectoryError, match=at_work):
        Ledger(run_dir, "mine").__enter__()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b'{"cursor": "three"}', b"[1, 2]"])
def test_a_damaged_ledger_sends_everything_again(run_dir, content):
    follow(run_dir, Backend())
    path_of(run_dir, "mine").write_bytes(content)
    backend = Backend()
    follow(run_dir, backend)
    assert backend.taken == DEMO


def test_a_cursor_behind_the_journal_s_end_is_its_end(run_dir):
    with Source(run_dir) as source:
        source.start_after(10**6)
        assert source.cursor == len(DEMO)
        assert source.at_end()
        source.start_after(5)
        assert source.read(1) == [DEMO[5]]
        assert not source.at_end()


# Which run it is


def kept_run(run_dir: Path) -> Path:
    keeping = Keeping(run_dir, "unkept")
    keeping.run.emit(RunStarted(task="task", envs=1, epochs=1, token=keeping.token))
    keeping.close()
    return run_dir


def keys_of(run_dir: Path) -> list[str]:
    with Source(run_dir) as source:
        return [event_key(one, identity_of(run_dir).key) for one in source.read()]


def test_two_runs_of_one_name_have_no_key_in_common_and_a_run_keeps_its_own(tmp_path):
    first, second = (kept_run(tmp_path / place / "mine") for place in ("here", "there"))
    assert identity_of(first).run_id == identity_of(second).run_id == "mine"
    assert not set(keys_of(first)) & set(keys_of(second))
    before = keys_of(first)
    journal = Journal(first, resume=True)
    journal.emit(
        TelemetryEvent(run_id="mine", env_id=None, sequence=1, time=2.0, payload=RunCompleted(completed_envs=1))
    )
    journal.close()
    assert keys_of(first)[:1] == before
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    (elsewhere / JOURNAL_NAME).write_bytes((first / JOURNAL_NAME).read_bytes())  # the journal alone says it as well
    assert keys_of(elsewhere) == keys_of(first)


def test_the_key_of_a_run_is_known_before_its_first_event(tmp_path):
    run_directory.create(tmp_path / "mine")
    before = identity_of(tmp_path / "mine")
    assert before == RunIdentity("mine", run_directory.token_of(tmp_path / "mine"))
    finished_run(tmp_path / "mine", *started_with(before.token))
    assert identity_of(tmp_path / "mine") == before


def test_a_journal_of_a_time_without_tokens_keeps_the_keys_that_it_had(tmp_path):
    run_dir = finished_run(tmp_path / "run", *started_with(""))
    assert identity_of(run_dir) == RunIdentity("mine")
    assert keys_of(run_dir) == ["mine/-/0"]
    (run_dir / run_directory.TOKEN_NAME).write_text("no token at all")
    assert keys_of(run_dir) == ["mine/-/0"]


def started_with(token: str) -> list[TelemetryEvent]:
    started = RunStarted(task="task", envs=1, epochs=1, token=token)
    return [TelemetryEvent(run_id="mine", env_id=None, sequence=0, time=1.0, payload=started)]


def test_a_run_that_is_yet_to_begin_is_waited_for_and_nothing_is_made_where_it_will_be(tmp_path):
    run_dir, pauses = tmp_path / "run", []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            run_dir.mkdir()
        if len(pauses) == 3:
            assert list(run_dir.iterdir()) == []
            run_directory.create(run_dir)

    assert 0 < wait_for_run(run_dir, PATIENCE, wait) <= PATIENCE
    assert len(pauses) == 3
    assert wait_for_run(tmp_path / "other", 0.0, wait) == 0.0


# Keys and JSON


def test_keys_tell_all_events_apart():
    keys = [event_key(one, RUN_ID) for one in DEMO]
    assert len(set(keys)) == len(DEMO)
    assert event_key(event(run_completed().payload, env=None, sequence=3), "run") == "run/-/3"
    assert event_key(gradient_sampled(epoch=4), "run") == "run/0/stem/4/0"


def test_json_has_every_event_and_marks_what_json_cannot_say():
    sample = GradientSampled(
        epoch=2, slot_id="a/~", pass_index=(0, 1, 2), entering=(1.0, math.nan, math.inf), leaving=(-math.inf, 1.0, 2.0),
        health=GradientHealth(grad_ratio=math.nan),
    )  # fmt: skip
    line = json_line(event(sample, env=3, sequence=None), "run")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    form = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (form["type"], form["schema"], form["env_id"]) == ("GRADIENT_SAMPLED", SCHEMA_VERSION, 3)
    assert form["payload"]["entering"] == [1.0, None, None]
    assert form["non_finite"] == {
        "/payload/entering/1": "NaN",
        "/payload/entering/2": "Infinity",
        "/payload/leaving/0": "-Infinity",
        "/payload/health/grad_ratio": "NaN",
    }


def test_every_line_is_by_the_published_schema():
    jsonschema = pytest.importorskip("jsonschema")
    by_schema = jsonschema.Draft202012Validator(event_schema())
    wild = GradientSampled(
        epoch=2, slot_id="s", pass_index=(0,), entering=(math.nan,), leaving=(-math.inf,), health=GradientHealth()
    )
    for one in (*DEMO, event(wild, sequence=None)):
        by_schema.validate(json.loads(json_line(one, RUN_ID)))


def test_json_of_finite_events_has_no_marker_and_loses_nothing():
    import msgspec

    for one in DEMO:
        form = json.loads(json_line(one, RUN_ID))
        assert "non_finite" not in form
        payload = msgspec.convert(form["payload"], type(one.payload), strict=False)
        assert payload == one.payload
        assert form == json.loads(json.dumps(json_form(one, RUN_ID)))


# To a file


def open_jsonlines(run_dir: Path, resumed: bool = False, **options):
    return registry.open_exporter(
        Setting(name="jsonlines", run_dir=run_dir, run=RunIdentity(RUN_ID), resumed=resumed, options=options)
    )


def test_jsonlines_begins_its_file_goes_on_with_it_and_mends_what_a_kill_left(run_dir):
    path = run_dir / "exporters" / "events.jsonl"
    path.parent.mkdir()
    exporter = open_jsonlines(run_dir)
    exporter.export(DEMO[:3])
    exporter.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "torn' + b"x" * 100_000)
    exporter = open_jsonlines(run_dir, resumed=True)
    assert path.read_bytes() == whole
    exporter.export(DEMO[3:5])
    exporter.close()
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [
        event_key(e, RUN_ID) for e in DEMO[:5]
    ]


@pytest.mark.parametrize("resumed", [False, True])
def test_jsonlines_overwrites_nobody_s_file(tmp_path, resumed):
    (tmp_path / "mine.txt").write_text("precious")
    for path in ("mine.txt", ".", "no/such/folder.jsonl"):
        with pytest.raises(ExporterRefusedError, match="choose another path"):
            open_jsonlines(tmp_path, resumed, path=str(tmp_path / path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["trainer.lock", "journal.sqlite-wal", "exporters/webhook.lock", "parquet/x"])
def test_jsonlines_writes_into_no_file_of_a_run(run_dir, name):
    with pytest.raises(ExporterRefusedError, match="belongs to the run in"):
        open_jsonlines(run_dir, path=str(run_dir / name))
    assert not (run_dir / name).exists()


def test_jsonlines_that_a_pipe_takes_in_parts_come_once_and_whole(run_dir):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as a program that started this one may have left it
    exporter, taken = JsonLines(writing, "-", RUN_ID), b""
    many = DEMO * 20
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        for _ in range(200):
            try:
                exporter.export(many)
            except BackendAwayError:
                taken += pipe.read(2**16)
            else:
                break
        os.close(writing)
        taken += pipe.read()
    assert [json.loads(line)["key"] for line in taken.splitlines()] == [event_key(one, RUN_ID) for one in many]


def test_jsonlines_on_a_full_disk_leaves_no_half_of_a_batch(tmp_path):
    (tmp_path / "exporters").mkdir()
    exporter = open_jsonlines(tmp_path)
    exporter.export(DEMO[:2])
    path = tmp_path / "exporters" / "events.jsonl"
    size = path.stat().st_size
    with small_files(size + 100), pytest.raises(BackendAwayError, match="cannot be written"):
        exporter.export(DEMO[2:5])
    assert path.stat().st_size == size
    exporter.export(DEMO[2:5])
    exporter.close()
    assert len(path.read_bytes().splitlines()) == 5


# To a web hook


def open_webhook(url: str, **options):
    setting = Setting(name="webhook", run_dir=Path(), run=RunIdentity(RUN_ID), options={"url": url, **options})
    return registry.open_exporter(setting)


def test_a_webhook_gets_batches_with_a_key_and_a_signature(monkeypatch):
    monkeypatch.setenv("SAPFLOW_WEBHOOK_SECRET", "hush")
    monkeypatch.setenv("SAPFLOW_WEBHOOK_TOKEN", "abc")
    with receiver() as server:
        hook = open_webhook(f"{server.url}/in")
        hook.export(DEMO[:5])
        hook.export(DEMO[5:9])
        hook.export(DEMO[:5])
    assert server.keys == [event_key(one, RUN_ID) for one in (*DEMO[:9], *DEMO[:5])]
    first, second, again = server.headers
    assert first["Idempotency-Key"] == again["Idempotency-Key"] != second["Idempotency-Key"]
    assert first["Content-Type"] == "application/x-ndjson"
    assert first["Authorization"] == "Bearer abc"
    time, digest = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", first["Sapflow-Signature"]).groups()
    expected = hmac.new(b"hush", time.encode() + b"." + server.bodies[0], hashlib.sha256).hexdigest()
    assert digest == expected


@pytest.mark.parametrize(
    ("code", "error"),
    [(500, BackendAwayError), (503, BackendAwayError), (429, BackendAwayError), (507, BackendAwayError),
     (408, BackendAwayError), (0, BackendAwayError), (401, ExporterRefusedError), (403, ExporterRefusedError),
     (404, ExporterRefusedError), (302, ExporterRefusedError), (307, ExporterRefusedError)],
)  # fmt: skip
def test_what_an_answer_means(code, error):
    with receiver() as server:
        server.always = code
        server.headers_back = {"Retry-After": "7", "Location": "http://127.0.0.1:1/elsewhere"}
        with pytest.raises(error) as raised:
            open_webhook(server.url).export(DEMO[:2])
        assert server.bodies == []
        if code in (429, 503):
            assert raised.value.retry_after == 7.0


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (format_datetime(NOW + timedelta(hours=3), usegmt=True), 3_600.0, 10_800.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0, 0.0),
    ],
    ids=["in three hours", "a day ago"],  # of the same name in both processes that collect tests
)
def test_retry_after_may_be_a_date(header, least, most):
    with receiver() as server:
        server.always, server.headers_back = 503, {"Retry-After": header}
        with pytest.raises(BackendAwayError) as raised:
            open_webhook(server.url).export(DEMO[:2])
    assert least <= raised.value.retry_after <= most


def test_a_retry_after_that_is_neither_is_passed_over():
    with receiver() as server:
        server.always, server.headers_back = 503, {"Retry-After": "soon"}
        with pytest.raises(BackendAwayError) as raised:
            open_webhook(server.url).export(DEMO[:2])
    assert raised.value.retry_after is None


def test_a_server_that_is_slow_or_away_is_away():
    slow = threading.Event()
    with receiver() as server:
        server.always = lambda body: 200 if slow.wait(PATIENCE) else 500
        with pytest.raises(BackendAwayError):
            open_webhook(server.url, timeout=0.1).export(DEMO[:2])
        slow.set()
    with pytest.raises(BackendAwayError, match="cannot be reached"):
        open_webhook(f"http://127.0.0.1:{free_port()}").export(DEMO[:2])


def test_a_batch_that_is_too_large_for_the_server_goes_in_parts(run_dir):
    with receiver() as server:
        server.always = lambda body: 413 if len(body) > 6_000 else 200
        progress = follow(run_dir, open_webhook(server.url))
    assert server.seen[413] > 1
    assert server.keys == [event_key(one, RUN_ID) for one in DEMO]
    assert progress.dropped == {}


def test_a_backend_that_comes_and_goes_gets_everything(run_dir, monkeypatch):
    """Away, failing, full, and losing its answer: what it has taken by then comes again with the same key."""
    monkeypatch.setattr(follower, "BATCH_EVENTS", 7)
    taken_unsaid = [0]

    with receiver() as server:

        def whim(body: bytes) -> int:
            turn = server.seen.total()
            if turn % 5 == 4:  # it takes the batch, and its answer is lost
                server.bodies.append(body)
                taken_unsaid[0] += len(body.splitlines())
                return 0
            return (200, 500, 507, 503)[turn % 5]

        server.always = whim
        progress = follow(run_dir, open_webhook(server.url))
    assert set(server.keys) == {event_key(one, RUN_ID) for one in DEMO}
    assert len(server.keys) - len(DEMO) == taken_unsaid[0] > 0  # the duplicates, each with a key that is known
    assert (progress.exported, progress.dropped) == (len(DEMO), {})
    # The figures of docs/exporting.md.
    assert (len(DEMO), progress.retries, taken_unsaid[0]) == (64, 36, 57)


@pytest.mark.parametrize(
    "url", ["", "ftp://host/", "host/path", "http://", "file:///etc/passwd", "http://a b/", "http://host:99999/",
            "http://user:secret@host/", "http://host/ü", "http://a..b/", f"http://{'a' * 64}.org/"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_telling_a_secret(url):
    with pytest.raises(ExporterRefusedError) as raised:
        open_webhook(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("token", ["a\nb", "ünï", "a\x00"])
def test_a_secret_that_no_header_can_carry_is_refused_before_anything_is_lost(monkeypatch, token):
    monkeypatch.setattr("os.environ", {**os.environ, "SAPFLOW_WEBHOOK_TOKEN": token})
    with pytest.raises(ExporterRefusedError, match="Authorization") as raised:
        open_webhook("http://127.0.0.1/")
    assert token not in str(raised.value)


def test_the_end_of_a_line_in_a_secret_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("SAPFLOW_WEBHOOK_TOKEN", "abc\n")
    with receiver() as server:
        open_webhook(server.url).export(DEMO[:1])
    assert server.headers[0]["Authorization"] == "Bearer abc"


def test_messages_show_of_a_url_its_host_alone():
    with receiver() as server:
        server.always = 500
        with pytest.raises(BackendAwayError) as raised:
            open_webhook(f"{server.url}/services/T0/secret?key=secret").export(DEMO[:1])
    assert str(raised.value) == f"{server.url} answered 500 Internal Server Error"


# Choosing


def test_options_come_from_a_file_and_from_the_command_line_on_top(tmp_path):
    path = tmp_path / "sapflow.toml"
    path.write_text('[other]\nx = 1\n[exporters.webhook]\nurl = "http://a/"\ntimeout = 3.0\n[exporters.jsonlines]\n')
    assert chosen((), path, ()) == {"webhook": {"url": "http://a/", "timeout": 3.0}, "jsonlines": {}}
    assert chosen(("webhook",), path, ("webhook.url=http://b/", "webhook.timeout=4")) == {
        "webhook": {"url": "http://b/", "timeout": 4}
    }
    deep = "[" * 5_000  # which is TOML that nobody can read
    assert chosen(("jsonlines",), None, (f"jsonlines.path={deep}",)) == {"jsonlines": {"path": deep}}


@pytest.mark.parametrize(
    ("names", "text", "options", "words"),
    [
        (("webhok",), "", (), "did you mean webhook?"),
        (("x",), "", (), "there are "),
        ((), "", (), "--export"),
        (("webhook",), "exporters = 3", (), "holds tables"),
        (("webhook",), "[exporters]\nwebhook = 3", (), "holds tables"),
        (("webhook",), "[exporters.webhook]\nulr = 3", (), "no option 'ulr'"),
        (("webhook",), "[exporters.webhook]\nurl = 3", (), "$.url"),
        (("webhook",), "[exporters.nobody]", (), "no exporter 'nobody'"),
        (("webhook",), "[exporters", (), "no TOML"),
        (("webhook",), "\0", (), "no TOML"),
        (("webhook",), "#" * 70_000, (), "too large"),
        (("webhook",), "", ("webhook.url",), "is no option"),
        (("webhook",), "", ("url=3",), "is no option"),
        (("jsonlines",), "", ('jsonlines.path="a\\u0000"',), "option path of exporter jsonlines has a zero byte"),
        (("prometheus",), "", ("prometheus.max_seeds=-1",), "$.max_seeds"),
        (("prometheus",), "", ("prometheus.port=" + "9" * 5_000,), "$.port"),
        (("webhook",), "", ("jsonlines.path=x",), "add --export jsonlines"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(tmp_path, names, text, options, words):
    path = tmp_path / "sapflow.toml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        chosen(names, path, options)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def own_exporter(tmp_path: Path, monkeypatch, code: str) -> None:
    (tmp_path / "site").mkdir()
    info = tmp_path / "site" / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sapflow.exporters]\nmine = mine_exporter:open_it\nwebhook = x:y\n")
    (tmp_path / "site" / "mine_exporter.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(os.sys.modules, "mine_exporter", raising=False)


def test_people_bring_exporters_of_their_own(tmp_path, monkeypatch):
    own_exporter(tmp_path, monkeypatch, "def open_it(setting): return ['opened', setting.options['x']]")
    assert "mine" in registry.names()
    opened = registry.open_exporter(Setting(name="mine", run_dir=tmp_path, run=RunIdentity("r"), options={"x": 3}))
    assert opened == ["opened", 3]


@pytest.mark.parametrize("code", ["raise RuntimeError('no')", "def open_it(setting): 1 / 0", "open_that = 1"])
def test_an_exporter_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, code):
    own_exporter(tmp_path, monkeypatch, code)
    with pytest.raises(InputError, match="the exporter mine of mine_exporter:open_it cannot be opened"):
        registry.open_exporter(Setting(name="mine", run_dir=tmp_path, run=RunIdentity("r")))


def test_memory_is_bounded_by_the_batch(tmp_path):
    run_dir = finished_run(tmp_path / "run", *(epoch_completed(epoch) for epoch in range(1, 5_001)), run_completed())
    backend = Backend()
    follow(run_dir, backend)
    assert len(backend.taken) == 5_001
    assert backend.largest == follower.BATCH_EVENTS


def test_the_end_of_an_exporter_that_fails_is_told(run_dir):
    class Bad(Backend):
        def close(self):
            raise ValueError("not flushed")

    with pytest.raises(SapflowError, match="not flushed"):
        follow(run_dir, Bad())


# The page


def test_the_page_on_exporting_names_every_exporter_its_options_and_its_extra():
    import msgspec

    root = Path(__file__).parents[1]
    page = (root / "docs" / "exporting.md").read_text(encoding="utf-8")
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", page, re.MULTILINE))
    assert {name for name in rows if name in registry.BUILT_IN} == set(registry.BUILT_IN)
    for name, built_in in registry.BUILT_IN.items():
        assert rows[name] == (f"`{name}`" if built_in.package else "–")
        assert (name in extras) == bool(built_in.package)
        for option in msgspec.structs.fields(import_module(f"sapflow.exporters.{built_in.module}").Options):
            assert f"`{option.name}`" in page or f".{option.name}=" in page, (name, option.name)


def test_the_configuration_on_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "exporting.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[exporters." in block]
    (tmp_path / "sapflow.toml").write_text(example)
    assert set(chosen((), tmp_path / "sapflow.toml", ())) == {"webhook", "jsonlines"}


def test_the_page_names_only_metrics_that_are_exported():
    pytest.importorskip("prometheus_client")
    from sapflow.exporters import prometheus, series

    page = (Path(__file__).parents[1] / "docs" / "exporting.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(sapflow_\w+)`", page))
    made = {prometheus.metric_name(one) for one in (*series.SEED_SERIES, *series.ENV_GAUGES)}
    made |= {prometheus.metric_name(one, "total") for one in series.ENV_COUNTERS}
    state = {"sapflow_alert_open", "sapflow_run_info", "sapflow_run_state", "sapflow_envs",
             "sapflow_last_event_timestamp_seconds", "sapflow_seeds_left_out", "sapflow_envs_left_out"}  # fmt: skip
    assert named <= made | state
    assert state <= named
