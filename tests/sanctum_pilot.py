"""Sanctum in the tests' hands: the app on a source of events, with a clock that stands."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from sanctum_events import START, FakeSource
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import RunStatus


@asynccontextmanager
async def sanctum(
    events: Iterable[TelemetryEvent],
    size: tuple[int, int] = (100, 30),
    status: RunStatus | None = None,
    elapsed: float = 42.0,
) -> AsyncIterator[tuple[SanctumApp, FakeSource, Pilot[None]]]:
    """The app on a source that holds `events`; it polls only when a test says so."""
    source = FakeSource(list(events), status)
    app = SanctumApp(source, poll_seconds=3600, clock=lambda: START + elapsed)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        yield app, source, pilot


async def arrive(app: SanctumApp, source: FakeSource, pilot: Pilot[None], *events: TelemetryEvent) -> None:
    """New events come, and the app looks."""
    source.events.extend(events)
    await app.follow()
    await pilot.pause()


def screen_lines(app: SanctumApp) -> list[str]:
    """What stands on the terminal."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def screen_text(app: SanctumApp) -> str:
    return "\n".join(screen_lines(app))


def focused(app: SanctumApp) -> int | None:
    """The env that the cursor stands on."""
    return app.screen.query_one(EnvGrid).cursor


def shown_envs(app: SanctumApp) -> list[int]:
    """The envs on the overview, in their order."""
    return [env.env_id for env in app.screen.query_one(EnvGrid).envs]
