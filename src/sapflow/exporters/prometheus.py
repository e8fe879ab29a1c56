"""To Prometheus: the run as it stands now, at an HTTP endpoint that the server scrapes."""

import hmac
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec

from sapflow.errors import ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.ledger import is_wanted
from sapflow.exporters.run_view import NOTHING_YET, RunView, state_of, view_before
from sapflow.exporters.series import ENV_COUNTERS, ENV_GAUGES, SEED_SERIES, Series
from sapflow.telemetry.events import SeedTelemetry, TelemetryEvent
from sapflow.telemetry.source import RunState

if TYPE_CHECKING:
    from prometheus_client import Metric

PATH = "/metrics"
TOKEN_VARIABLE = "SAPFLOW_PROMETHEUS_TOKEN"
REQUEST_SECONDS = 10.0
LONGEST_LINGER = 100.0  # seconds: less than a follower gives an exporter to close
POLL_SECONDS = 0.1  # until it notices that it is to stop serving

log = logging.getLogger("sapflow.exporters")

SEED_LABELS = ("run", "env", "slot", "blueprint", "stage")
ENV_LABELS = ("run", "env")
EARLIER = "earlier"  # in place of an env: those that had ended when another began, together
ALERT_LABELS = ("run", "env", "slot", "blueprint", "rule", "severity")

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Options(msgspec.Struct, frozen=True):
    """Where to serve, for how many seconds after the end for a last scrape, and at most how many seeds and envs."""

    host: str = "127.0.0.1"
    port: int = 9464
    linger: float = 90.0
    max_seeds: Annotated[int, msgspec.Meta(ge=0)] = 2_000
    max_envs: Annotated[int, msgspec.Meta(ge=0)] = 2_000


def metric_name(series: Series[Any], kind: str = "") -> str:
    """The name by the conventions of Prometheus: prefix, what is measured, base unit, kind."""
    return "_".join(part for part in ("sapflow", series.name.replace(".", "_"), series.unit, kind) if part)


class Prometheus:
    """Keeps the state of the run and serves it; a scrape costs the trainer nothing."""

    def __init__(self, options: Options, token: str, setting: Setting) -> None:
        from prometheus_client import CollectorRegistry

        self._setting = setting
        self._view = view_before(setting)
        self._cut_off = False
        self._options = options
        self._lock = threading.Lock()
        self._scraped = threading.Event()  # since the last change
        registry = CollectorRegistry()
        registry.register(self)
        self._server = _serve(options, _guarded(registry, token))
        self.port = self._server.server_port
        log.info("prometheus: serving http://%s:%d%s", options.host, self.port, PATH)
        serve = partial(self._server.serve_forever, poll_interval=POLL_SECONDS)
        threading.Thread(target=serve, name="sapflow-prometheus", daemon=True).start()

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        with self._lock:
            for event in events:
                self._view.take(event)
            self._scraped.clear()

    def close(self) -> None:
        """Wait for a last scrape, for `linger` seconds, and stop serving; of a run that was cut off it tells that.

        Where the run goes on, another follower is to serve at the same port: that ends the wait.
        """
        if state_of(self._setting) is RunState.ENDED:
            with self._lock:
                self._cut_off = True
                self._scraped.clear()
        deadline = time.monotonic() + self._options.linger
        while time.monotonic() < deadline and not is_wanted(self._setting.run_dir, self._setting.name):
            if self._scraped.wait(POLL_SECONDS):
                break
        self._server.shutdown()
        self._server.server_close()

    def describe(self) -> Iterable["Metric"]:
        """Nothing is promised before it is there; called by the registry."""
        return ()

    def collect(self) -> Iterable["Metric"]:
        """All metrics; called by a scrape."""
        with self._lock:
            metrics = list(_run_metrics(self._view, cut_off=self._cut_off))
            metrics += _env_metrics(self._view, self._options.max_envs)
            metrics += _seed_metrics(self._view, self._options.max_seeds)
            self._scraped.set()
        return metrics


