"""`sapflow.watch`: any module of any model, measured in a training loop that stays as it is."""

import atexit
import logging
from array import array
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from msgspec.structs import asdict
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import sapflow
from sapflow.errors import InputError
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.report import Report
from sapflow.gradients.sampling import Sampler
from sapflow.gradients.selection import Selector, kind_of, select
from sapflow.health.calibrated import CalibratedPolicy
from sapflow.health.policy import Policy
from sapflow.health.rules import WATCH_RULES, Rule, RuleBook
from sapflow.telemetry import run_directory
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    RunCompleted,
    RunStarted,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.stream import EventStream, Sink
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

log = logging.getLogger("sapflow.watch")

EPOCH_PASSES = 100
HISTORY = ("epoch", "passes", "grad_ratio", "entering_norm", "leaving_norm", "min_ratio", "max_ratio", "last_ratio")

# Watchers that are open, by the run directory that was asked for: watching into it again closes the one before.
_open: dict[Path, "Watcher"] = {}


def watch(
    model: nn.Module,
    what: Selector | Iterable[Selector],
    *,
    run_dir: str | Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    policy: Policy | None = None,
    rules: Iterable[Rule] = WATCH_RULES,
    on_verdict: Callable[[str, SeedTelemetry], None] | None = None,
    epoch_every: int = EPOCH_PASSES,
    process_group: "ProcessGroup | None" = None,
) -> "Watcher":
    """Measure the gradient flow of modules of `model`, on every backward pass, until the watcher is closed.

    Args:
        model: any module; nothing of it is changed, and nothing is left on it in the end.
        what: names of modules as globs ("layers.*.adapter", "**.head"), a type of module, a predicate of name and
            module, or several of these.
        run_dir: where to keep the telemetry, for `sapflow sanctum`; if it exists, a new one beside it. None keeps none.
        optimizer: closes a pass with each step. None: every optimizer that trains the model does, and where there is
            none, the model's next forward.
        policy: judges the readings; `CalibratedPolicy` by default, since the record's band does not fit modules that
            nobody built for it.
        rules: raise alerts.
        on_verdict: called with name and telemetry of every module at the end of each epoch; what it raises is logged.
        epoch_every: passes after which an epoch is closed, unless `epoch()` was called before.
        process_group: all ranks that train the model together (usually torch.distributed.group.WORLD); each must watch
            the same and call `epoch()` and `close()` at the same steps, and gets the gain of the global batch (see
            `GradientMonitor`). The group's rank 0 keeps the telemetry; `run_dir` is ignored on the others. None: this
            rank's own gain.

    Raises:
        InputError: a selector means no module (the message shows what comes near), the directory cannot be made, or
            this rank is not in the group.
    """
    if epoch_every < 1:
        raise InputError(f"epoch_every={epoch_every}: an epoch needs at least 1 pass")
    modules = select(model, what)
    keeps = process_group is None or dist.get_rank(process_group) == 0
    asked = Path(run_dir).resolve() if run_dir is not None and keeps else None
    if asked is not None and asked in _open:
        _open[asked]._close_alone()
    if process_group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        log.info("watching this rank alone; process_group=torch.distributed.group.WORLD watches all ranks as one")
    watcher = Watcher(model, optimizer, policy, rules, on_verdict, epoch_every, asked, process_group)
    watcher._attach(modules)
    return watcher


