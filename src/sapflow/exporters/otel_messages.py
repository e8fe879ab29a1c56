"""The messages of OTLP that an exporter sends: what of a run becomes which metric, and which log record."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sapflow.exporters.exporter import event_key
from sapflow.exporters.run_view import RunView
from sapflow.exporters.series import ENV_COUNTERS, ENV_GAUGES, GAIN, SEED_SERIES, Series
from sapflow.telemetry.events import (
    AlertRaised,
    EnvFailed,
    EpochCompleted,
    NonFiniteOrigin,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    TelemetryEvent,
)
from sapflow.telemetry.vocabulary import Severity
from sapflow.telemetry.wording import describe

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
UNITS = {"ratio": "1", "": "{count}"}
UNITLESS = frozenset({"train_loss", "validation_loss", "gradient.entering_norm", "gradient.leaving_norm"})
INFO, WARN, ERROR = 9, 13, 17  # severity numbers of the data model for logs

TOLD = (EpochCompleted, SeedGerminated, SeedPruned, SeedFossilized)

Attributes = dict[str, str | int | float]


class Points:
    """The data points of one request, at the ends of epochs, each with the time of its event."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def take(self, view: RunView, event: TelemetryEvent, *, per_seed: bool) -> None:
        """The points at `event`, from the view that has just taken it in: at the ends of epochs, births and deaths.

        What is done after the last epoch is told by no end of an epoch.
        """
        if not isinstance(event.payload, TOLD):
            return
        now, began = _nanoseconds(event.time), _nanoseconds(view.first_time)
        self._take_run(view, now, began)
        if per_seed:
            assert event.env_id is not None
            done = view.envs[event.env_id].done
            self._take_counts(event.env_id, done, now, began)
            if isinstance(event.payload, EpochCompleted):
                self._take_env(event.env_id, event.payload, now)

    def request(self, resource: dict[str, str]) -> bytes:
        """As the body of a request; empty without a point."""
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        if not self._metrics:
            return b""
        request = ExportMetricsServiceRequest()
        whole = request.resource_metrics.add()
        whole.resource.attributes.extend(_attributes(resource))
        scope = whole.scope_metrics.add()
        scope.scope.name, scope.scope.version = "sapflow", version("sapflow")
        scope.metrics.extend(self._metrics.values())
        body: bytes = request.SerializeToString()
        return body

    def _take_run(self, view: RunView, now: int, began: int) -> None:
        """Of all envs and seeds together, in a number of series that does not depend on theirs."""
        seeds = [seed for _, seed in view.seeds()]
        gains = sorted(gain for seed in seeds if (gain := GAIN.base(seed)) is not None and not math.isnan(gain))
        for quantile in QUANTILES if gains else ():
            point: Attributes = {"quantile": quantile}
            self._gauge("gradient.gain_quantile", "1", GAIN.help, _quantile(gains, quantile), point, now)
        for state, count in (
            ("measured", len(gains)),
            ("unmeasured", len(seeds) - len(gains)),
            ("vanishing", sum(seed.has_vanishing for seed in seeds)),
            ("exploding", sum(seed.has_exploding for seed in seeds)),
        ):
            attributes: Attributes = {"sapflow.gradient.state": state}
            self._gauge("seeds.alive", "{seed}", "Living seeds, by what is known of them.", count, attributes, now)
        severities = Counter(alert.severity for _, alert in view.alerts())
        for severity in Severity:
            attributes = {"sapflow.alert.severity": severity.value}
            text = "Alerts that stand."
            self._gauge("alerts.open", "{alert}", text, severities[severity], attributes, now)
        totals = view.totals()
        for counter in ENV_COUNTERS:
            self._sum(counter, counter.base(totals) or 0.0, {}, now, began)

    def _take_counts(self, env_id: int, done: EpochCompleted, now: int, began: int) -> None:
        for counter in ENV_COUNTERS:
            self._sum(counter, counter.base(done) or 0.0, {"sapflow.env.id": env_id}, now, began, prefix="env.")

    def _take_env(self, env_id: int, done: EpochCompleted, now: int) -> None:
        of_env: Attributes = {"sapflow.env.id": env_id}
        for gauge in ENV_GAUGES:
            self._gauge_of(gauge, done, of_env, now, prefix="env.")
        for seed in done.seeds:
            if seed.stage.alive:
                place: Attributes = {
                    **of_env,
                    "sapflow.slot.id": seed.slot_id,
                    "sapflow.blueprint.id": seed.blueprint_id,
                    "sapflow.seed.stage": seed.stage.value,
                }
                for series in SEED_SERIES:
                    self._gauge_of(series, seed, place, now)

    def _gauge_of(self, series: Series[Any], source: Any, attributes: Attributes, now: int, prefix: str = "") -> None:
        if (value := series.base(source)) is not None:
            self._gauge(prefix + series.name, _unit(series), series.help, value, attributes, now)

    def _gauge(self, name: str, unit: str, text: str, value: float, attributes: Attributes, now: int) -> None:
        self._metric(name, unit, text).gauge.data_points.add(
            time_unix_nano=now, as_double=value, attributes=_attributes(attributes)
        )

    def _sum(
        self, series: Series[Any], value: float, attributes: Attributes, now: int, began: int, prefix: str = ""
    ) -> None:
        from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

        counter = self._metric(prefix + series.name, _unit(series), series.help).sum
        counter.is_monotonic = True
        counter.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        counter.data_points.add(
            start_time_unix_nano=began, time_unix_nano=now, as_int=int(value), attributes=_attributes(attributes)
        )

    def _metric(self, name: str, unit: str, text: str) -> "Metric":
        from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

        if name not in self._metrics:
            self._metrics[name] = Metric(name=f"sapflow.{name}", unit=unit, description=text)
        return self._metrics[name]


