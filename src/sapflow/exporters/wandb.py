"""To Weights & Biases: metrics over epochs, alerts, and what came of the run; online, or offline to be synced later."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.ledger import FOLDER
from sapflow.exporters.run_view import RunView, state_of, view_before
from sapflow.exporters.series import ENV_COUNTERS, ENV_GAUGES, SEED_SERIES
from sapflow.telemetry.events import AlertRaised, EpochCompleted, RunStarted, TelemetryEvent
from sapflow.telemetry.source import RunState
from sapflow.telemetry.vocabulary import Severity
from sapflow.telemetry.wording import describe_alert

if TYPE_CHECKING:
    import wandb

OPENING_SECONDS = 10.0
REFUSED = re.compile(r"\berror (?:401|403|404)\b")  # how the service is told from one that is away
LONGEST_ID = 64
MODES = ("online", "offline")


class Options(msgspec.Struct, frozen=True):
    """`project`, `entity` and `mode` as in W&B, whose variables stand where an option is not given; `dir` for files."""

    project: str = ""
    entity: str = ""
    mode: str = ""
    dir: str = ""


class WeightsAndBiases:
    """One run of W&B's for one of ours, with a row for each epoch of an env.

    W&B keeps what is handed over in a file of its own and sends it from there, so that one that is away costs nothing.
    A row that comes again has the `key` of the first.
    """

    def __init__(self, begin: Callable[[], "wandb.Run"], setting: Setting) -> None:
        self._begin = begin
        self._setting = setting
        self._begun: wandb.Run | None = None
        self._view = view_before(setting)
        self._envs: set[int] = set()
        with contextlib.suppress(BackendAwayError):  # who is away is tried again with the first batch
            self._begun = begin()

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        run = self._begun = self._begun or self._begin()
        try:
            self._hand_over(run, events)
        except OSError as error:
            self._begun = None
            self._envs.clear()
            _forget_service()
            raise BackendAwayError(f"W&B's own service is gone ({error}): it is started again") from error

    def _hand_over(self, run: "wandb.Run", events: Sequence[TelemetryEvent]) -> None:
        for event in events:
            self._view.take(event)
            payload = event.payload
            match payload:
                case RunStarted():
                    config = {"task": payload.task, "envs": payload.envs, "epochs": payload.epochs}
                    more = {"rng_seed": payload.rng_seed, "versions": payload.versions}
                    settings: Any = run.config  # whose methods have no types
                    settings.update(config | more, allow_val_change=True)
                case EpochCompleted() if event.env_id is not None:
                    self._define(run, event.env_id)
                    run.log({"key": self._setting.key_of(event), **dict(_row(event, event.env_id, payload))})
                case AlertRaised():
                    _alert(run, event, payload)

    def close(self) -> None:
        """Say what came of the run, and wait until W&B has sent what it keeps."""
        state = state_of(self._setting)
        if self._begun is None and (self._view.completed or state is RunState.ENDED):
            # Who has been away so far is asked once more: an end that nobody is told is none.
            self._begun = self._begin()
        if self._begun is not None:
            for name, value in _outcome(self._view, state).items():
                self._begun.summary[name] = value
            self._begun.finish()

    def _define(self, run: "wandb.Run", env_id: int) -> None:
        """Charts of an env are over its own epochs."""
        if env_id not in self._envs:
            self._envs.add(env_id)
            run.define_metric(f"env-{env_id}/epoch", hidden=True)
            run.define_metric(f"env-{env_id}/*", step_metric=f"env-{env_id}/epoch")


def _forget_service() -> None:
    """W&B keeps a process beside this one, to which all is handed; without this a dead one would be spoken to again."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def _alert(run: "wandb.Run", event: TelemetryEvent, payload: AlertRaised) -> None:
    alert = payload.alert
    level = "ERROR" if alert.severity is Severity.CRITICAL else "WARN"
    place = f"env {event.env_id}, slot {alert.slot_id}, epoch {payload.epoch}"
    text = "; ".join([place, *(part for part in describe_alert(alert) if part)])
    run.alert(title=f"Sapflow: {alert.rule}", text=text, level=level, wait_duration=0)


def _row(event: TelemetryEvent, env_id: int, done: EpochCompleted) -> Iterator[tuple[str, float]]:
    yield "time", event.time
    prefix = f"env-{env_id}"
    for series in (*ENV_GAUGES, *ENV_COUNTERS):
        if (value := series.value(done)) is not None:
            yield f"{prefix}/{series.name}", value
    for seed in done.seeds:
        if seed.stage.alive:
            for one in SEED_SERIES:
                if (value := one.value(seed)) is not None:
                    yield f"{prefix}/{_plain(seed.slot_id)}/{one.name}", value


def _outcome(view: RunView, state: RunState | None) -> dict[str, Any]:
    """What stands in the summary beside the last row: of all envs together."""
    totals = view.totals()
    last = (env.done.accuracy for env in view.envs.values())
    accuracies = [*view.accuracies, *(one for one in last if one is not None and not math.isnan(one))]
    return {
        "state": "completed" if view.completed else "cut off" if state is RunState.ENDED else "live",
        "seeds.germinated": totals.total_germinated,
        "seeds.pruned": totals.total_pruned,
        "seeds.fossilized": totals.total_fossilized,
        "alerts": totals.total_alerts,
        "alerts.open": sum(1 for _ in view.alerts()),
        **({"accuracy.best": max(accuracies), "accuracy.worst": min(accuracies)} if accuracies else {}),
    }


def _plain(slot_id: str) -> str:
    """A slot as a part of a name: slashes make sections in W&B. One with colons of its own ends in a checksum."""
    plain = slot_id.replace("/", ":")
    return f"{plain}-{crc32(slot_id.encode()):08x}" if ":" in slot_id else plain


def open_exporter(setting: Setting) -> WeightsAndBiases:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    if options.mode not in ("", *MODES):
        raise ExporterRefusedError(f"the mode {options.mode!r} of exporter wandb is none: use {' or '.join(MODES)}")
    return WeightsAndBiases(partial(_begin, setting, options), setting)


def _begin(setting: Setting, options: Options) -> "wandb.Run":
    """Raises BackendAwayError, or ExporterRefusedError."""
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True,
        init_timeout=OPENING_SECONDS,
    )  # fmt: skip
    try:
        return wandb.init(
            project=options.project or os.environ.get("WANDB_PROJECT") or "sapflow",
            entity=options.entity or None,
            mode=options.mode or None,  # type: ignore[arg-type]
            dir=options.dir or os.environ.get("WANDB_DIR") or str(setting.run_dir / FOLDER),
            id=re.sub(r"[^A-Za-z0-9_-]", "-", setting.run.token or setting.run.run_id)[:LONGEST_ID],
            name=setting.run.run_id,
            resume="allow",
            settings=settings,
        )
    except wandb.Error as error:
        reason = f"W&B cannot be opened: {' '.join(str(error).split())}"
        if isinstance(error, wandb.errors.CommError) and not REFUSED.search(reason):
            raise BackendAwayError(reason) from error
        raise ExporterRefusedError(reason) from error
