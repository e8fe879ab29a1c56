"""The base of the screens that follow the run."""

from collections.abc import Sequence

from textual.screen import Screen
from textual.widget import Widget

from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.sanctum.widgets.time_bar import TimeBar


class SnapshotScreen(Screen[None]):
    """A screen that is shown every new snapshot while it is the active one."""

    _time_bar: TimeBar | None = None
    _before_time_bar: Widget | None = None
    _offered_for: object = None

    async def on_mount(self) -> None:
        """Shows the run before the first frame is drawn, so that no frame shows what is not so."""
        await shell(self).show()

    @property
    def subject(self) -> Subject:
        """What the person looks at, which the keys of the operator's hand are about."""
        return Subject()

    @property
    def card(self) -> Sequence[Line]:
        """What is in focus, as it is copied; nothing where there is no such thing."""
        return ()

    def offer_for(self, state: object) -> None:
        """Which keys work depends on `state`: where that is another one now, they are looked at again."""
        if state != self._offered_for:
            self._offered_for = state
            self.refresh_bindings()

    async def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws `snapshot`; `notice` says what went wrong with following the run, if anything did."""
        raise NotImplementedError

    def show_time(self, snapshot: SanctumSnapshot) -> None:
        """Draws the time bar, where there is one."""
        if self._time_bar is not None:
            self._time_bar.show(snapshot)

    async def toggle_time_bar(self) -> None:
        """Mounts a time bar above the last widget, the key bar; or takes it away: what had the focus has it again."""
        if self._time_bar is None:
            self._before_time_bar = self.focused
            self._time_bar = TimeBar()
            await self.mount(self._time_bar, before=-1)
        else:
            await self._time_bar.remove()
            self._time_bar = None
            self.set_focus(self._before_time_bar)
