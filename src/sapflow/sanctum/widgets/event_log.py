"""The latest events, newest first; on an env's own screen its open alerts stand above them."""

from collections.abc import Sequence

from textual import events

from sapflow.sanctum.panels import alert_lines, log_lines
from sapflow.sanctum.schema import EnvState, LogLine
from sapflow.sanctum.spans import DIM, Line, line
from sapflow.sanctum.widgets.span_view import SpanView


class EventLog(SpanView):
    """As many of the newest entries as there is room for."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._log: tuple[LogLine, ...] = ()
        self._env: EnvState | None = None

    def show(self, log: tuple[LogLine, ...], env: EnvState | None = None) -> None:
        """Draws `log`, and the open alerts of `env`."""
        if log != self._log or (env is not None and (self._env is None or env.open_alerts != self._env.open_alerts)):
            self._log, self._env = log, env
            self.redraw()

    def on_resize(self, event: events.Resize) -> None:
        """There is room for more entries, or for fewer."""
        self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """A title and the entries at `width` cells."""
        title = line((f"─ {self._title} ".ljust(width, "─"), DIM))
        alerts = alert_lines(self._env, width) if self._env else []
        entries = log_lines(self._log[-self.size.height :], width)
        return [title, *(alerts + entries or [line(("nothing yet", DIM))])]
