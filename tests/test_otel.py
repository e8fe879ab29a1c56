"""OpenTelemetry, from outside: a receiver that decodes the protobuf of each request as the collector does."""

import statistics

import pytest
from msgspec.structs import replace

from receivers import Receiver, receiver
from sanctum_events import RUN_ID, demo_run, epoch, explosion, seed
from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters import registry
from sapflow.exporters.exporter import Setting, event_key
from sapflow.exporters.http import BatchAtFaultError
from sapflow.exporters.run_identity import RunIdentity
from sapflow.telemetry.events import AlertRaised, EnvFailed, EpochCompleted, GradientSampled, TelemetryEvent
from sapflow.telemetry.vocabulary import Measurement

pytest.importorskip("opentelemetry.proto")

DEMO = demo_run(epochs=6, completed=True)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def open_it(run_dir, cursor: int = 0, **options):
    setting = Setting(name="otel", run_dir=run_dir, run=RunIdentity(RUN_ID), cursor=cursor, options=options)
    return registry.open_exporter(setting)


def plain(attributes) -> dict:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def metric_requests(server: Receiver):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    for path, body in zip(server.paths, server.bodies, strict=True):
        if path == "/v1/metrics":
            yield ExportMetricsServiceRequest.FromString(body)


def points(server: Receiver) -> dict:
    """All points by (metric, attributes, time)."""
    found = {}
    for request in metric_requests(server):
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                key = (metric.name, frozenset(plain(point.attributes).items()), point.time_unix_nano)
                found[key] = getattr(point, point.WhichOneof("value"))
    return found


def records(server: Receiver) -> list:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return [
        record
        for path, body in zip(server.paths, server.bodies, strict=True)
        if path == "/v1/logs"
        for record in ExportLogsServiceRequest.FromString(body).resource_logs[0].scope_logs[0].log_records
    ]


def nanoseconds(event: TelemetryEvent) -> int:
    return round(event.time * 1e6) * 1_000


def test_the_run_s_quantiles_are_those_of_its_seeds(tmp_path):
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url).export(DEMO)
    found = points(server)
    latest: dict[int, EpochCompleted] = {}
    for one in DEMO:
        if isinstance(one.payload, EpochCompleted):
            latest[one.env_id] = one.payload
            last = one
    gains = [
        each.grad_ratio
        for done in latest.values()
        for each in done.seeds
        if each.stage.alive and each.measurement is Measurement.MEASURED
    ]
    at_end = {
        dict(attributes)["quantile"]: value
        for (name, attributes, when), value in found.items()
        if name == "sapflow.gradient.gain_quantile" and when == nanoseconds(last)
    }
    assert set(at_end) == {0.0, 0.05, 0.5, 0.95, 1.0}
    assert (at_end[0.0], at_end[1.0]) == (min(gains), max(gains))
    assert at_end[0.5] == pytest.approx(statistics.median(gains))
    cuts = statistics.quantiles(gains, n=20, method="inclusive")
    assert (at_end[0.05], at_end[0.95]) == (pytest.approx(cuts[0]), pytest.approx(cuts[-1]))


def test_series_are_bounded_by_default_and_are_every_seed_s_by_choice(tmp_path):
    def series(events, **options) -> set:
        with receiver() as server:
            open_it(tmp_path, endpoint=server.url, **options).export(events)
        return {(name, attributes) for name, attributes, _ in points(server)}

    def many(count: int) -> list[TelemetryEvent]:
        seeds = tuple(seed(f"slot-{number}", 1.0) for number in range(count))
        return [TelemetryEvent(run_id=RUN_ID, env_id=0, sequence=0, time=1.0, payload=epoch(1, *seeds))]

    assert series(many(5)) == series(many(500))
    assert len(series(many(5))) < 30
    by_seed = {dict(attributes).get("sapflow.slot.id") for name, attributes in series(many(5), per_seed=True)
               if name == "sapflow.gradient.gain"}  # fmt: skip
    assert by_seed == {f"slot-{number}" for number in range(5)}


def test_every_seed_s_series_have_its_place_and_its_numbers(tmp_path):
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url, per_seed=True).export(DEMO)
    found = points(server)
    for one in DEMO:
        if isinstance(one.payload, EpochCompleted):
            for each in one.payload.seeds:
                place = {
                    "sapflow.env.id": one.env_id, "sapflow.slot.id": each.slot_id,
                    "sapflow.blueprint.id": each.blueprint_id, "sapflow.seed.stage": each.stage.value,
                }  # fmt: skip
                key = ("sapflow.gradient.gain", frozenset(place.items()), nanoseconds(one))
                measured = each.stage.alive and each.measurement is Measurement.MEASURED
                assert found.get(key) == (each.grad_ratio if measured else None)
            accuracy = ("sapflow.env.accuracy", frozenset({("sapflow.env.id", one.env_id)}), nanoseconds(one))
            assert found[accuracy] == pytest.approx(one.payload.accuracy / 100)


def test_counters_are_cumulative_and_the_run_is_a_resource(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=growth,deployment.environment.name=dev%2Fbox")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nursery")
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url).export(DEMO)
    (request,) = metric_requests(server)
    resource = plain(request.resource_metrics[0].resource.attributes)
    assert (resource["sapflow.run.id"], resource["service.name"]) == (RUN_ID, "nursery")
    assert (resource["team"], resource["deployment.environment.name"]) == ("growth", "dev/box")
    metrics = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    passes = metrics["sapflow.passes"].sum
    assert passes.is_monotonic
    assert passes.aggregation_temporality == 2  # cumulative
    values = [point.as_int for point in passes.data_points]
    assert values == sorted(values)
    assert values[-1] == 4 * 64 * 6
    assert {point.start_time_unix_nano for point in passes.data_points} == {nanoseconds(DEMO[0])}
    assert metrics["sapflow.gradient.gain_quantile"].unit == "1"


