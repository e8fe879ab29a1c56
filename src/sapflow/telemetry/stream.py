"""The one way to say something: a stream numbers and times an env's payloads and hands them to a sink."""

import time
from typing import Protocol

from sapflow.telemetry.events import GradientSampled, Payload, TelemetryEvent


class Sink(Protocol):
    """Where events go. `emit` never blocks and never raises: telemetry must not break training."""

    def emit(self, event: TelemetryEvent) -> None:
        """Take the event, now or never."""


class EventStream:
    """The events of one env (or, with `env_id` None, of the run itself), in order."""

    def __init__(self, sink: Sink, run_id: str, env_id: int | None = None) -> None:
        self.sink = sink
        self.run_id = run_id
        self.env_id = env_id
        self.next_sequence = 0

    def emit(self, payload: Payload) -> None:
        """Number, time and hand on `payload`; samples, which the clock paces, get no number."""
        if isinstance(payload, GradientSampled):
            self.emit_aside(payload)
            return
        self._hand_on(payload, self.next_sequence)
        self.next_sequence += 1

    def emit_aside(self, payload: Payload) -> None:
        """Hand on what the run does not determine, without a number; from any thread."""
        self._hand_on(payload, None)

    def _hand_on(self, payload: Payload, sequence: int | None) -> None:
        self.sink.emit(
            TelemetryEvent(run_id=self.run_id, env_id=self.env_id, sequence=sequence, time=time.time(), payload=payload)
        )
