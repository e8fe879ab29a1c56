"""The lines at the top of every screen: which run, how its journal is, and what is wrong at a glance."""

from collections.abc import Sequence

from sapflow.sanctum.header import header_lines
from sapflow.sanctum.schema import SanctumSnapshot
from sapflow.sanctum.spans import Line
from sapflow.sanctum.widgets.shell import shell
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.source import RunState


class RunHeader(SpanView):
    """What is true of the whole run, with a clock that goes on while the run does."""

    def __init__(self, trouble: bool = True) -> None:
        """Without `trouble`, what is wrong is counted elsewhere on the screen."""
        super().__init__()
        self._trouble = trouble
        self._snapshot = SanctumSnapshot()
        self._notice = ""
        self._second = 0

    def show(self, snapshot: SanctumSnapshot, notice: str) -> None:
        """Draws the run as it is in `snapshot`, with a word on what went wrong."""
        live = snapshot.status is not None and snapshot.status.state is RunState.LIVE
        second = int(shell(self).clock()) if live else 0
        if snapshot is not self._snapshot or (notice, second) != (self._notice, self._second):
            if bool(notice) != bool(self._notice):
                self.styles.height = 3 if notice else 2
            self._snapshot, self._notice, self._second = snapshot, notice, second
            self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The header at `width` cells."""
        app = shell(self)
        return header_lines(
            self._snapshot,
            app.clock(),
            self._notice,
            width,
            counts=app.census.total,
            pace=app.pace,
            lag=app.lag,
            moment=app.moment,
            trouble=self._trouble,
        )
