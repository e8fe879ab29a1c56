"""The app on a real journal: what is on disk can be looked up, and the trainer may go on writing."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from journals import PATIENCE
from sapflow.sanctum.app import SanctumApp
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.mailbox import Mailbox
from sapflow.telemetry.run_directory import TrainerLock
from sapflow.telemetry.source import Source


@dataclass
class Sitting:
    """A person before the app; it looks at the journal only when a test says so."""

    app: SanctumApp
    pilot: Pilot[None]
    journal: Journal
    let_the_trainer_go: Callable[[], None]

    @property
    def lines(self) -> list[str]:
        """What stands on the terminal."""
        return ["".join(part.text for part in strip) for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def words(self) -> str:
        """The same without frames and line breaks."""
        return " ".join(self.text.translate(str.maketrans("│┃", "  ")).split())

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
        await self.settle()

    async def settle(self) -> None:
        """Until everything has its place and is drawn there: a layout may lead to another one."""
        for _ in range(3):
            await self.pilot.pause()

    async def write(self, *events: TelemetryEvent) -> None:
        """The trainer writes, and the app looks."""
        for event in events:
            self.journal.emit(event)
        assert self.journal.flush(PATIENCE)
        while self.app.read_batch():
            pass
        await self.app.show()
        await self.pilot.pause()


@asynccontextmanager
async def sitting(
    run_dir: Path,
    events: Iterable[TelemetryEvent],
    size: tuple[int, int] = (100, 30),
    live: bool = True,
    read_only: bool = False,
    takes_requests: bool = True,
    **how: Any,
) -> AsyncIterator[Sitting]:
    """Sanctum on a run that has said `events`; while it is `live`, a trainer holds it; `how` is for the app.

    With `takes_requests` it has a mailbox, as where something grows.
    """
    run_dir.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        trainer = stack.enter_context(ExitStack())
        if takes_requests:
            Mailbox(run_dir).open()
        if live:
            trainer.enter_context(TrainerLock(run_dir))
        journal = Journal(run_dir)
        stack.callback(journal.close)
        for event in events:
            journal.emit(event)
        assert journal.flush(PATIENCE)
        if not live:
            journal.close()
        source = stack.enter_context(Source(run_dir))
        app = SanctumApp(source, poll_seconds=3600, read_only=read_only, **how)
        pilot = await stack.enter_async_context(app.run_test(size=size))
        await pilot.pause()
        now = Sitting(app, pilot, journal, trainer.close)
        while app.read_batch():
            pass
        await app.show()
        await pilot.pause()
        yield now