class Watcher:
    """Modules of a model under watch; made by `watch`, a context manager."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        policy: Policy | None,
        rules: Iterable[Rule],
        on_verdict: Callable[[str, SeedTelemetry], None] | None,
        epoch_every: int,
        run_dir: Path | None,
        process_group: "ProcessGroup | None",
    ) -> None:
        self.model = model
        self.epochs = 0
        self.run_dir: Path | None = None
        self._closed = False
        self._last: dict[str, SeedTelemetry] = {}
        self._epoch_every = epoch_every
        self._on_verdict = on_verdict
        self._modules: dict[str, nn.Module] = {}
        self._history: dict[str, dict[str, array[float]]] = {}
        self._rules = RuleBook(rules)
        self._total_passes = self._total_alerts = 0
        self._kept = ExitStack()
        sink = self._keep(run_dir) if run_dir is not None else _Nowhere()
        run_id = self.run_dir.name if self.run_dir is not None else "watch"
        self._run_stream, self._stream = EventStream(sink, run_id), EventStream(sink, run_id, 0)
        self._monitor = GradientMonitor(
            policy=CalibratedPolicy() if policy is None else policy,
            optimizer=optimizer,
            root=model if optimizer is None else None,
            on_pass=self._on_pass,
            process_group=process_group,
        )
        self._sampler = Sampler(self._monitor, self._stream, lambda name: (name, kind_of(self._modules[name])))
        self._kept.callback(self._monitor.close)
        if optimizer is None:
            self._kept.callback(register_optimizer_step_post_hook(self._on_optimizer_step).remove)
        atexit.register(self._close_alone)
        self._kept.callback(atexit.unregister, self._close_alone)
        self._run_stream.emit(
            RunStarted(
                task=kind_of(model),
                envs=1,
                epochs=0,
                versions={"sapflow": sapflow.__version__, "torch": str(torch.__version__)},
            )
        )

    def add(self, what: Selector | Iterable[Selector]) -> None:
        """Watch further modules, grown since; those that are watched already stay as they are.

        Raises:
            InputError: a selector means no module.
        """
        self._attach(select(self.model, what))

    def step(self) -> None:
        """Close the pass, in a loop that Sapflow cannot see the end of by itself."""
        self._monitor.step()

    def telemetry(self) -> dict[str, SeedTelemetry]:
        """Every module over the passes of the epoch so far; waits for the device."""
        return self._as_telemetry(self._monitor.health())

    def epoch(self) -> dict[str, SeedTelemetry]:
        """Close the epoch: judge, say, raise and clear alerts; waits for the device."""
        self._monitor.end_open_pass()
        self._sampler.finish(self.epochs + 1)
        self._total_passes += self._monitor.passes
        telemetry = self._as_telemetry(self._monitor.close_epoch())
        self.epochs += 1
        for name, seed in telemetry.items():
            self._remember(name, seed)
        self._last = telemetry
        self._apply_rules(telemetry)
        self._stream.emit(
            EpochCompleted(
                epoch=self.epochs,
                epochs=0,
                seeds=tuple(telemetry.values()),
                open_alerts=tuple(self._rules.open_alerts),
                total_passes=self._total_passes,
                total_alerts=self._total_alerts,
            )
        )
        if self._on_verdict is not None:
            self._tell(self._on_verdict, telemetry)
        return telemetry

    def report(self) -> Report:
        """A table of the epoch so far, or of the last one while it has no pass; print it, or let a notebook show it."""
        telemetry = self.telemetry()
        if not self._monitor.passes and self._last:
            telemetry = self._last
        return Report(telemetry)

    def history(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """By module: an array for each of HISTORY, with one element an epoch that was closed."""
        return {
            name: {field: np.array(values) for field, values in fields.items()}
            for name, fields in self._history.items()
        }

    def close(self) -> None:
        """Close the epoch that is open, take every probe off the model, and complete the run. Again: nothing."""
        if self._closed:
            return
        self._monitor.end_open_pass()
        if self._monitor.passes:
            self.epoch()
        self._stream.emit(EnvCompleted(epoch=self.epochs))
        self._run_stream.emit(RunCompleted(completed_envs=1))
        self._kept.close()
        self._closed = True

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_alone()

    def _close_alone(self) -> None:
        """Close at a moment that other ranks may not share: meeting them here could block them, or this one."""
        self._monitor.stay_local()
        self.close()

    def __repr__(self) -> str:
        return str(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def _keep(self, run_dir: Path) -> Sink:
        """A journal in the directory or one beside it, closed with the watcher."""
        self.run_dir = run_directory.create_beside(run_dir)
        self._kept.enter_context(run_directory.TrainerLock(self.run_dir))
        journal = Journal(self.run_dir)
        self._kept.callback(journal.close)
        _open[run_dir] = self
        self._kept.callback(_open.pop, run_dir, None)
        return journal

    def _attach(self, modules: dict[str, nn.Module]) -> None:
        """Begin to measure those that are not measured yet."""
        fresh = {name: module for name, module in modules.items() if name not in self._modules}
        self._modules |= fresh
        for name, module in fresh.items():
            self._monitor.attach(name, module)
        if len(fresh) == len(self._modules):
            host_params = sum(parameter.numel() for parameter in self.model.parameters())
            started = EnvStarted(host=kind_of(self.model), host_params=host_params, slot_ids=tuple(fresh), epochs=0)
            self._stream.emit(started)
        for name, module in fresh.items():
            self._stream.emit(
                SeedStageChanged(
                    epoch=self.epochs,
                    slot_id=name,
                    seed_id=name,
                    blueprint_id=kind_of(module),
                    from_stage=SeedStage.DORMANT,
                    to_stage=SeedStage.WATCHED,
                    reason="watched from now on",
                )
            )

    def _on_pass(self) -> None:
        if self._monitor.passes >= self._epoch_every:
            self.epoch()
        else:
            self._sampler.poll(self.epochs + 1)

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Any optimizer's step, anywhere: it ends a pass if it trains this model."""
        ours = {id(parameter) for parameter in self.model.parameters()}
        if any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]):
            self._monitor.step()

    def _as_telemetry(self, health: dict[str, GradientHealth]) -> dict[str, SeedTelemetry]:
        return {
            name: SeedTelemetry(
                slot_id=name,
                seed_id=name,
                blueprint_id=kind_of(self._modules[name]),
                stage=SeedStage.WATCHED,
                epochs_in_stage=self.epochs,
                alpha=1.0,
                seed_params=sum(parameter.numel() for parameter in self._modules[name].parameters()),
                **asdict(flow),
            )
            for name, flow in health.items()
        }

    def _remember(self, name: str, seed: SeedTelemetry) -> None:
        fields = self._history.setdefault(name, {field: array("d") for field in HISTORY})
        for field, values in fields.items():
            values.append(self.epochs if field == "epoch" else getattr(seed, field))

    def _apply_rules(self, telemetry: dict[str, SeedTelemetry]) -> None:
        outcome = self._rules.evaluate(self.epochs, telemetry.values())
        self._total_alerts += len(outcome.raised)
        for alert in outcome.raised:
            self._stream.emit(AlertRaised(epoch=self.epochs, alert=alert))
        for alert in outcome.cleared:
            self._stream.emit(AlertCleared(epoch=self.epochs, alert=alert, reason="back to normal"))

    def _tell(self, on_verdict: Callable[[str, SeedTelemetry], None], telemetry: dict[str, SeedTelemetry]) -> None:
        """Training comes first: a callback that raises is logged and called no more."""
        try:
            for name, seed in telemetry.items():
                on_verdict(name, seed)
        except Exception:
            log.exception("on_verdict raised and is called no more")
            self._on_verdict = None


class _Nowhere:
    """The sink of a watcher that keeps nothing."""

    def emit(self, event: TelemetryEvent) -> None:
        """Let it go."""
