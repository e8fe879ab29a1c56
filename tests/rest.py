"""Textual's pilot waits until the process idles, and looks 50 times a second; here it asks the event loop."""

import asyncio
from typing import Any

import textual.app
import textual.pilot

FRAME = 1 / 50  # a screen draws what has changed at most 60 times a second


async def until_the_loop_rests(*_seconds: float) -> None:
    """Until nothing is to be done, and nothing will be within a frame: what a key led to has happened and is drawn."""
    loop: Any = asyncio.get_running_loop()
    deadline = loop.time() + 1.0
    while loop.time() < deadline:
        await asyncio.sleep(0)
        if loop._ready:
            continue
        due = min((timer.when() for timer in loop._scheduled if not timer.cancelled()), default=deadline) - loop.time()
        if due > FRAME:
            return
        await asyncio.sleep(max(due, 0.0))


textual.app.wait_for_idle = textual.pilot.wait_for_idle = until_the_loop_rests
