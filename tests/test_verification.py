"""The verification finds every wire whole, and every one that is cut."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from sapflow.cli import run as sapflow
from sapflow.gradients import gradient_monitor
from sapflow.growth.slot import SeedState
from sapflow.sanctum import formatting, reducers
from sapflow.telemetry import codec
from sapflow.telemetry.events import EpochCompleted
from sapflow.telemetry.record_page import render
from sapflow.telemetry.records import FIELDS, all_records, record, record_of
from sapflow.verification import verify, verify_all

PAGES = Path(__file__).parents[1] / "docs" / "records"


@pytest.fixture(scope="module")
def tested() -> dict[str, bool]:
    return verify_all()


def test_every_record_is_tested(tested):
    assert tested == {record_of(field).id: True for field in FIELDS}


def test_the_committed_pages_have_the_ticks_that_the_verification_gives(tested):
    for entry in all_records():
        assert (PAGES / f"{entry.id}.md").read_text(encoding="utf-8") == render(entry, tested[entry.id])


def test_each_station_shows_the_value():
    (trace,) = verify(["TELE-557"])
    assert [station.name for station in trace.stations] == [
        "GradientMonitor", "SeedState", "SeedTelemetry", "EPOCH_COMPLETED", "journal by index", "snapshot",
        "not the default", "SeedCard",
    ]  # fmt: skip
    for station in trace.stations[:6]:
        assert float(station.value) == pytest.approx(0.85, rel=1e-6)
    assert trace.stations[-1].value == "Grad: ratio=0.85"


def broken_at(record_id: str) -> str:
    (trace,) = verify([record_id])
    assert trace.broken
    return next(station.name for station in trace.stations if not station.holds)


def test_a_monitor_that_measures_wrongly_is_found(monkeypatch):
    real = gradient_monitor.health_of
    monkeypatch.setattr(
        gradient_monitor, "health_of", lambda *a: replace(h := real(*a), grad_ratio=h.grad_ratio * 1.01)
    )  # fmt: skip
    assert broken_at("TELE-557") == "GradientMonitor"


def test_a_state_that_keeps_the_value_to_itself_is_found(monkeypatch):
    real = SeedState.telemetry
    monkeypatch.setattr(SeedState, "telemetry", lambda self: replace(real(self), grad_ratio=0.0))
    assert broken_at("TELE-557") == "SeedTelemetry"


def test_an_event_that_loses_the_value_is_found(monkeypatch):
    real = codec.encode

    def lossy(event):
        if isinstance(event.payload, EpochCompleted):
            seeds = tuple(replace(seed, passes=0) for seed in event.payload.seeds)
            event = replace(event, payload=replace(event.payload, seeds=seeds))
        return real(event)

    monkeypatch.setattr(codec, "encode", lossy)
    assert broken_at("TELE-563") == "EPOCH_COMPLETED"


def test_a_snapshot_that_drops_the_value_is_found(monkeypatch):
    real = reducers.SeedState.from_telemetry
    monkeypatch.setattr(
        reducers.SeedState, "from_telemetry", lambda t, **rest: real(replace(t, evidence=""), **rest)
    )  # fmt: skip
    assert broken_at("TELE-571") == "snapshot"


@pytest.mark.parametrize("span", [("ratio=0.9", "green"), ("ratio=0.85", "red"), ("", "")])
def test_a_card_that_shows_it_wrongly_is_found(monkeypatch, span):
    monkeypatch.setattr(formatting, "gradient_line", lambda seed: (("Grad: ", ""), span))
    assert broken_at("TELE-557") == "SeedCard"


def test_the_command_says_so_with_its_exit_code(monkeypatch, capsys):
    assert sapflow(["records", "verify", "557"]) == 0
    assert "ratio=0.85" in capsys.readouterr().out
    real = SeedState.telemetry
    monkeypatch.setattr(SeedState, "telemetry", lambda self: replace(real(self), grad_ratio=0.0))
    assert sapflow(["records", "verify", "TELE-557"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_files_that_the_records_name_exist():
    house = Path(__file__).parents[1] / "src" / "sapflow"
    named = {stage.file for entry in all_records() for stage in entry.transport}
    assert named
    assert [file for file in sorted(named) if not (house / file).is_file()] == []
    assert record("TELE-557").path == "snapshot.envs[env_id].seeds[slot_id].grad_ratio"
