"""To OpenTelemetry: metrics and log records by OTLP over HTTP; series for the run, or for every seed by choice."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from urllib.parse import unquote

import msgspec

from sapflow.errors import ExporterRefusedError
from sapflow.exporters import otel_messages
from sapflow.exporters.exporter import Setting
from sapflow.exporters.http import Sender
from sapflow.exporters.run_view import view_before
from sapflow.telemetry.events import TelemetryEvent

DEFAULT_ENDPOINT = "http://localhost:4318"
VARIABLE = "OTEL_EXPORTER_OTLP"

log = logging.getLogger("sapflow.exporters")


class Options(msgspec.Struct, frozen=True):
    """`endpoint` of the receiver, without /v1/…; `timeout` in seconds; `per_seed`: series for every seed and env."""

    endpoint: str = ""
    timeout: float = 10.0
    per_seed: bool = False


class OpenTelemetry:
    """Posts, for each batch, one request with metrics and one with log records.

    What comes again has the same time and attributes, to the bit, and log records have `sapflow.event.key`. A part of a
    batch that was not taken says what the run was at its own beginning, whatever the rest of the batch has told.
    """

    def __init__(self, metrics: Sender, logs: Sender, setting: Setting, resource: dict[str, str]) -> None:
        self._metrics = metrics
        self._logs = logs
        self._setting = setting
        self._resource = resource
        self._view = view_before(setting)
        self._per_seed = setting.options_as(Options).per_seed
        self._batch: dict[str, TelemetryEvent] = {}  # by key; the view is that of its beginning
        self._made_of: tuple[str, ...] = ()
        self._made = (b"", b"")
        self._rejection_was_logged = False

    def export(self, events: Sequence[TelemetryEvent]) -> Mapping[str, int]:
        """See `Exporter.export`."""
        keys = tuple(map(self._setting.key_of, events))
        if keys != self._made_of:
            self._made = self._requests(keys, events)
            self._made_of = keys
        metrics, logs = self._made
        refused: dict[str, int] = {}
        if metrics:
            refused["data points"] = self._refused(otel_messages.rejected_points(self._metrics.post(metrics)))
        if logs:
            refused["log records"] = self._refused(otel_messages.rejected_records(self._logs.post(logs)))
        return refused

    def close(self) -> None:
        """See `Exporter.close`."""

    def _requests(self, keys: Sequence[str], events: Sequence[TelemetryEvent]) -> tuple[bytes, bytes]:
        if keys[0] not in self._batch:
            for event in self._batch.values():
                self._view.take(event)
            self._batch = dict(zip(keys, events, strict=True))
        view, points = self._view.copy(), otel_messages.Points()
        for key, event in self._batch.items():
            if key == keys[0]:
                break
            view.take(event)
        for event in events:
            view.take(event)
            points.take(view, event, per_seed=self._per_seed)
        records = otel_messages.log_request(events, self._resource, self._setting.run.key, time.time_ns())
        return points.request(self._resource), records

    def _refused(self, rejected: tuple[int, str]) -> int:
        count, reason = rejected
        if count and not self._rejection_was_logged:
            self._rejection_was_logged = True
            log.warning("otel: the receiver took all but %d: %s (said once)", count, reason or "no reason given")
        return count


def open_exporter(setting: Setting) -> OpenTelemetry:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    if not 0 < options.timeout <= 600:
        raise ExporterRefusedError("the timeout of exporter otel must be between 0 and 600 seconds")
    resource = {
        "service.name": "sapflow",
        "service.version": version("sapflow"),
        **_pairs("OTEL_RESOURCE_ATTRIBUTES"),
        **({"service.name": name} if (name := os.environ.get("OTEL_SERVICE_NAME")) else {}),
        "sapflow.run.id": setting.run.run_id,
    }
    metrics, logs = (_sender(options, signal) for signal in ("metrics", "logs"))
    return OpenTelemetry(metrics, logs, setting, resource)


def _sender(options: Options, signal: str) -> Sender:
    """To the place for `signal` that the options name, or the standard's variables, or its default."""

    def variable(name: str) -> str:
        return os.environ.get(f"{VARIABLE}_{signal.upper()}_{name}") or os.environ.get(f"{VARIABLE}_{name}") or ""

    base = options.endpoint or os.environ.get(f"{VARIABLE}_ENDPOINT") or DEFAULT_ENDPOINT
    own = "" if options.endpoint else os.environ.get(f"{VARIABLE}_{signal.upper()}_ENDPOINT", "")
    headers = {"Content-Type": "application/x-protobuf", "User-Agent": f"sapflow/{version('sapflow')}"}
    headers |= {**_pairs(f"{VARIABLE}_HEADERS"), **_pairs(f"{VARIABLE}_{signal.upper()}_HEADERS")}
    return Sender(own or f"{base.rstrip('/')}/v1/{signal}", headers, options.timeout, variable("CERTIFICATE") or None)


def _pairs(variable: str) -> dict[str, str]:
    """A variable of the form key=value,key=value, its values quoted as in URLs."""
    parts = [part.partition("=") for part in os.environ.get(variable, "").split(",")]
    return {unquote(key.strip()): unquote(value.strip()) for key, equals, value in parts if equals and key.strip()}
