"""A run as it stands now, for exporters that tell a state and not a story."""

from collections.abc import Iterator

import msgspec

from sapflow.exporters.exporter import Setting
from sapflow.telemetry.events import (
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    RunCompleted,
    RunStarted,
    SeedPruned,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.source import Source

HEALTH_FIELDS = tuple(field.name for field in msgspec.structs.fields(GradientHealth))


class RunView:
    """What the events so far come to.

    Attributes:
        run_id: of the run; "" before the first event.
        started: what was asked for, if that is known.
        completed: the run came to its end.
        first_time, last_time: of an event, in Unix seconds.
        epochs: by env, the last one that is complete.
        ended: by env, how it did: "completed" or "failed".
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.started: RunStarted | None = None
        self.completed = False
        self.first_time = self.last_time = 0.0
        self.epochs: dict[int, EpochCompleted] = {}
        self.ended: dict[int, str] = {}
        self._live: dict[tuple[int, str], GradientSampled] = {}  # of the epoch that is not complete yet
        self._alerts: dict[int, dict[tuple[str, str], Alert]] = {}

    def take(self, event: TelemetryEvent) -> None:
        """Take in an event; one that comes again changes nothing."""
        self.run_id = event.run_id
        self.first_time = self.first_time or event.time
        self.last_time = max(self.last_time, event.time)
        payload = event.payload
        if event.env_id is not None:
            self._take_of_env(event.env_id, event)
        elif isinstance(payload, RunStarted):
            self.started = payload
        elif isinstance(payload, RunCompleted):
            self.completed = True

    def seeds(self) -> Iterator[tuple[int, SeedTelemetry]]:
        """The living seeds with their envs: each with the health of the epoch so far, where there are samples of it."""
        for env_id, done in sorted(self.epochs.items()):
            for seed in done.seeds:
                if seed.stage.alive:
                    yield env_id, self._as_it_is_now(env_id, seed)

    def alerts(self) -> Iterator[tuple[int, Alert]]:
        """The alerts that stand, with their envs."""
        for env_id, alerts in sorted(self._alerts.items()):
            for alert in alerts.values():
                yield env_id, alert

    def _take_of_env(self, env_id: int, event: TelemetryEvent) -> None:
        payload = event.payload
        match payload:
            case EpochCompleted():
                self.epochs[env_id] = payload
                self._alerts[env_id] = {(alert.rule, alert.seed_id): alert for alert in payload.open_alerts}
                self._live = {
                    key: sample
                    for key, sample in self._live.items()
                    if key[0] != env_id or sample.epoch > payload.epoch
                }
            case GradientSampled():
                self._live[env_id, payload.slot_id] = payload
            case AlertRaised():
                self._alerts.setdefault(env_id, {})[payload.alert.rule, payload.alert.seed_id] = payload.alert
            case AlertCleared():
                self._alerts.get(env_id, {}).pop((payload.alert.rule, payload.alert.seed_id), None)
            case SeedPruned():
                self._live.pop((env_id, payload.slot_id), None)
            case EnvCompleted():
                self.ended[env_id] = "completed"
            case EnvFailed():
                self.ended[env_id] = "failed"

    def _as_it_is_now(self, env_id: int, seed: SeedTelemetry) -> SeedTelemetry:
        sample = self._live.get((env_id, seed.slot_id))
        if sample is None or sample.seed_id != seed.seed_id:
            return seed
        return msgspec.structs.replace(seed, **{field: getattr(sample.health, field) for field in HEALTH_FIELDS})


def view_before(setting: Setting) -> RunView:
    """The run as it stood at the cursor: what an exporter knew that was stopped there."""
    view = RunView()
    for event in events_before(setting):
        view.take(event)
    return view


def events_before(setting: Setting) -> Iterator[TelemetryEvent]:
    """The events that were done with when the exporter was stopped; none for one that begins."""
    if setting.cursor:
        with Source(setting.read_from or setting.run_dir) as source:
            while (left := setting.cursor - source.cursor) > 0 and (events := source.read(min(left, 5_000))):
                yield from events
