"""Going on with a journal: what it has already is not said again, although the trainer lives through it once more."""

from pathlib import Path
from typing import Self

from msgspec.structs import replace

from sapflow.telemetry.events import ActionTaken, Alert, AlertRaised, GradientSampled, RequestAnswered, TelemetryEvent
from sapflow.telemetry.source import Source
from sapflow.telemetry.stream import Sink

NOTIFY = "notify"  # the action of an alert whose outcome is said aside


class WhatIsNew:
    """What the journal in `run_dir` has, and a sink that lets through what it does not have.

    The sequences of an env are the same to the bit when it lives through an epoch again, so an event with a number that
    is there is there. Of samples, which the clock paces, it lets the passes through that are not.

    `answers` are those to people's requests, each with its env, and whether it is numbered among the env's events.
    `untold` are the alerts that people were to be told of, by env and number, of which no outcome is there.

    Raises:
        JournalError: there is no journal, or it cannot be read.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_id = ""
        self._sink: Sink | None = None
        self.last_sequence: dict[int | None, int] = {}
        self.answers: list[tuple[int | None, RequestAnswered, bool]] = []
        self.untold: dict[tuple[int | None, int], AlertRaised] = {}
        self._told: set[tuple[int | None, int]] = set()
        self._last_pass: dict[tuple[int | None, str, int], int] = {}
        with Source(run_dir) as source:
            while events := source.read():
                for event in events:
                    self._note(event)

    def before(self, sink: Sink) -> Self:
        """Be the sink that hands what is new on to this one."""
        self._sink = sink
        return self

    def told(self, env_id: int | None, sequence: int) -> bool:
        """Whether the journal has what came of telling people of the alert that was raised with this number."""
        return (env_id, sequence) in self._told

    def emit(self, event: TelemetryEvent) -> None:
        """Hand the event on, or what is new of it."""
        assert self._sink is not None
        if isinstance(event.payload, GradientSampled):
            self._emit_sample(self._sink, event, event.payload)
        elif event.sequence is None or event.sequence > self.last_sequence.get(event.env_id, -1):
            self._sink.emit(event)

    def _emit_sample(self, sink: Sink, event: TelemetryEvent, sample: GradientSampled) -> None:
        last = self._last_pass.get((event.env_id, sample.slot_id, sample.epoch), -1)
        known = sum(index <= last for index in sample.pass_index)
        if known == 0:
            sink.emit(event)
        elif known < len(sample.pass_index):
            fresh = replace(
                sample,
                pass_index=sample.pass_index[known:],
                entering=sample.entering[known:],
                leaving=sample.leaving[known:],
            )
            sink.emit(replace(event, payload=fresh))

    def _note(self, event: TelemetryEvent) -> None:
        payload, self.run_id = event.payload, event.run_id
        if isinstance(payload, RequestAnswered):
            self.answers.append((event.env_id, payload, event.sequence is not None))
        if isinstance(payload, ActionTaken) and event.sequence is None:
            self._note_outcome(event.env_id, payload)
        if event.sequence is not None:
            if isinstance(payload, AlertRaised) and NOTIFY in payload.alert.actions:
                self.untold[event.env_id, event.sequence] = payload
            before = self.last_sequence.get(event.env_id, -1)
            self.last_sequence[event.env_id] = max(before, event.sequence)
        elif isinstance(payload, GradientSampled) and payload.pass_index:
            key = (event.env_id, payload.slot_id, payload.epoch)
            self._last_pass[key] = max(self._last_pass.get(key, -1), payload.pass_index[-1])

    def _note_outcome(self, env_id: int | None, taken: ActionTaken) -> None:
        """Of the first alert that it can be of: people are told of alerts in the order in which they were raised."""

        def of(epoch: int, alert: Alert) -> tuple[int, str, str]:
            return epoch, alert.rule, alert.seed_id

        for key, raised in self.untold.items():
            if key[0] == env_id and of(raised.epoch, raised.alert) == of(taken.epoch, taken.alert):
                del self.untold[key]
                self._told.add(key)
                return
