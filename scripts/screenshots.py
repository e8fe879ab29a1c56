"""Draws a run as Sanctum shows it, into SVG files that name no host: screenshots.py RUN_DIR OUT_DIR [EPOCH].

With an epoch, the run is drawn as it stood live when that epoch had ended.
"""

import asyncio
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec.structs import replace

from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.screenshot import without_web
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import MAX_READ_BYTES, RunState, RunStatus, Source
from sapflow.telemetry.vocabulary import EventType

SIZES = ((100, 30), (200, 60))
# Each screen, by the keys that lead there from the one before.
SCREENS = {
    "overview": (),
    "detail": ("enter",),
    "seed": ("enter",),
    "alerts": ("escape", "escape", "a"),
    "events": ("escape", "e"),
    "compare": ("escape", "c"),
    "dense": ("escape", "v", "v"),
}


class EarlierSource(Source):
    """A run as a reader saw it while it was live, up to the end of an epoch."""

    def __init__(self, path: Path, epoch: int) -> None:
        super().__init__(path)
        self.epoch = epoch
        self.last_time: float | None = None
        self.over = False

    def stream(self, limit: int = 5_000, max_bytes: int = MAX_READ_BYTES) -> Iterator[TelemetryEvent]:
        """As every source, until the first event of a later epoch."""
        if self.over:
            return
        for event in super().stream(limit, max_bytes):
            if (event.epoch or 0) > self.epoch:
                self.over = True
                return
            self.last_time = event.time
            yield event

    def events(
        self,
        types: Collection[EventType],
        env_id: int | None = None,
        first_epoch: int | None = None,
        last_epoch: int | None = None,
        limit: int = 500,
    ) -> list[TelemetryEvent]:
        """As every source, but for what came later."""
        last_epoch = self.epoch if last_epoch is None else min(last_epoch, self.epoch)
        return super().events(types, env_id, first_epoch, last_epoch, limit)

    def status(self) -> RunStatus:
        """Live, as of the last event read."""
        return replace(super().status(), state=RunState.LIVE, last_event_time=self.last_time)


async def draw(run_dir: Path, out_dir: Path, epoch: int | None) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        with Source(run_dir) if epoch is None else EarlierSource(run_dir, epoch) as source:
            app = SanctumApp(source, clock=lambda: source.status().last_event_time or 0.0)
            async with app.run_test(size=(width, height)) as pilot:
                while app.read_batch():
                    pass
                await app.show()
                await pilot.pause()
                for name, keys in SCREENS.items():
                    await pilot.press(*keys)
                    await pilot.pause()
                    save(app, out_dir / f"{name}-{width}x{height}.svg")


def save(app: SanctumApp, path: Path) -> None:
    path.write_text(without_web(app.export_screenshot()), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: screenshots.py RUN_DIR OUT_DIR [EPOCH]")
    asyncio.run(draw(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else None))
