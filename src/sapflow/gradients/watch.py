"""`sapflow.watch`: any module of any model, measured in a training loop that stays as it is."""

import atexit
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from sapflow.errors import InputError
from sapflow.gradients import closing
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.origin import Origin
from sapflow.gradients.reading import seed_of
from sapflow.gradients.report import History, Report, chain_of
from sapflow.gradients.sampling import Sampler
from sapflow.gradients.selection import Selector, kind_of, select, unwrapped
from sapflow.gradients.watch_journal import WatchJournal
from sapflow.health.calibrated import CalibratedPolicy
from sapflow.health.policy import Policy, Verdict
from sapflow.health.rules import WATCH_RULES, Rule, RuleBook, check_watch_rules
from sapflow.telemetry.events import GradientHealth, NonFiniteOrigin, SeedTelemetry

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

log = logging.getLogger("sapflow.watch")

EPOCH_PASSES = 100

# Watchers that are open, by the run directory that was asked for: watching into it again closes the one before.
_open: dict[Path, "Watcher"] = {}


def watch(
    model: nn.Module,
    what: Selector | Iterable[Selector],
    *,
    run_dir: str | Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    grad_scaler: torch.amp.GradScaler | None = None,
    policy: Policy | None = None,
    rules: Iterable[Rule] = WATCH_RULES,
    on_verdict: Callable[[str, SeedTelemetry], None] | None = None,
    every: int = 1,
    epoch_every: int = EPOCH_PASSES,
    activations: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> "Watcher":
    """Measure the gradient flow of modules of `model`, on every backward pass, until the watcher is closed.

    A model that is to be compiled is watched first and compiled then.

    Args:
        model: any module; nothing of it is changed, and nothing is left on it in the end.
        what: names of modules as globs ("layers.*.adapter", "**.head"), a type of module, a predicate of name and
            module, or several of these.
        run_dir: where to keep the telemetry, for `sapflow sanctum`; if it exists, a new one beside it. None keeps none.
        optimizer: closes a pass with each step. None: every optimizer that trains the model does, and where there is
            none, the model's next forward.
        grad_scaler: closes a pass with each update instead; its scale is divided out of the norms.
        policy: judges the readings; `CalibratedPolicy` by default, since the record's band does not fit modules that
            nobody built for it.
        rules: raise alerts, at the ends of epochs; what is watched is not acted on.
        on_verdict: called with name and telemetry of every module at the end of each epoch; what it raises is logged.
        every: measure one pass of so many; of the others, the calls of the hooks alone cost something.
        epoch_every: passes after which an epoch is closed, unless `epoch()` was called before.
        activations: look for the birth of NaN in the forward passes, too.
        process_group: all ranks that train the model together (usually torch.distributed.group.WORLD); each must watch
            the same and call `epoch()` and `close()` at the same steps, and gets the gain of the global batch (see
            `GradientMonitor`). The group's rank 0 keeps the telemetry; `run_dir` is ignored on the others. None: this
            rank's own gain.

    Raises:
        InputError: a selector means no module (the message shows what comes near), a rule is for passes, for slots, or
            has actions, the directory cannot be made, or this rank is not in the group.
    """
    if epoch_every < 1:
        raise InputError(f"epoch_every={epoch_every}: an epoch needs at least 1 pass")
    rule_book = RuleBook(check_watch_rules(rules))
    modules = select(model, what)
    keeps = process_group is None or dist.get_rank(process_group) == 0
    asked = Path(run_dir).resolve() if run_dir is not None and keeps else None
    if asked is not None and asked in _open:
        _open[asked]._close_alone()
    if process_group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        log.info("watching this rank alone; process_group=torch.distributed.group.WORLD watches all ranks as one")
    monitor = GradientMonitor(
        policy=CalibratedPolicy() if policy is None else policy,
        optimizer=optimizer,
        grad_scaler=grad_scaler,
        root=model if optimizer is None else None,
        every=every,
        activations=activations,
        keep_passes=asked is not None,
        process_group=process_group,
    )
    try:
        journal = WatchJournal(asked, model)
    except InputError:
        monitor.close()
        raise
    watcher = Watcher(model, monitor, journal, rule_book, on_verdict, epoch_every)
    if optimizer is None and grad_scaler is None:
        watcher._kept.callback(closing.at_any_optimizer_step(model, monitor.step))
    if asked is not None:
        _open[asked] = watcher
        watcher._kept.callback(_open.pop, asked, None)
    watcher._attach(modules)
    return watcher


class Watcher:
    """Modules of a model under watch; made by `watch`, a context manager.

    `non_finite` holds where NaN or infinity was born, once for each run of non-finite passes.
    """

    def __init__(
        self,
        model: nn.Module,
        monitor: GradientMonitor,
        journal: WatchJournal,
        rules: RuleBook,
        on_verdict: Callable[[str, SeedTelemetry], None] | None,
        epoch_every: int,
    ) -> None:
        self.model = model
        self.epochs = 0
        self.non_finite: list[NonFiniteOrigin] = []
        self._closed = self._failed = False
        self._last: dict[str, SeedTelemetry] = {}
        self._epoch_every = epoch_every
        self._on_verdict = on_verdict
        self._modules: dict[str, nn.Module] = {}
        self._history = History()
        self._rules = rules
        self._journal = journal
        self._monitor = monitor
        monitor.on_closing = self._on_closing
        monitor.on_origin = self._on_origin
        self._sampler = Sampler(monitor, journal.stream, lambda name: (name, kind_of(self._modules[name])))
        self._kept = ExitStack()
        self._kept.callback(monitor.close)
        atexit.register(self._close_alone)
        self._kept.callback(atexit.unregister, self._close_alone)

    @property
    def run_dir(self) -> Path | None:
        """Where the telemetry is kept; None if nowhere."""
        return self._journal.run_dir

    def add(self, what: Selector | Iterable[Selector]) -> None:
        """Watch further modules, grown since or put in the place of others; those that are watched stay as they are.

        Raises:
            InputError: a selector means no module, or the watcher is closed.
        """
        if self._closed:
            raise InputError("watcher.add() after watcher.close(): begin another with sapflow.watch()")
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
        if self.run_dir is not None:
            self._sampler.finish(self.epochs + 1)
        telemetry = self._as_telemetry(self._monitor.close_epoch())
        self.epochs += 1
        self._history.add(self.epochs, telemetry)
        self._last = telemetry
        self._journal.epoch(self.epochs, tuple(telemetry.values()), self._rules, self._monitor.passes_before_epoch)
        if self._on_verdict is not None:
            self._tell(self._on_verdict, telemetry)
        return telemetry

    def report(self) -> Report:
        """A table of the epoch so far, or of the last one while it has no pass; print it, or let a notebook show it."""
        return Report(self._current())

    def chain(self, what: Selector | Iterable[Selector] = "**") -> Verdict:
        """The gain of watched blocks that feed one another, as one: the product of theirs, in words and flags.

        Over the epoch so far, or the last one while it has no pass. Flagged beyond [0.01, 100], the ends of the band
        that `CalibratedPolicy(depth=…)` divides among so many blocks. Choose modules of which none contains another.

        Raises:
            InputError: a selector means no module, or none that is watched.
        """
        names = [name for name in select(self.model, what) if name in self._modules]
        if not names:
            raise InputError(
                f"none of the modules that {what!r} means is watched: there are {', '.join(self._modules)}"
            )
        current = self._current()
        return chain_of({name: current[name] for name in names})

    def history(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """By module: an array for each of HISTORY, with one element an epoch that was closed."""
        return self._history.arrays()

    def close(self) -> None:
        """Close the epoch that is open, take every probe off the model, and complete the run. Again: nothing."""
        if self._closed:
            return
        self._closed = True
        with self._kept:  # whatever fails, nothing is left on the model
            try:
                self._monitor.end_open_pass()
                if self._unclosed_passes():
                    self.epoch()
            finally:
                self._journal.close(self.epochs)

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

    def _current(self) -> dict[str, SeedTelemetry]:
        telemetry = self.telemetry()
        return self._last if self._last and not self._monitor.passes else telemetry

    def _attach(self, modules: dict[str, nn.Module]) -> None:
        """Begin to measure those that are not measured yet, and those that have taken the place of another module."""
        known = {name: unwrapped(module) for name, module in self._modules.items()}
        fresh = {name: module for name, module in modules.items() if known.get(name) is not unwrapped(module)}
        self._modules |= fresh
        for name, module in fresh.items():
            if name in known:
                self._monitor.detach(name)
            self._monitor.attach(name, module)
        self._journal.watched(fresh, self.epochs)

    def _on_closing(self) -> None:
        """Training comes first: what fails here is logged once."""
        try:
            self._look_at_the_clock()
        except Exception:
            if not self._failed:
                log.exception("what follows a pass failed; training goes on, and what fails again is not logged")
            self._failed = True

    def _look_at_the_clock(self) -> None:
        if self._unclosed_passes() >= self._epoch_every:
            self.epoch()
        elif self.run_dir is not None:
            self._sampler.poll(self.epochs + 1)

    def _unclosed_passes(self) -> int:
        """Passes of the epoch so far; where probes are lost no pass is ever closed, and that is to be told, too."""
        return self._monitor.passes or self._monitor.closings

    def _on_origin(self, origin: Origin) -> None:
        module = self._modules.get(origin.module)
        blueprint_id = kind_of(module) if module is not None else ""
        self.non_finite.append(self._journal.origin(self.epochs + 1, origin, blueprint_id))
        log.warning("NaN or infinity was %s", origin.text)

    def _as_telemetry(self, health: dict[str, GradientHealth]) -> dict[str, SeedTelemetry]:
        return {name: seed_of(name, self._modules[name], flow, self.epochs) for name, flow in health.items()}

    def _tell(self, on_verdict: Callable[[str, SeedTelemetry], None], telemetry: dict[str, SeedTelemetry]) -> None:
        """Training comes first: a callback that raises is logged and called no more."""
        try:
            for name, seed in telemetry.items():
                on_verdict(name, seed)
        except Exception:
            log.exception("on_verdict raised and is called no more")
            self._on_verdict = None
