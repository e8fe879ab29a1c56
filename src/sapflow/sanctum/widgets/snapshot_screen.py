"""The base of the screens that follow the run."""

from textual.screen import Screen

from sapflow.sanctum.schema import SanctumSnapshot


class SnapshotScreen(Screen[None]):
    """A screen that is shown every new snapshot while it is the active one."""

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws `snapshot`; `notice` says what went wrong with following the run, if anything did."""
        raise NotImplementedError
