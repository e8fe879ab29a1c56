"""Whatever a stranger's journal says, and whatever becomes of it: no text leaves its place, and the app goes on."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sanctum_events import demo_run, epoch, event, seed
from sanctum_pilot import sanctum, screen_lines
from sapflow.sanctum.app import SanctumApp
from sapflow.telemetry import codec
from sapflow.telemetry.events import (
    Alert,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    Payload,
    RunStarted,
    SeedPruned,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.journal_layout import INSERT_EVENT
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity

# Any text at all, and more of what has a meaning to terminals, to markup, or to the eye.
NASTY = (
    "[bold]",
    "[/]",
    "\x1b[2J",
    "\x1b]52;c;AAAA\x07",
    "\x9b31m",
    "\u202e",
    "\u200b",
    "\n",
    "\r",
    "\t",
    "\0",
    "漢字",
    "🦠",
    "e\u0301" * 9,
)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(NASTY), max_size=12).map("".join),
    st.builds(lambda part, times: part * times, st.sampled_from(NASTY), st.integers(1_000, 3_000)),
)
numbers = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(0, 2**53)


@st.composite
def seeds(draw: st.DrawFn) -> object:
    return seed(
        draw(texts),
        0.0,
        grad_ratio=draw(numbers),
        seed_id=draw(texts),
        blueprint_id=draw(texts),
        stage=draw(st.sampled_from(SeedStage)),
        measurement=draw(st.sampled_from(Measurement)),
        measurement_reason=draw(texts),
        evidence=draw(texts),
        alpha=draw(numbers),
        accuracy_delta=draw(numbers),
        entering_norm=draw(numbers),
        leaving_norm=draw(numbers),
        min_ratio=draw(numbers),
        max_ratio=draw(numbers),
        last_ratio=draw(numbers),
        has_vanishing=draw(st.booleans()),
        has_exploding=draw(st.booleans()),
        passes=draw(counts),
        epochs_in_stage=draw(counts),
        seed_params=draw(counts),
        masked_values=draw(counts),
    )


alerts = st.builds(
    Alert,
    rule=texts,
    severity=st.sampled_from(Severity),
    slot_id=texts,
    seed_id=texts,
    blueprint_id=texts,
    since_epoch=counts,
    value=numbers,
    evidence=texts,
    actions=st.lists(texts, max_size=2).map(tuple),
)
epochs = st.builds(
    lambda number, these, accuracy, loss, alert: epoch(
        number, *these, accuracy=accuracy, train_loss=loss, validation_loss=loss, open_alerts=tuple(alert)
    ),
    counts,
    st.lists(seeds(), max_size=3),
    numbers,
    numbers,
    st.lists(alerts, max_size=2),
)
payloads: st.SearchStrategy[Payload] = st.one_of(
    epochs,
    st.builds(
        EnvStarted, host=texts, host_params=counts, slot_ids=st.lists(texts, max_size=3).map(tuple), epochs=counts
    ),
    st.builds(EnvFailed, epoch=counts, error=texts),
    st.builds(EnvCompleted, epoch=counts),
    st.builds(AlertRaised, epoch=counts, alert=alerts),
    st.builds(
        SeedPruned, epoch=counts, slot_id=texts, seed_id=texts, blueprint_id=texts, stage=st.sampled_from(SeedStage),
        rule=texts, grad_ratio=numbers, evidence=texts,
    ),
)  # fmt: skip


@st.composite
def stories(draw: st.DrawFn) -> list[TelemetryEvent]:
    """Events of a few envs, in any order and number, from a run of any name."""
    run = RunStarted(task=draw(texts), envs=draw(counts), epochs=draw(counts), rng_seed=0)
    envs, order = st.integers(0, 2**31 - 1) | st.integers(0, 2), st.integers(0, 20)
    told = draw(st.lists(st.builds(event, payloads, envs, order, numbers), max_size=8))
    return [event(run, None, 0, draw(numbers)), *told]


def nothing_escapes(app: SanctumApp, size: tuple[int, int]) -> None:
    """Each line has its cells and prints; nothing says that it could not be drawn."""
    lines = screen_lines(app)
    assert len(lines) == size[1]
    for strip, line in zip(app.screen._compositor.render_strips(), lines, strict=True):
        assert strip.cell_length == size[0]
        assert line.isprintable(), line
    assert "cannot draw" not in "\n".join(lines)
    assert app.shown.left_out == 0


@given(stories(), st.sampled_from([(80, 24), (100, 30), (33, 12)]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
async def test_no_text_of_a_journal_escapes_its_place(story: list[TelemetryEvent], size: tuple[int, int]) -> None:
    async with sanctum(story, size) as (app, _, pilot):
        for keys in ((), ("v", "v"), ("v", "s"), ("slash", "a", "enter", "escape"), ("enter",)):
            await pilot.press(*keys)
            await pilot.pause()
            nothing_escapes(app, size)
            assert not app._failure
        assert app.is_running


def insert(path: Path, *rows: tuple[object, ...]) -> None:
    connection = sqlite3.connect(path)
    connection.executemany(INSERT_EVENT, rows)
    connection.commit()
    connection.close()


def grown(path: Path) -> None:
    new = event(epoch(15, seed("early", 1.0)), 0, 1_000)
    insert(path, (0, 1_000, 15, "EPOCH_COMPLETED", new.time, codec.encode(new)))


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    shutil.rmtree(path.parent)


def another(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.commit()
    connection.close()


def of_a_newer_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()


def noise(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(random.Random(7).randbytes(max(path.stat().st_size - 4_096, 0)))


def foreign_events(path: Path) -> None:
    insert(path, ("x", None, -1, "WHAT", "then", b"\0"), (0, 1, 1, "EPOCH_COMPLETED", 1, "text"))


@pytest.mark.parametrize("becomes", [grown, cut, emptied, gone, another, of_a_newer_version, noise, foreign_events])
async def test_the_app_goes_on_whatever_becomes_of_the_journal(tmp_path: Path, becomes: Callable[[Path], None]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    journal = Journal(run_dir)
    for each in demo_run():
        journal.emit(each)
    journal.close()
    with Source(run_dir) as source:
        app = SanctumApp(source, poll_seconds=3600)
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.pause()
            becomes(run_dir / JOURNAL_NAME)
            for keys in (
                (),
                ("enter",),
                ("escape", "e"),
                ("escape", "a"),
                ("escape", "comma"),
                ("L",),
                ("c",),
                ("escape",),
            ):
                await pilot.press(*keys)
                await app.follow()
                await pilot.pause()
                nothing_escapes(app, (100, 30))
            assert "env 03" in "\n".join(screen_lines(app))
            if becomes is grown:
                assert app.snapshot.envs[0].epoch == 15