def test_log_records_are_the_lines_of_the_log(tmp_path):
    alert = AlertRaised(epoch=3, alert=explosion(since=2))
    events = [
        *DEMO,
        TelemetryEvent(run_id=RUN_ID, env_id=2, sequence=99, time=5.0, payload=alert),
        TelemetryEvent(
            run_id=RUN_ID, env_id=2, sequence=100, time=6.0, payload=EnvFailed(epoch=3, error="out of paper")
        ),
    ]
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url).export(events)
    found = {plain(record.attributes)["sapflow.event.key"]: record for record in records(server)}
    silent = EpochCompleted | GradientSampled
    assert set(found) == {event_key(one, RUN_ID) for one in events if not isinstance(one.payload, silent)}
    raised = found[f"{RUN_ID}/2/99"]
    assert (raised.severity_text, raised.severity_number) == ("ERROR", 17)  # the alert is critical
    assert raised.event_name == "sapflow.alert_raised"
    assert raised.time_unix_nano == 5_000_000_000
    assert "exploding seed" in raised.body.string_value
    attributes = plain(raised.attributes)
    assert (attributes["sapflow.slot.id"], attributes["sapflow.rule"]) == ("early", "exploding seed")
    assert found[f"{RUN_ID}/2/100"].severity_text == "ERROR"
    assert found[f"{RUN_ID}/-/0"].severity_text == "INFO"


def test_a_batch_that_comes_again_is_the_same_to_the_bit(tmp_path):
    with receiver() as server:
        exporter = open_it(tmp_path, endpoint=server.url, per_seed=True)
        server.answers = [200, 503]  # the metrics are taken, the log records are not
        with pytest.raises(BackendAwayError):
            exporter.export(DEMO)
        exporter.export(DEMO)
    first, again, logs = server.bodies
    assert first == again
    assert server.paths == ["/v1/metrics", "/v1/metrics", "/v1/logs"]
    assert logs


def test_a_batch_that_is_taken_in_parts_says_what_it_would_have_said_whole(tmp_path):
    half = len(DEMO) // 2
    with receiver() as whole:
        open_it(tmp_path, endpoint=whole.url, per_seed=True).export(DEMO)
    with receiver() as parts:
        parts.answers = [413]
        exporter = open_it(tmp_path, endpoint=parts.url, per_seed=True)
        with pytest.raises(BatchAtFaultError):
            exporter.export(DEMO)
        exporter.export(DEMO[:half])
        exporter.export(DEMO[half:])
    assert points(parts) == points(whole)


def sums(found: dict) -> dict[str, float]:
    """The last value of each series without attributes."""
    return {name: value for (name, attributes, _), value in found.items() if not attributes}


def test_the_deaths_after_the_last_epoch_are_counted(tmp_path):
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url).export(DEMO)
    assert sums(points(server))["sapflow.seeds.pruned"] == 1


def test_what_the_envs_of_a_process_share_is_not_added_up(tmp_path):
    compiled = replace(DEMO[-1], env_id=0, sequence=50, payload=epoch(7, total_recompiles=5))
    with receiver() as server:
        open_it(tmp_path, endpoint=server.url).export([compiled, replace(compiled, env_id=1)])
    assert sums(points(server))["sapflow.recompiles"] == 5


def test_the_variable_for_the_service_s_name_goes_before_the_resource_s(tmp_path, monkeypatch):
    names = []
    for variable, value in (("OTEL_RESOURCE_ATTRIBUTES", "service.name=garden"), ("OTEL_SERVICE_NAME", "nursery")):
        monkeypatch.setenv(variable, value)
        with receiver() as server:
            open_it(tmp_path, endpoint=server.url).export(DEMO)
        (request,) = metric_requests(server)
        names.append(plain(request.resource_metrics[0].resource.attributes)["service.name"])
    assert names == ["garden", "nursery"]


def test_started_again_it_goes_on_with_the_same_state(tmp_path):
    from journals import finished_run

    run_dir = finished_run(tmp_path / "run", *DEMO)
    half = len(DEMO) // 2
    with receiver() as whole:
        open_it(tmp_path, endpoint=whole.url).export(DEMO)
    with receiver() as parts:
        open_it(tmp_path, endpoint=parts.url).export(DEMO[:half])
        open_it(run_dir, cursor=half, endpoint=parts.url).export(DEMO[half:])
    assert points(parts) == points(whole)


def test_the_standard_s_variables_say_where_to(tmp_path, monkeypatch):
    with receiver() as server, receiver() as other:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{server.url}/base/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{other.url}/my/logs")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%20cret,x=1")
        open_it(tmp_path).export(DEMO)
    assert (server.paths, other.paths) == (["/base/v1/metrics"], ["/my/logs"])
    assert server.headers[0]["Api-Key"] == "s cret"
    assert server.headers[0]["Content-Type"] == "application/x-protobuf"


def test_refused_credentials_and_partial_successes_are_said(tmp_path, caplog):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    with receiver() as server:
        server.always = 401
        with pytest.raises(ExporterRefusedError, match="credentials"):
            open_it(tmp_path, endpoint=server.url).export(DEMO)
        server.always = 200
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = 3
        answer.partial_success.error_message = "too old"
        server.says = answer.SerializeToString()
        exporter = open_it(tmp_path, endpoint=server.url)
        refused = exporter.export(DEMO[:50])
        exporter.export(DEMO[50:])
        server.says = b"<html>taken</html>"
        exporter.export(DEMO[:9])
    assert refused == {"data points": 3, "log records": 3}  # which the follower counts
    assert [record.getMessage() for record in caplog.records] == [
        "otel: the receiver took all but 3: too old (said once)"
    ]
