"""A run as it stands now, for exporters that tell a state and not a story."""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Self

import msgspec

from sapflow.errors import JournalError
from sapflow.exporters.exporter import Setting
from sapflow.telemetry.events import (
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    RunCompleted,
    RunStarted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.run_directory import MANIFEST_NAME, ROLLED_NAME
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import SeedStage

HEALTH_FIELDS = tuple(field.name for field in msgspec.structs.fields(GradientHealth))
TOTALS = tuple(field.name for field in msgspec.structs.fields(EpochCompleted) if field.name.startswith("total_"))
OF_PROCESS = frozenset({"total_recompiles"})  # which the envs of a process share
NOTHING_YET = EpochCompleted(epoch=0, epochs=0, seeds=())


@dataclass
class EnvView:
    """An env as it stands now.

    Attributes:
        done: the last epoch that is complete, 0 before the first; with the stages and the counts that are since.
        state: "training", "completed" or "failed".
        alerts: those that stand, by rule and seed.
    """

    done: EpochCompleted = NOTHING_YET
    state: str = "training"
    alerts: dict[tuple[str, str], Alert] = field(default_factory=dict)
    _samples: dict[str, GradientSampled] = field(default_factory=dict)  # of the epoch that is not complete yet
    _last_sequence: int = -1

    def take(self, event: TelemetryEvent) -> None:
        """Take in an event of the env; one that comes again changes nothing."""
        payload, done = event.payload, self.done
        if isinstance(payload, GradientSampled):
            if payload.epoch > done.epoch:
                self._samples[payload.slot_id] = payload
            return
        if event.sequence is not None:
            if event.sequence <= self._last_sequence:
                return
            self._last_sequence = event.sequence
        match payload:
            case EnvStarted():
                self.done = msgspec.structs.replace(done, epochs=payload.epochs)
            case EpochCompleted():
                self.done = payload
                self.alerts = {(alert.rule, alert.seed_id): alert for alert in payload.open_alerts}
                self._samples = {slot: one for slot, one in self._samples.items() if one.epoch > payload.epoch}
            case SeedGerminated():
                self._count("total_germinated")
            case SeedStageChanged():
                self._move(payload.seed_id, payload.to_stage)
            case SeedPruned():
                self._move(payload.seed_id, SeedStage.PRUNED)
                self._count("total_pruned")
            case SeedFossilized():
                self._count("total_fossilized")
            case AlertRaised():
                self.alerts[payload.alert.rule, payload.alert.seed_id] = payload.alert
                self._count("total_alerts")
            case AlertCleared():
                self.alerts.pop((payload.alert.rule, payload.alert.seed_id), None)
            case EnvCompleted():
                self.state = "completed"
            case EnvFailed():
                self.state = "failed"

    def seeds(self) -> Iterator[SeedTelemetry]:
        """The living, each with the health of the epoch so far, where there are samples of it.

        One that was born since the last epoch is not among them: nothing is known of it yet.
        """
        for seed in self.done.seeds:
            if seed.stage.alive:
                sample = self._samples.get(seed.slot_id)
                if sample is None or sample.seed_id != seed.seed_id:
                    yield seed
                else:
                    health = {name: getattr(sample.health, name) for name in HEALTH_FIELDS}
                    yield msgspec.structs.replace(seed, **health)

    def copy(self) -> Self:
        """One that goes its own way."""
        return replace(self, alerts=dict(self.alerts), _samples=dict(self._samples))

    def _count(self, name: str) -> None:
        self.done = msgspec.structs.replace(self.done, **{name: getattr(self.done, name) + 1})

    def _move(self, seed_id: str, stage: SeedStage) -> None:
        seeds = (
            msgspec.structs.replace(seed, stage=stage) if seed.seed_id == seed_id else seed for seed in self.done.seeds
        )
        self.done = msgspec.structs.replace(self.done, seeds=tuple(seeds))


class RunView:
    """What the events so far come to.

    An env that has ended is kept until another begins: in a run that has an env for each episode there are many.

    Attributes:
        run_id: of the run; "" before the first event.
        started: what was asked for, if that is known.
        completed: the run came to its end.
        first_time, last_time: of an event, in Unix seconds.
        envs: that are in training, and those that ended last.
        earlier: the counts of those that ended before.
        accuracies: of those, at their ends, the worst and the best; empty where none is known.
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.started: RunStarted | None = None
        self.completed = False
        self.first_time = self.last_time = 0.0
        self.envs: dict[int, EnvView] = {}
        self.earlier = NOTHING_YET
        self.accuracies: tuple[float, ...] = ()
        self._earlier_states: dict[int, str] = {}

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
        """The living seeds with their envs (see `EnvView.seeds`)."""
        for env_id, env in sorted(self.envs.items()):
            for seed in env.seeds():
                yield env_id, seed

    def alerts(self) -> Iterator[tuple[int, Alert]]:
        """The alerts that stand, with their envs."""
        for env_id, env in sorted(self.envs.items()):
            for alert in env.alerts.values():
                yield env_id, alert

    def states(self) -> Counter[str]:
        """How many envs are in which state, of all that have begun."""
        return Counter([*self._earlier_states.values(), *(env.state for env in self.envs.values())])

    def totals(self) -> EpochCompleted:
        """The counts of all envs together."""
        return _together(self.earlier, *(env.done for env in self.envs.values()))

    def copy(self) -> "RunView":
        """One that goes its own way."""
        made = copy(self)
        made.envs = {env_id: env.copy() for env_id, env in self.envs.items()}
        made._earlier_states = dict(self._earlier_states)
        return made

    def _take_of_env(self, env_id: int, event: TelemetryEvent) -> None:
        if env_id in self._earlier_states:
            return
        if env_id not in self.envs:
            if isinstance(event.payload, EnvStarted):
                self._let_go_of_ended()
            self.envs[env_id] = EnvView()
        self.envs[env_id].take(event)

    def _let_go_of_ended(self) -> None:
        ended = {env_id: env for env_id, env in self.envs.items() if env.state != "training"}
        for env_id, env in ended.items():
            self._earlier_states[env_id] = self.envs.pop(env_id).state
            if env.done.accuracy is not None and not math.isnan(env.done.accuracy):
                known = (*self.accuracies, env.done.accuracy)
                self.accuracies = (min(known), max(known))
        self.earlier = _together(self.earlier, *(env.done for env in ended.values()))


def _together(*envs: EpochCompleted) -> EpochCompleted:
    """Their counts. Of what the envs of a process share, the largest count has nothing twice, and may lack some."""
    return EpochCompleted(
        epoch=0,
        epochs=0,
        seeds=(),
        **{name: (max if name in OF_PROCESS else sum)(getattr(env, name) for env in envs) for name in TOTALS},
    )


def view_before(setting: Setting) -> RunView:
    """The run as it stood at the cursor: what an exporter knew that was stopped there."""
    view = RunView()
    for event in events_before(setting):
        view.take(event)
    return view


class _Summary(msgspec.Struct, frozen=True):
    state: RunState


class _Manifest(msgspec.Struct, frozen=True):
    summary: _Summary


def state_of(setting: Setting) -> RunState | None:
    """How the run stands, which may be further than the events that were brought; None: not told.

    By its journal or, where that was removed while it was followed, by what the run was rolled into.
    """
    with suppress(JournalError), Source(setting.read_from or setting.run_dir) as source:
        return source.status().state
    with suppress(OSError, msgspec.DecodeError):
        rolled = (setting.run_dir / ROLLED_NAME / MANIFEST_NAME).read_bytes()
        return msgspec.json.decode(rolled, type=_Manifest).summary.state
    return None


def events_before(setting: Setting) -> Iterator[TelemetryEvent]:
    """The events that were done with when the exporter was stopped; none for one that begins."""
    if setting.cursor:
        path = setting.read_from or setting.run_dir
        with Source(path) as source, closing(source.stream(setting.cursor, sys.maxsize)) as events:
            yield from takewhile(lambda _: source.cursor <= setting.cursor, events)
