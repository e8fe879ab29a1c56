"""Draws a run as Sanctum shows it, into SVG files that name no host."""

import argparse
import asyncio
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.screenshot import without_web
from sapflow.telemetry.run_directory import JOURNAL_NAME, TrainerLock
from sapflow.telemetry.source import Source

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


@contextmanager
def as_it_stood(run_dir: Path, epoch: int) -> Iterator[Path]:
    """A copy of the run, live, of which no later epoch is known."""
    with TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(run_dir, Path(folder) / run_dir.name))
        with closing(sqlite3.connect(copied / JOURNAL_NAME)) as journal, journal:
            journal.execute("DELETE FROM events WHERE id >= (SELECT min(id) FROM events WHERE epoch > ?)", (epoch,))
        with TrainerLock(copied):
            yield copied


async def draw(run_dir: Path, out_dir: Path, wanted: Collection[str]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for size in (SMALL, LARGE):
        with Source(run_dir) as source:
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
    shown = nullcontext(options.run_dir) if options.epoch is None else as_it_stood(options.run_dir, options.epoch)
    with shown as run_dir:
        asyncio.run(draw(run_dir, options.out_dir, options.only))


if __name__ == "__main__":
    main()
