"""To MLflow: a run of a tracking server, with metrics over epochs, parameters, tags and how it ended."""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from zlib import crc32

import msgspec

from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.http import AT_FAULT, SCHEMES, check_url
from sapflow.exporters.run_view import RunView, state_of, view_before
from sapflow.exporters.series import ENV_COUNTERS, ENV_GAUGES, SEED_SERIES
from sapflow.telemetry.events import AlertRaised, EpochCompleted, RunStarted, TelemetryEvent
from sapflow.telemetry.source import RunState
from sapflow.telemetry.wording import describe_alert

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

RUN_TAG = "sapflow.run_id"
LATEST_ALERT_TAG = "sapflow.latest_alert"
METRICS_AT_ONCE = 1_000  # what a tracking server takes in one request
LOG_BATCH = "/api/2.0/mlflow/runs/log-batch"
LONGEST_TAG = 5_000
LONGEST_PART = 150  # of a name of at most 250 characters
WHOLE_MODEL = "the model"  # a module is called by its place in it, and it has none itself
REFUSED = frozenset({401, 403, 404})


class Options(msgspec.Struct, frozen=True):
    """`tracking_uri` and `experiment` as in MLflow, whose variables stand where an option is not given."""

    tracking_uri: str = ""
    experiment: str = ""


class Measured(NamedTuple):
    """A metric, as MLflow names what it consists of; the time in milliseconds."""

    key: str
    value: float
    timestamp: int
    step: int


class MLflow:
    """One run of MLflow's for one of ours, found again by its tag.

    A metric that comes again has the same key, step, time and value, and a tracking server keeps it once.
    """

    def __init__(self, client: "MlflowClient", uri: str, experiment: str, setting: Setting) -> None:
        self._client = client
        self._log = partial(_log_by_http, uri) if _is_http(uri) else partial(_log_by_client, client)
        self._experiment = experiment
        self._setting = setting
        self._run = setting.run
        self._view = view_before(setting)
        self._begun = ""

    def begin(self) -> str:
        """MLflow's id of the run, which is made where it is not there yet.

        Raises:
            BackendAwayError, ExporterRefusedError: the server.
        """
        from mlflow.exceptions import MlflowException

        if not self._begun:
            try:
                self._begun = _asked(self._find_or_make)
            except MlflowException as error:  # no event is at fault: none has been brought yet
                raise ExporterRefusedError(f"MLflow: {_in_short(error)}") from error
        return self._begun

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        run = self.begin()
        metrics: list[Measured] = []
        for event in events:
            self._view.take(event)
            payload = event.payload
            match payload:
                case RunStarted():
                    _asked(partial(self._log_parameters, run, payload))
                case EpochCompleted() if event.env_id is not None:
                    metrics += _measured(event, event.env_id, payload)
                case AlertRaised():
                    words = "; ".join(part for part in describe_alert(payload.alert) if part)
                    text = f"env {event.env_id}, epoch {payload.epoch}: {words}"[:LONGEST_TAG]
                    _asked(partial(self._client.set_tag, run, LATEST_ALERT_TAG, text))
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            _asked(partial(self._log, run, metrics[start : start + METRICS_AT_ONCE]))

    def close(self) -> None:
        """Say how the run ended, if it has."""
        if status := status_of(self._view, state_of(self._setting)):
            # Who has been away so far is asked once more: an end that nobody is told is none.
            run = self.begin()
            end = int(self._view.last_time * 1_000)
            _asked(partial(self._client.set_terminated, run, status=status, end_time=end))

    def _find_or_make(self) -> str:
        client = self._client
        experiment = self._experiment_id()
        tag = re.sub(r"[^\w.-]", "-", self._run.key, flags=re.ASCII)  # it stands in a query
        runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{tag}'", max_results=1)
        if runs:
            client.set_terminated(runs[0].info.run_id, status="RUNNING")
            return str(runs[0].info.run_id)
        made = client.create_run(experiment, tags={RUN_TAG: tag}, run_name=self._run.run_id)
        return str(made.info.run_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        client, name = self._client, self._experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name))
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another follower may have been quicker
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log_parameters(self, run: str, started: RunStarted) -> None:
        from mlflow.entities import Param

        asked = {"task": started.task, "envs": started.envs, "epochs": started.epochs, "rng_seed": started.rng_seed}
        versions = {f"version.{_part(name)}": text for name, text in started.versions.items()}
        parameters = [Param(name, str(value)) for name, value in {**asked, **versions}.items() if value is not None]
        self._client.log_batch(run, params=parameters)


