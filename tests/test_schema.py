"""The schema is public: what was ever released is read, what is published is written, and the page is current."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

import sapflow
from commands import SAPFLOW, finish, iter_events
from sanctum_events import demo_run
from sapflow.exporters.json_form import json_form
from sapflow.history.restoring import with_journal
from sapflow.history.rolling import roll
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.telemetry import codec
from sapflow.telemetry.events import PAYLOADS, SCHEMA_VERSION
from sapflow.telemetry.json_schema import event_schema
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import RunState, Source

ROOT = Path(__file__).parents[1]
JOURNALS = sorted((ROOT / "tests" / "fixtures" / "journals").iterdir())
CURRENT = ROOT / "tests" / "fixtures" / "journals" / f"{sapflow.__version__}-schema-{SCHEMA_VERSION}"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def written(folder: Path) -> list[dict[str, object]]:
    """What the version that wrote the journal said of it."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def read(folder: Path) -> list[dict[str, object]]:
    """What this version reads, in the same form."""
    with Source(folder) as source:
        events = list(iter_events(source))
        assert source.skipped == {}
        assert source.status().state is RunState.COMPLETED
    return [
        {
            "env_id": event.env_id,
            "sequence": event.sequence,
            "time": event.time,
            "type": event.type.value,
            "payload": msgspec.to_builtins(event.payload),
        }
        for event in events
    ]


def lines(events: list[dict[str, object]]) -> list[str]:
    return [json.dumps(event, sort_keys=True) for event in events]


@pytest.mark.parametrize("folder", JOURNALS, ids=lambda folder: folder.name)
def test_every_journal_that_was_ever_written_is_read_whole(folder):
    assert lines(read(folder)) == lines(written(folder))


@pytest.mark.parametrize("folder", JOURNALS, ids=lambda folder: folder.name)
def test_sanctum_shows_it(folder):
    aggregator = SanctumAggregator()
    with Source(folder) as source:
        for event in iter_events(source):
            aggregator.apply(event)
    snapshot = aggregator.snapshot()
    assert (snapshot.run_id, snapshot.task, snapshot.duplicates) == ("fixture", "task", 0)
    assert snapshot.envs[3].seeds["slot_id"].blueprint_id == "blueprint_id"


@pytest.mark.parametrize("folder", JOURNALS, ids=lambda folder: folder.name)
def test_the_tables_have_it_and_so_has_parquet(folder, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / JOURNAL_NAME).write_bytes((folder / JOURNAL_NAME).read_bytes())
    with sapflow.open_run(run_dir) as run:
        assert run.summary.skipped == {}
        assert run.summary.task == "task"
        assert repr(run.gradients().column("ratio").to_pylist()) == "[0.5, nan, nan, 2.5]"
        tables = [run.batches(name).read_all().to_pylist() for name in ("epochs", "seeds", "alerts", "events")]
    epochs, seeds, alerts, events = tables
    assert [row["slot"] for row in epochs] == ["slot_id", "empty"]
    assert {row["seed"] for row in seeds} == {row["seed"] for row in alerts} == {"seed_id"}
    assert [row["type"] for row in events] == [event["type"] for event in written(folder)]
    roll(run_dir, remove_journal=True)
    with with_journal(run_dir) as restored:
        assert lines(read(restored)) == lines(written(folder))


@pytest.mark.usefixtures("scripts")
def test_a_journal_of_this_version_is_kept_with_every_event_and_field():
    import journal_fixture

    told = [json.loads(json.dumps(journal_fixture.as_json(event))) for event in journal_fixture.events()]
    assert lines(written(CURRENT)) == lines(told), "the schema has changed: see CONTRIBUTING.md"
    assert {event["type"] for event in told} == set(PAYLOADS)


def test_a_newer_schema_is_skipped_and_counted():
    event = demo_run(1)[0]
    newer = codec.encode(event).replace(b"\xa6schema\x01", b"\xa6schema\x7f")
    with pytest.raises(sapflow.errors.UnreadableEventError, match="newer schema: 127"):
        codec.decode(newer)


def test_the_published_schema_is_what_is_written():
    validator = jsonschema.Draft202012Validator(event_schema())
    validator.check_schema(event_schema())
    with Source(CURRENT) as source:
        events = [*iter_events(source), *demo_run(completed=True)]
    for event in events:
        validator.validate(json.loads(json.dumps(json_form(event, "key"), allow_nan=False)))
    assert {event.type.value for event in events} == set(PAYLOADS)


@pytest.mark.parametrize(
    ("change", "value"),
    [(("type",), "UNHEARD_OF"), (("payload", "epoch"), "three"), (("payload", "slot_id"), None), (("time",), "now")],
)
def test_the_published_schema_refuses_what_is_no_event(change, value):
    form = json_form(next(event for event in demo_run(1) if event.type == "GRADIENT_SAMPLED"), "key")
    *path, last = change
    place = form
    for name in path:
        place = place[name]
    place[last] = value
    assert not jsonschema.Draft202012Validator(event_schema()).is_valid(form)


@pytest.mark.usefixtures("scripts")
def test_the_page_of_events_is_current():
    import event_page

    assert event_page.PAGE.read_text(encoding="utf-8") == event_page.page(), "run `make events`"


def test_the_command_prints_the_schema(tmp_path):
    done = finish((*SAPFLOW, "schema"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(json.dumps(event_schema()))
