"""Events in, snapshots out: keeps what is known of a run, whatever order its envs' events arrive in."""

from bisect import bisect
from functools import singledispatchmethod
from math import inf
from types import MappingProxyType

from msgspec.structs import replace

from sapflow.sanctum.env_view import EnvView
from sapflow.sanctum.log import log_line
from sapflow.sanctum.reducers import reduce
from sapflow.sanctum.schema import EnvState, EnvStatus, LogLine, SanctumSnapshot
from sapflow.telemetry.events import (
    EpochCompleted,
    GradientSampled,
    Payload,
    RunResumed,
    RunStarted,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunStatus

LOG_LIMIT = 500


class SanctumAggregator:
    """Applies events one by one; `snapshot()` is immutable and shares every env that did not change with the last one.

    Events of one env come in the order of their sequence; one that is not newer than the last is a duplicate, counted
    and left out. A step of more than one is a gap, counted once, and the env goes on from there.

    The log is in the order of time; lines of one env stand as they were written, even where the clock was set back.

    An event costs what it changes: what a snapshot shows is made when one is asked for, of the envs that changed.

    Attributes:
        brief: the envs of which less is known than is shown (see `rewind.py`).
    """

    def __init__(self) -> None:
        self.brief: set[int] = set()
        self._envs: dict[int, EnvView] = {}
        self._changed: dict[int, EnvView] = {}  # since the last snapshot
        self._states: dict[int, EnvState] = {}
        self._gaps = 0
        self._duplicates = 0
        self._left_out = 0
        self._run_id = ""
        self._read_until = -inf
        self._log: list[LogLine] = []
        self._log_order: list[tuple[float, int, int]] = []  # of the same lines, what they are sorted by
        self._latest: dict[int | None, float] = {}  # the latest time of a line, by env
        self._last_run_sequence = -1
        self._run = SanctumSnapshot()
        self._run_changed = False

    def take_in(self, event: TelemetryEvent) -> None:
        """As `apply`; but an event that says what cannot be is left out, and counted: journals come from strangers."""
        try:
            self.apply(event)
        except Exception:
            self._left_out += 1
            self._run_changed = True

    def apply(self, event: TelemetryEvent) -> None:
        """Takes one event in; an event that says nothing new leaves the envs as they are."""
        env_id = event.env_id
        if env_id is None:
            self._apply_to_run(event)
            return
        env = self._envs.get(env_id)
        if env is None:
            env = EnvView(env_id)
        sequence = event.sequence
        if sequence is not None and sequence <= env.last_sequence:
            self._count_duplicate()
            return
        payload = event.payload
        if type(payload) is EpochCompleted:  # by far the most, where a run is followed from its beginning
            env.end_epoch(payload, event.time)
        elif not self._take(event, env) and sequence is None:
            return
        if sequence is not None:
            if sequence > env.last_sequence + 1:
                self._gaps += 1
            env.last_sequence = sequence
        env.last_time = event.time
        self._envs[env_id] = self._changed[env_id] = env
        if event.time > self._read_until:
            self._read_until = event.time
        self._run_id = event.run_id

    def apply_status(self, status: RunStatus) -> None:
        """Takes in what the source knows of the journal itself."""
        if status != self._run.status:
            self._update_run(status=status)

    def forget_gaps(self) -> None:
        """What was left out until now was left out on purpose."""
        self._gaps = 0
        self._run_changed = True

    def complete(self, env_id: int, whole: "SanctumAggregator") -> None:
        """Know of an env what another knows of it, which was told of the same events and of more before them."""
        self.brief.discard(env_id)
        self._left_out += whole._left_out  # perhaps some of them twice, but none untold
        view = whole._envs.get(env_id)
        if view is not None:
            view.last_sequence = max(self._envs[env_id].last_sequence, view.last_sequence)
            if self._run.resumed_at is not None:
                view.forget_pace(before=self._run.resumed_at)  # of which the other was not told
            self._envs[env_id] = self._changed[env_id] = view

    def snapshot(self) -> SanctumSnapshot:
        """The run now; the same object until something changes."""
        if self._changed:
            self._rebuild()
        elif not self._run_changed:
            return self._run
        self._run = replace(
            self._run,
            log=tuple(self._log),
            gaps=self._gaps,
            duplicates=self._duplicates,
            left_out=self._left_out,
            run_id=self._run_id,
            read_until=self._read_until if self._read_until > -inf else None,
        )
        self._run_changed = False
        return self._run

    def _take(self, event: TelemetryEvent, env: EnvView) -> bool:
        """Take an event that is no epoch into its env; whether it says anything."""
        payload = event.payload
        if type(payload) is GradientSampled:
            return env.take_sample(payload)
        env.settle()
        changed = reduce(payload, env)
        line = self._write_log(event)
        if line is not None:
            env.log.append(line)
        return changed or line is not None

    def _rebuild(self) -> None:
        """What is shown of the envs that changed."""
        new = not self._changed.keys() <= self._states.keys()
        for env_id, env in self._changed.items():
            self._states[env_id] = env.state
        self._changed.clear()
        if new:
            self._states = dict(sorted(self._states.items()))
        training = (state for state in self._states.values() if state.status is EnvStatus.TRAINING)
        self._run = replace(
            self._run,
            envs=MappingProxyType(self._states.copy()),
            passes_per_second=sum(state.passes_per_second for state in training),
        )

    def _apply_to_run(self, event: TelemetryEvent) -> None:
        if event.sequence is not None:
            if event.sequence <= self._last_run_sequence:
                self._count_duplicate()
                return
            self._gaps += event.sequence > self._last_run_sequence + 1
            self._last_run_sequence = event.sequence
        self._run_changed = True
        self._read_until = max(event.time, self._read_until)
        self._run_id = event.run_id
        self._reduce_run(event.payload, event.time)
        self._write_log(event)

    def _count_duplicate(self) -> None:
        self._duplicates += 1
        self._run_changed = True

    @singledispatchmethod
    def _reduce_run(self, payload: Payload, time: float) -> None:
        """What a payload says of the run itself."""

    @_reduce_run.register
    def _(self, payload: RunStarted, time: float) -> None:
        self._update_run(
            task=payload.task,
            started_at=time,
            resumed_at=time,
            expected_envs=payload.envs,
            expected_epochs=payload.epochs,
        )

    @_reduce_run.register
    def _(self, payload: RunResumed, time: float) -> None:
        for env in self._envs.values():
            env.forget_pace(before=time)
        self._changed.update(self._envs)
        self._update_run(resumed_at=time, resumed_from=payload.from_epoch)

    def _update_run(self, **changes: object) -> None:
        self._run = replace(self._run, **changes)
        self._run_changed = True

    def _write_log(self, event: TelemetryEvent) -> LogLine | None:
        line = log_line(event)
        if line is None:
            return None
        latest = self._latest[event.env_id] = max(self._latest.get(event.env_id, -inf), line.time)
        order = (latest, *line.order[1:])
        at = bisect(self._log_order, order)
        self._log_order.insert(at, order)
        self._log.insert(at, line)
        del self._log_order[:-LOG_LIMIT], self._log[:-LOG_LIMIT]
        return line
