"""Events in, snapshots out: keeps what is known of a run, whatever order its envs' events arrive in."""

from bisect import insort
from functools import singledispatchmethod
from types import MappingProxyType

from msgspec.structs import replace

from sapflow.sanctum.log import log_line
from sapflow.sanctum.reducers import reduce
from sapflow.sanctum.schema import EnvState, LogLine, SanctumSnapshot
from sapflow.telemetry.events import (
    EpochCompleted,
    Payload,
    RunCompleted,
    RunResumed,
    RunStarted,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunStatus

LOG_LIMIT = 500
ENV_LOG_LIMIT = 100


class SanctumAggregator:
    """Applies events one by one; `snapshot()` is immutable and shares every env that did not change with the last one.

    Events of one env come in the order of their sequence; one that is not newer than the last is a duplicate, counted
    and left out. A step of more than one is a gap, counted once, and the env goes on from there.
    """

    def __init__(self) -> None:
        self._envs: dict[int, EnvState] = {}
        self._log: list[LogLine] = []
        self._last_run_sequence = -1
        self._run_gaps = 0
        self._run = SanctumSnapshot()
        self._changed = False

    def apply(self, event: TelemetryEvent) -> None:
        """Takes one event in; an event that says nothing new leaves the envs as they are."""
        if event.env_id is None:
            self._apply_to_run(event)
        else:
            self._apply_to_env(event.env_id, event)

    def apply_status(self, status: RunStatus) -> None:
        """Takes in what the source knows of the journal itself."""
        if status != self._run.status:
            self._update_run(status=status)

    def snapshot(self) -> SanctumSnapshot:
        """The run now; the same object until something changes."""
        if self._changed:
            self._run = replace(
                self._run,
                envs=MappingProxyType(dict(sorted(self._envs.items()))),
                log=tuple(self._log),
                gaps=self._run_gaps + sum(env.gaps for env in self._envs.values()),
            )
            self._changed = False
        return self._run

    def _apply_to_run(self, event: TelemetryEvent) -> None:
        if self._is_duplicate(event, self._last_run_sequence):
            return
        if event.sequence is not None:
            self._run_gaps += event.sequence > self._last_run_sequence + 1
            self._last_run_sequence = event.sequence
        self._update_run(run_id=event.run_id)
        self._reduce_run(event.payload, event.time)
        self._write_log(event)

    def _apply_to_env(self, env_id: int, event: TelemetryEvent) -> None:
        before = self._envs.get(env_id, EnvState(env_id=env_id))
        if self._is_duplicate(event, before.last_sequence):
            return
        env = reduce(event.payload, before)
        if event.sequence is not None:
            gap = event.sequence > before.last_sequence + 1
            env = replace(env, last_sequence=event.sequence, gaps=before.gaps + gap)
        line = self._write_log(event)
        if env is before and line is None:
            return
        epoch_ended = isinstance(event.payload, EpochCompleted)
        self._envs[env_id] = replace(
            env,
            last_time=event.time,
            log=(*env.log, line)[-ENV_LOG_LIMIT:] if line else env.log,
            concern=env.condition if epoch_ended else max(env.condition, before.concern),
            octaves_off=env.farthest if epoch_ended else max(env.farthest, before.octaves_off),
        )
        self._update_run(run_id=event.run_id)

    def _is_duplicate(self, event: TelemetryEvent, last_sequence: int) -> bool:
        if event.sequence is None or event.sequence > last_sequence:
            return False
        self._update_run(duplicates=self._run.duplicates + 1)
        return True

    @singledispatchmethod
    def _reduce_run(self, payload: Payload, time: float) -> None:
        """What a payload says of the run itself."""

    @_reduce_run.register
    def _(self, payload: RunStarted, time: float) -> None:
        self._update_run(
            task=payload.task,
            rng_seed=payload.rng_seed,
            started_at=time,
            expected_envs=payload.envs,
            expected_epochs=payload.epochs,
        )

    @_reduce_run.register
    def _(self, payload: RunResumed, time: float) -> None:
        self._update_run(completed=False)

    @_reduce_run.register
    def _(self, payload: RunCompleted, time: float) -> None:
        self._update_run(completed=True)

    def _update_run(self, **changes: object) -> None:
        self._run = replace(self._run, **changes)
        self._changed = True

    def _write_log(self, event: TelemetryEvent) -> LogLine | None:
        line = log_line(event)
        if line is None:
            return None
        insort(self._log, line, key=lambda entry: entry.order)
        del self._log[:-LOG_LIMIT]
        return line
