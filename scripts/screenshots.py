"""Draws a run as Sanctum shows it, into SVG files that name no host: screenshots.py RUN_DIR OUT_DIR."""

import asyncio
import re
import sys
from pathlib import Path

from sapflow.sanctum.app import SanctumApp
from sapflow.telemetry.source import Source

SIZES = ((100, 30), (200, 60))
# The exporter names fonts on the web (without them the viewer's own monospace font is used) and its makers' site.
WEB = re.compile(r"@font-face\s*\{.*?\}|<!--.*?-->", re.DOTALL)


async def draw(run_dir: Path, out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        with Source(run_dir) as source:
            app = SanctumApp(source)
            async with app.run_test(size=(width, height)) as pilot:
                while app.read_batch():
                    pass
                await app.show()
                await pilot.pause()
                save(app, out_dir / f"overview-{width}x{height}.svg")
                await pilot.press("enter")
                await pilot.pause()
                save(app, out_dir / f"detail-{width}x{height}.svg")


def save(app: SanctumApp, path: Path) -> None:
    path.write_text(WEB.sub("", app.export_screenshot()), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: screenshots.py RUN_DIR OUT_DIR")
    asyncio.run(draw(Path(sys.argv[1]), Path(sys.argv[2])))
