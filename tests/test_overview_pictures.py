"""What Sanctum's overview and help look like, to the cell: in every state of a run, at three sizes, in two themes."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

import snapshots
from sanctum_events import START, FakeSource, demo_run, epoch, event, seed, seeds_of, unmeasured
from sanctum_pilot import sanctum
from sapflow.sanctum.app import SanctumApp
from sapflow.telemetry.events import EnvFailed, EnvStarted, TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.source import RunState, RunStatus, Source
from sapflow.telemetry.vocabulary import Measurement

SIZES = ((80, 24), (100, 30), (200, 60))
THEMES = ("dark", "light")
LAST, LATER = START + 31.5, START + 42.0  # the demo's last event, and the clock


def healthy() -> list[TelemetryEvent]:
    seeds = seed("early", 0.97), seed("mid", 1.2, blueprint_id="norm")
    return [event(epoch(number, *seeds, open_alerts=()), env_id, number) for number in (1, 2, 3) for env_id in (0, 1)]


def unhealthy() -> list[TelemetryEvent]:
    """Everything that can be wrong, with a hole in an env's events, beside the demo's own troubles."""
    wrong = (
        unmeasured("lost", Measurement.PROBE_LOST, "it ran forward and its probe never fired"),
        unmeasured("nan", Measurement.NON_FINITE, non_finite_passes=64, has_exploding=True),
        seed("dead", 0.0, entering_norm=1.0, leaving_norm=0.0),
    )
    return [
        *demo_run(),
        event(EnvStarted(host="digits-cnn-4", host_params=9, slot_ids=("lost", "nan", "dead"), epochs=40), 4, 0),
        event(epoch(3, *wrong, accuracy=float("nan")), 4, 3),
        event(EnvStarted(host="digits-cnn-5", host_params=9, slot_ids=("early",), epochs=40), 5, 0),
        event(EnvFailed(epoch=1, error="[red]out of memory[/]\nat step 3"), 5, 1),
        event(epoch(2, *seeds_of(0, 2)), 6, 0),
    ]


STATES: dict[str, tuple[Callable[[], list[TelemetryEvent]], RunStatus]] = {
    "empty": (list, RunStatus(state=RunState.LIVE)),
    "healthy": (healthy, RunStatus(state=RunState.LIVE, last_event_time=START)),
    "unhealthy": (
        unhealthy,
        RunStatus(state=RunState.LIVE, last_event_time=LAST, dropped_events=3, dropped_samples=7, skipped=2),
    ),
    "lagging": (
        demo_run,
        RunStatus(state=RunState.LIVE, last_event_time=LATER, unread=120, notice="the journal is on a network"),
    ),
    "dead-trainer": (demo_run, RunStatus(state=RunState.ENDED, last_event_time=LAST)),
}


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of day are those of Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@asynccontextmanager
async def replay(tmp_path: Path, size: tuple[int, int]) -> AsyncIterator[tuple[SanctumApp, FakeSource, Pilot[None]]]:
    """The app on a run that was cut off, at the end of its seventh epoch."""
    journal = Journal(tmp_path)
    for each in demo_run():
        journal.emit(each)
    journal.close()
    with Source(tmp_path) as source:
        app = SanctumApp(source, poll_seconds=3600, clock=lambda: LATER)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            app.go_to(7)
            await pilot.pause()
            yield app, FakeSource([]), pilot


def texts(app: SanctumApp) -> str:
    """What stands on the screen, without the blanks at the ends of the lines and without its colours."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", [*STATES, "replay"])
async def test_the_overview_looks_as_it_did(state: str, size: tuple[int, int], tmp_path: Path) -> None:
    name = f"overview-{state}-{size[0]}x{size[1]}"
    if state == "replay":
        opened = replay(tmp_path, size)
    else:
        events, status = STATES[state]
        opened = sanctum(events(), size, status)
    async with opened as (app, _, pilot):
        shots = {"texts": texts(app)}
        for theme in THEMES if size == (80, 24) else ():
            app.theme = theme
            await pilot.pause()
            shots[theme] = snapshots.drawn(app)
    snapshots.check(name, shots)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    ("name", "keys"),
    [("dense", ("v", "v")), ("help", ("question_mark",)), ("search", ("slash", "n", "o")), ("filter", ("4",))],
)
async def test_what_its_keys_show_looks_as_it_did(name: str, keys: tuple[str, ...], size: tuple[int, int]) -> None:
    async with sanctum(unhealthy(), size, STATES["unhealthy"][1]) as (app, _, pilot):
        await pilot.press(*keys)
        app.clear_notifications()
        await pilot.pause()
        await pilot.pause()
        shown = texts(app)
    snapshots.check(f"overview-{name}-{size[0]}x{size[1]}", {"texts": shown})
