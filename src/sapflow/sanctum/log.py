"""The entries of the events log, made from events."""

from sapflow.sanctum.schema import LogLine
from sapflow.telemetry.events import AlertRaised, Payload, TelemetryEvent
from sapflow.telemetry.wording import describe


def log_line(event: TelemetryEvent) -> LogLine | None:
    """What the log says of an event; None for those that it leaves out (samples, epochs)."""
    parts = tuple(part for part in describe(event.payload) if part)
    if not parts:
        return None
    return LogLine(
        time=event.time,
        env_id=event.env_id,
        sequence=-1 if event.sequence is None else event.sequence,  # what the run did not determine
        kind=event.type,
        parts=parts,
        slot_id=slot_of(event.payload),
        seed_id=_about(event.payload, "seed_id"),
        blueprint_id=_about(event.payload, "blueprint_id"),
        severity=event.payload.alert.severity if isinstance(event.payload, AlertRaised) else None,
    )


def slot_of(payload: Payload) -> str:
    """The slot that a payload is about; "" where it is about none."""
    return _about(payload, "slot_id")


def _about(payload: Payload, field: str) -> str:
    """What a payload, or its alert, has in a field; "" where it has no such field."""
    return getattr(getattr(payload, "alert", payload), field, "")
