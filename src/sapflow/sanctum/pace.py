"""How many passes a second a run makes now."""

from collections import deque

from sapflow.sanctum.schema import SanctumSnapshot

WINDOW = 30.0  # seconds of the run


class Pace:
    """Passes a second over the run's last WINDOW seconds, by the times of its own events."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def take(self, snapshot: SanctumSnapshot) -> None:
        """Takes in how far the run is."""
        passes = sum(env.totals.passes for env in snapshot.envs.values())
        time = max((env.last_time for env in snapshot.envs.values()), default=snapshot.started_at or 0.0)
        if self._points and passes == self._points[-1][1]:
            return
        if not self._points and snapshot.started_at is not None:
            self._points.append((snapshot.started_at, 0))
        self._points.append((time, passes))
        while len(self._points) > 2 and self._points[1][0] <= time - WINDOW:
            self._points.popleft()

    @property
    def passes_per_second(self) -> float | None:
        """None while nothing is known."""
        if len(self._points) < 2:
            return None
        (before, had), (now, have) = self._points[0], self._points[-1]
        return (have - had) / (now - before) if now > before and have >= had else None