def status_of(view: RunView, state: RunState | None) -> str:
    """How the run ended, in MLflow's words: KILLED stands for cut off; empty where it has not ended.

    A loop of somebody's own that an error broke off completes no run, and yet no env of it was cut off.
    """
    if not (view.completed or state is RunState.ENDED):
        return ""
    states = view.states()
    if states["failed"] and (view.completed or not states["training"]):
        return "FAILED"
    return "FINISHED" if view.completed else "KILLED"


def _is_http(uri: str) -> bool:
    return uri.partition(":")[0].lower() in SCHEMES


def _log_by_client(client: "MlflowClient", run: str, metrics: Sequence[Measured]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run, metrics=[Metric(*metric) for metric in metrics])


def _log_by_http(uri: str, run: str, metrics: Sequence[Measured]) -> None:
    """What the client does for a server, in an eighth of the time: it makes five objects of a metric to send one."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request_safe

    body = {"run_id": run, "metrics": [metric._asdict() | {"value": _in_json(metric.value)} for metric in metrics]}
    credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]  # MLflow leaves both unannotated
    http_request_safe(credentials, LOG_BATCH, "POST", json=body)  # type: ignore[no-untyped-call]


def _in_json(value: float) -> float | str:
    """As Protocol Buffers write a number in JSON, which has none for these."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _measured(event: TelemetryEvent, env_id: int, done: EpochCompleted) -> Iterator[Measured]:
    time = int(event.time * 1_000)
    for name, value in _numbers(env_id, done):
        yield Measured(name, value, time, done.epoch)


def _numbers(env_id: int, done: EpochCompleted) -> Iterator[tuple[str, float]]:
    for series in (*ENV_GAUGES, *ENV_COUNTERS):
        if (value := series.value(done)) is not None:
            yield f"env-{env_id}/{series.name}", value
    for seed in done.seeds:
        if seed.stage.alive:
            slot = _part(seed.slot_id)
            for one in SEED_SERIES:
                if (value := one.value(seed)) is not None:
                    yield f"env-{env_id}/{slot}/{one.name}", value


def _part(name: str) -> str:
    """A name as a part of one that MLflow takes; a checksum tells apart those that it does not, and what looks made."""
    wanted = name.replace("/", ":") or WHOLE_MODEL
    taken = re.sub(r"[^\w.\-: ]", "_", wanted, flags=re.ASCII)[:LONGEST_PART]
    plain = taken == wanted and taken.strip(".") and ":" not in name and name != WHOLE_MODEL
    return taken if plain else f"{taken}-{crc32(name.encode()):08x}"


def _asked(request: Callable[[], T]) -> T:
    """What the server answers.

    Raises:
        BackendAwayError: it is away, slow or failing.
        ExporterRefusedError: it wants other credentials, or there is no such place.
        MlflowException: it will not have what was brought.
    """
    from mlflow.exceptions import MlflowException

    try:
        return request()
    except MlflowException as error:
        reason = _in_short(error)
        answered: Any = error  # whose methods have no types
        code = answered.get_http_status_code()
        if code in REFUSED:
            raise ExporterRefusedError(f"MLflow: {reason}") from error
        if code in AT_FAULT:
            raise
        raise BackendAwayError(f"MLflow: {reason}") from error
    except OSError as error:  # of requests, too
        raise BackendAwayError(f"MLflow: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def open_exporter(setting: Setting) -> MLflow:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ExporterRefusedError(
            "exporter mlflow needs a tracking server: set MLFLOW_TRACKING_URI, or exporters.mlflow.tracking_uri"
        )
    if _is_http(uri):
        check_url(uri)  # MLflow writes it into logs and errors
    # The follower has its own way to try again, and nothing is gained by MLflow's minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    experiment = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "sapflow"
    try:
        client = MlflowClient(uri)
    except MlflowException as error:
        raise ExporterRefusedError(f"MLflow: {_in_short(error)}") from error
    exporter = MLflow(client, uri, experiment, setting)
    with suppress(BackendAwayError):  # it is tried again with the first batch
        exporter.begin()
    return exporter
