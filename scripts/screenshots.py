"""Draws a run as Sanctum shows it, into SVG files that name no host."""

import argparse
import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec.structs import replace

from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.screenshot import without_web
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import MAX_READ_BYTES, RunState, RunStatus, Source
from sapflow.telemetry.vocabulary import EventType

SMALL, LARGE = (100, 30), (200, 60)
IN_BOTH = ("overview", "detail", "seed")  # the others are drawn small alone
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


async def draw(run_dir: Path, out_dir: Path, epoch: int | None, wanted: Collection[str]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for size in (SMALL, LARGE):
        with Source(run_dir) if epoch is None else EarlierSource(run_dir, epoch) as source:
            app = SanctumApp(source, clock=lambda: source.status().last_event_time or 0.0)
            async with app.run_test(size=size) as pilot:
                while app.read_batch():
                    pass
                await app.show()
                await pilot.pause()
                for name, keys in SCREENS.items():
                    await pilot.press(*keys)
                    await pilot.pause()
                    if name in wanted and (size == SMALL or name in IN_BOTH):
                        save(app, out_dir / f"{name}-{size[0]}x{size[1]}.svg")


def save(app: SanctumApp, path: Path) -> None:
    path.write_text(without_web(app.export_screenshot()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--epoch", type=int, help="draw the run as it stood live when this had ended")
    parser.add_argument("--only", nargs="+", choices=SCREENS, default=list(SCREENS), help="these screens")
    options = parser.parse_args()
    asyncio.run(draw(options.run_dir, options.out_dir, options.epoch, options.only))


if __name__ == "__main__":
    main()