def _run_metrics(view: RunView, *, cut_off: bool) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    if not view.run_id:
        return
    asked = view.started
    versions = {} if asked is None else asked.versions
    info = InfoMetricFamily("sapflow_run", "The run: what was asked for, and with which version.", labels=["run"])
    info.add_metric([view.run_id], {"task": asked.task if asked else "", "version": versions.get("sapflow", "")})
    yield info
    text = "1 for how the run stands: cut_off is not completed, and no trainer holds it."
    stands = GaugeMetricFamily("sapflow_run_state", text, labels=["run", "state"])
    now = "completed" if view.completed else "cut_off" if cut_off else "live"
    for state in ("live", "completed", "cut_off"):
        stands.add_metric([view.run_id, state], float(state == now))
    yield stands
    newest = GaugeMetricFamily(
        "sapflow_last_event_timestamp_seconds", "When the newest event happened.", labels=["run"]
    )
    newest.add_metric([view.run_id], view.last_time)
    yield newest
    envs = GaugeMetricFamily("sapflow_envs", "Envs that have begun, by state.", labels=["run", "state"])
    states = view.states()
    for state in ("training", "completed", "failed"):
        envs.add_metric([view.run_id, state], states[state])
    yield envs
    alerts = GaugeMetricFamily("sapflow_alert_open", "1 for each alert of Sapflow's that stands.", labels=ALERT_LABELS)
    for env_id, alert in view.alerts():
        labels = [alert.slot_id, alert.blueprint_id, alert.rule, alert.severity.value]
        alerts.add_metric([view.run_id, str(env_id), *labels], 1.0)
    yield alerts


def _env_metrics(view: RunView, limit: int) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    shown = [(str(env_id), env.done) for env_id, env in islice(sorted(view.envs.items()), limit)]
    left_out = GaugeMetricFamily("sapflow_envs_left_out", "Envs beyond max_envs.", labels=["run"])
    left_out.add_metric([view.run_id], len(view.envs) - len(shown))
    yield left_out
    for series in ENV_GAUGES:
        gauge = GaugeMetricFamily(metric_name(series), series.help, labels=ENV_LABELS)
        for env, done in shown:
            if (value := series.base(done)) is not None:
                gauge.add_metric([view.run_id, env], value)
        yield gauge
    if view.earlier is not NOTHING_YET:
        shown.append((EARLIER, view.earlier))
    for series in ENV_COUNTERS:
        counter = CounterMetricFamily(metric_name(series), series.help, labels=ENV_LABELS)
        for env, done in shown:
            counter.add_metric([view.run_id, env], series.base(done) or 0.0)
        yield counter


def _seed_metrics(view: RunView, limit: int) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    everyone = view.seeds()
    seeds = [(_seed_labels(view.run_id, env_id, seed), seed) for env_id, seed in islice(everyone, limit)]
    left_out = GaugeMetricFamily("sapflow_seeds_left_out", "Living seeds beyond max_seeds.", labels=["run"])
    left_out.add_metric([view.run_id], sum(1 for _ in everyone))
    yield left_out
    for series in SEED_SERIES:
        gauge = GaugeMetricFamily(metric_name(series), series.help, labels=SEED_LABELS)
        for labels, seed in seeds:
            if (value := series.base(seed)) is not None:
                gauge.add_metric(labels, value)
        yield gauge


def _seed_labels(run_id: str, env_id: int, seed: SeedTelemetry) -> list[str]:
    return [run_id, str(env_id), seed.slot_id, seed.blueprint_id, seed.stage.value]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False  # closed, it waits until the last scrape is written whole

    def handle_error(self, *_: object) -> None:
        """A scraper that hangs up is no news."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, *_: object) -> None:
        """Scrapes are not logged."""


def _serve(options: Options, app: WSGI) -> WSGIServer:
    try:
        return make_server(options.host, options.port, app, _Server, _Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExporterRefusedError(
            f"cannot serve on {options.host}:{options.port} ({reason}): choose another with prometheus.port"
        ) from error


def _guarded(registry: Any, token: str) -> WSGI:
    """The endpoint: only the path of metrics, and only for who has the token, if there is one."""
    from prometheus_client import make_wsgi_app

    metrics: WSGI = make_wsgi_app(registry)
    expected = f"Bearer {token}".encode()

    def app(request: dict[str, Any], start: Any) -> Iterable[bytes]:
        given = request.get("HTTP_AUTHORIZATION", "").encode(errors="replace")
        if token and not hmac.compare_digest(given, expected):
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
            return []
        if request.get("PATH_INFO") != PATH or request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Length", "0")])
            return []
        return metrics(request, start)

    return app


def open_exporter(setting: Setting) -> Prometheus:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()  # such as the end of a line in a file
    if not _is_loopback(options.host) and not token:
        raise ExporterRefusedError(
            f"serving on {options.host} shows the run to others: set {TOKEN_VARIABLE}, and have Prometheus send it"
        )
    if not 0 <= options.linger <= LONGEST_LINGER:
        raise ExporterRefusedError(f"prometheus.linger must be between 0 and {LONGEST_LINGER:g} seconds")
    return Prometheus(options, token, setting)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