def log_request(events: Sequence[TelemetryEvent], resource: dict[str, str], run: str, observed: int) -> bytes:
    """A log record for each event that has a line in the log, as the body of a request; empty if none has.

    `run` is the key of the run.
    """
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    whole = request.resource_logs.add()
    whole.resource.attributes.extend(_attributes(resource))
    scope = whole.scope_logs.add()
    scope.scope.name, scope.scope.version = "sapflow", version("sapflow")
    for event in events:
        if words := [part for part in describe(event.payload) if part]:
            number, severity = _severity(event)
            scope.log_records.add(
                time_unix_nano=_nanoseconds(event.time),
                observed_time_unix_nano=observed,
                severity_number=number,
                severity_text=severity,
                event_name=f"sapflow.{event.type.value.lower()}",
                body={"string_value": " · ".join(words)},
                attributes=_attributes(_place(event, run)),
            )
    return request.SerializeToString() if scope.log_records else b""


def rejected_points(answer: bytes) -> tuple[int, str]:
    """How many data points the receiver says that it did not take, and why."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    partial = _parsed(ExportMetricsServiceResponse(), answer).partial_success
    return partial.rejected_data_points, partial.error_message


def rejected_records(answer: bytes) -> tuple[int, str]:
    """How many log records the receiver says that it did not take, and why."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    partial = _parsed(ExportLogsServiceResponse(), answer).partial_success
    return partial.rejected_log_records, partial.error_message


def _parsed(message: Any, answer: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(answer)
    except DecodeError:  # a proxy's words: that it took the batch is in its status
        message.Clear()
    return message


def _severity(event: TelemetryEvent) -> tuple[int, str]:
    payload = event.payload
    if isinstance(payload, AlertRaised):
        critical = payload.alert.severity is Severity.CRITICAL
        return (ERROR, "ERROR") if critical else (WARN, "WARN")
    return (ERROR, "ERROR") if isinstance(payload, EnvFailed | NonFiniteOrigin) else (INFO, "INFO")


def _place(event: TelemetryEvent, run: str) -> Attributes:
    payload: Any = event.payload
    about = getattr(payload, "alert", payload)
    found = {
        "sapflow.event.key": event_key(event, run),
        "sapflow.env.id": event.env_id,
        "sapflow.epoch": event.epoch,
        "sapflow.slot.id": getattr(about, "slot_id", None),
        "sapflow.seed.id": getattr(about, "seed_id", None),
        "sapflow.blueprint.id": getattr(about, "blueprint_id", None),
        "sapflow.rule": getattr(about, "rule", None),
    }
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _attributes(attributes: Attributes | dict[str, str]) -> Iterable["KeyValue"]:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    for key, value in attributes.items():
        match value:
            case int():
                typed = AnyValue(int_value=value)
            case float():
                typed = AnyValue(double_value=value)
            case _:
                typed = AnyValue(string_value=value)
        yield KeyValue(key=key, value=typed)


def _unit(series: Series[Any]) -> str:
    return "" if series.name in UNITLESS else UNITS[series.unit]


def _quantile(ordered: list[float], quantile: float) -> float:
    """Interpolated between the two nearest (Hyndman and Fan's type 7); both are taken as they are if not finite."""
    place = quantile * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    share = place - math.floor(place)
    return below if share == 0 or below == above else below * (1 - share) + above * share


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e6) * 1_000  # a float of Unix seconds is good for no more
