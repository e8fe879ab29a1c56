"""An event as JSON: by the published schema, with a key, and with a marker where JSON has no form for a number."""

import math
from typing import Any

import msgspec

from sapflow.exporters.exporter import event_key
from sapflow.telemetry.events import SCHEMA_VERSION, TelemetryEvent

Path = tuple[str | int, ...]


def json_form(event: TelemetryEvent, run: str) -> dict[str, Any]:
    """The event, of the run with the key `run`, as plain data that JSON has a form for.

    NaN and infinities are data, and JSON has no form for them: they become null, and `non_finite` says by JSON pointer
    (RFC 6901) which nulls stand for "NaN", "Infinity" or "-Infinity"; it is there only where there are any.
    """
    form: dict[str, Any] = {
        "key": event_key(event, run),
        "schema": SCHEMA_VERSION,
        "run_id": event.run_id,
        "env_id": event.env_id,
        "sequence": event.sequence,
        "time": event.time,
        "type": event.type.value,
        "payload": msgspec.to_builtins(event.payload),
    }
    non_finite: dict[str, str] = {}
    form["payload"] = _finite(form["payload"], ("payload",), non_finite)
    if non_finite:
        form["non_finite"] = non_finite
    return form


def json_line(event: TelemetryEvent, run: str) -> bytes:
    """The event, of the run with the key `run`, as one line of JSON, its end included."""
    return msgspec.json.encode(json_form(event, run)) + b"\n"


def _finite(value: Any, path: Path, non_finite: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        non_finite[_pointer(path)] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return None
    if isinstance(value, dict):
        return {key: _finite(item, (*path, key), non_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, (*path, index), non_finite) for index, item in enumerate(value)]
    return value


def _pointer(path: Path) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
