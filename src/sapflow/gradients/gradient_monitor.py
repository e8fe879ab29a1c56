"""The monitor: probes on modules, passes and epochs of them, and a verdict on each module's gradient flow."""

import copy
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from sapflow.errors import InputError
from sapflow.gradients import closing
from sapflow.gradients.decisions import Decisions
from sapflow.gradients.epoch_sums import EpochSums
from sapflow.gradients.origin import Origin, OriginSearch
from sapflow.gradients.pass_samples import PassSample, Unsampled
from sapflow.gradients.pass_sums import PassSums
from sapflow.gradients.ranks import Ranks
from sapflow.gradients.reading import health_of
from sapflow.gradients.roster import Roster
from sapflow.gradients.vitals import Rounds, VitalSigns, signs_of
from sapflow.health.policy import OVERFLOWS_IN_A_ROW, HealthPolicy, Need, Policy
from sapflow.telemetry.events import GradientHealth

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

log = logging.getLogger("sapflow.gradients")


class GradientMonitor:
    """Measures grad_ratio = ‖∂L/∂input‖₂ / ‖∂L/∂output‖₂ of modules, on every backward pass.

    TELE-557 says "output gradient norm to input gradient norm" and means the output and the input *of the backward
    pass*: the gradient that leaves a module towards its input over the one that enters at its output, in PyTorch's
    names ‖grad_input‖/‖grad_output‖. So ≪ 1 is vanishing and ≫ 1 exploding.

    A pass is everything that is backpropagated until it is closed: by the update of `grad_scaler`, by the step of
    `optimizer`, by a call of `step()`, or, with none of these, by the next forward of `root` after a backward. An epoch
    is closed by `close_epoch()`. Nothing synchronises with the device until an epoch closes or its `health()` is asked
    for.

    Args:
        modules: what to measure, by name; more can be attached later.
        policy: judges the readings; the record's band by default.
        optimizer: closes a pass after each of its steps.
        grad_scaler: closes a pass with each of its updates, also when it skips the optimizer's step; its scale is
            divided out of the norms, and overflowed passes are its normal business (see `HealthPolicy`).
        root: closes a pass when its forward is called again; for loops that have none of these and no `step()`.
        on_closing: called after each closing; what it raises comes up in the training loop.
        on_origin: told where NaN or infinity was born, once for each run of non-finite passes.
        every: measure one pass of so many; of the others, the calls of the hooks alone cost something.
        activations: measure the forward pass, too, to tell a birth of NaN there.
        keep_passes: for `samples()`.
        ring_passes: closed passes that wait on the device for one copy to the host.
        process_group: all ranks that train the model together (usually torch.distributed.group.WORLD), each with a
            monitor of the same names: `close_epoch()`, called at the same step on all of them, gives the gain of the
            global batch, with norms of its mean loss. Attach after parallelize_module, and close by the optimizer or
            by `step()`, not by both: every closing counts. None: this rank's own; other drains always are.
        windows: keep what `close_window` needs.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | None = None,
        *,
        policy: Policy | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        root: nn.Module | None = None,
        on_closing: Callable[[], None] | None = None,
        on_origin: Callable[[Origin], None] | None = None,
        every: int = 1,
        activations: bool = False,
        keep_passes: bool = True,
        ring_passes: int = 32,
        process_group: "ProcessGroup | None" = None,
        windows: bool = False,
    ) -> None:
        if every < 1:
            raise InputError(f"every={every}: measure one pass of at least 1")
        self.policy: Policy = HealthPolicy() if policy is None else policy
        self.passes_before_epoch = 0
        self.closings = 0  # since the epoch began, with those that ended no pass
        self.on_closing = on_closing
        self.on_origin = on_origin
        self._every = every
        self._loss_scaled = grad_scaler is not None and grad_scaler.is_enabled()
        self._search = OriginSearch(OVERFLOWS_IN_A_ROW if self._loss_scaled else 1)
        columns = 4 if activations or Need.OUTPUT_INPUT_RMS in self.policy.needs else 2
        self._ranks = Ranks(process_group)
        self._sums = PassSums(
            ring_passes,
            columns,
            lambda: closing.scale_of(grad_scaler),
            self._glance_at_open_pass,
            every_activation=activations,
            ranks=self._ranks if self._ranks.together else None,
        )
        self._epoch = EpochSums(self._sums.rows)
        self._windows = windows
        self._decisions = Decisions(self._ranks, windows=windows)
        self._roster = Roster(self._sums)
        self._keep_passes = keep_passes
        self._unsampled = Unsampled()
        self._closers = ExitStack()
        self._closers.callback(closing.arranged(grad_scaler, optimizer, root, self._close_pass, self._close_at_root))
        self._root_closes = True
        self._alarmed = self._failed = False
        self._rounds = Rounds(self._sums)
        self._rounds.choose()
        for name, module in (modules or {}).items():
            self.attach(name, module)

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are measured, in the order they were attached."""
        return tuple(self._roster)

    @property
    def passes(self) -> int:
        """Passes closed since the epoch began."""
        return self._sums.passes_closed

    def attach(self, name: str, module: nn.Module) -> None:
        """Measure `module` from its next forward on.

        Raises:
            InputError: the name is taken.
        """
        vitals = Need.PARAMETER_LIVENESS in self.policy.needs
        self._roster.attach(name, module, self.policy.new_memory(name), vitals=vitals)
        if self._sums.rows > self._epoch.rows:
            self._epoch.grow(self._sums.rows)
        self._rounds.begin_young()

    def detach(self, name: str) -> None:
        """Stop measuring a module and leave nothing on it; what its epoch had so far is gone."""
        self._roster.detach(name)

    def step(self) -> None:
        """Close the pass; from the first call on, the root's forward no longer does."""
        self._root_closes = False  # its hook stays: a change of hooks would compile a compiled model anew
        self._close_pass()

    def end_open_pass(self) -> None:
        """Close what was backpropagated since the last closing, if anything; before an epoch is closed.

        Where modules are compiled, this waits for the device.
        """
        if self._sums.fired or self._sums.skipped or (self._sums.compiled and self._sums.anything_added()):
            self._end_pass(after_step=False)

    def drop_open_pass(self) -> None:
        """Forget what was backpropagated since the last closing, as nothing is going to be learned from it."""
        self._roster.forget_open_calls()
        self._sums.drop_pass()

    def only(self, name: str) -> AbstractContextManager[None]:
        """Let one module's probe listen and no other, for a forward whose loss is that module's alone."""
        return self._roster.only(name)

    def health(self) -> dict[str, GradientHealth]:
        """The epoch so far, of every module; waits for the device."""
        self._sums.send()
        self._receive(wait=True)
        return self._verdicts(self._epoch, signs_of(self._roster.vital_numbers()), remember=False)

    def latest_health(self) -> dict[str, GradientHealth]:
        """The epoch so far, up to the last passes that have reached the host, without its parameters; never waits."""
        return self._verdicts(self._epoch, {}, remember=False)

    def samples(self, *, wait: bool = False) -> dict[str, PassSample]:
        """Every pass that has reached the host since the last call, of each module it fired in.

        Waits for nothing; with `wait`, for the device, so that every pass that was closed is there.
        """
        self._sums.send()
        self._receive(wait=wait)
        return self._unsampled.take(self._roster.rows())

    def close_window(self) -> dict[str, GradientHealth]:
        """Judge the passes since the last window of the epoch, or its beginning; waits for the device, and ranks meet.

        For decisions within an epoch, where the monitor was told of `windows`: the policy then remembers windows, not
        epochs.
        """
        window, signs = self._decide()
        self._rounds.choose(window_begins=True)
        return self._verdicts(window, signs)

    def close_epoch(self) -> dict[str, GradientHealth]:
        """Close the open pass and the epoch, judge every module, and begin the next epoch; waits for the device."""
        self.end_open_pass()
        _, signs = self._decide()
        measured = self._roster.rows().values()
        health = self._verdicts(self._decisions.end_epoch(self._epoch, measured), signs, remember=not self._windows)
        self._epoch = self._epoch.following(self._sums.rows, measured)
        self.passes_before_epoch += self._sums.passes_closed
        self._sums.passes_closed = self._sums.passes_measured = self.closings = 0
        self._rounds.choose()
        self._unsampled = Unsampled()
        self._roster.begin_epoch()
        return health

    def _decide(self) -> tuple[EpochSums, dict[str, VitalSigns]]:
        self._sums.send()
        self._receive(wait=True)
        window, numbers = self._decisions.take(self._sums, self._roster.rows(), self._roster.vital_numbers())
        return window, signs_of(numbers)

    def stay_local(self) -> None:
        """Meet the other ranks of the process group no more."""
        self._ranks.stay_local()

    def close(self) -> None:
        """Detach everything and leave nothing behind, on modules, optimizer or scaler."""
        for name in self.names:
            self.detach(name)
        self._closers.close()

    def __enter__(self) -> "GradientMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_at_root(self) -> None:
        self._roster.forget_open_calls()  # a loop that goes on with a smaller batch, out of memory, needs theirs
        if self._root_closes and self._sums.open:
            self._close_pass(after_step=False)

    def _close_pass(self, *, after_step: bool = True) -> None:
        """End a pass; a closing before which nothing fired ends none, but is counted. Training comes first."""
        self.closings += 1
        self._ranks.counted_passes += 1
        try:
            self._end_pass(after_step=after_step)
            if self._alarmed:  # to tell of NaN at once
                self._alarmed = False
                self._sums.send()
                self._receive(wait=False)
        except Exception:
            self._say_failure()
        if self.on_closing is not None:
            self.on_closing()

    def _say_failure(self) -> None:
        if not self._failed:
            log.exception("what follows a pass failed; training goes on, and what fails again is not logged")
        self._failed = True

    def _end_pass(self, *, after_step: bool) -> None:
        # To look takes a while, and the 1st, 2nd, 4th, 8th … closing of an epoch tell.
        self._roster.end_pass(look=self.closings & (self.closings - 1) == 0)
        if not (self._sums.open or (self._ranks.together and self._roster)):  # a pass on one rank is one on all
            return
        self._rounds.end_pass(self._roster.vitals, after_step=after_step)
        self._sums.close_pass()
        self._rounds.choose()
        self._sums.paused = (self.passes_before_epoch + self._sums.passes_closed) % self._every != 0

    def _receive(self, *, wait: bool) -> None:
        for block in self._sums.receive(wait=wait):
            squares = block.squares()
            self._epoch.add(squares)
            self._decisions.keep(squares)
            if self._keep_passes:
                self._unsampled.add(block.pass_index, squares)
            numbers = [(index, self.passes_before_epoch + index + 1) for index in block.pass_index]
            closed = self.passes_before_epoch + self._sums.passes_closed
            for origin in self._search.follow(squares, numbers, self._roster.places(), closed):
                if self.on_origin is not None:
                    self.on_origin(origin)

    def _glance_at_open_pass(self) -> None:
        passes = self.passes_before_epoch + self._sums.passes_closed + 1
        try:
            self._alarmed |= self._search.glance(passes, self._roster.places(), any_nan=self._sums.any_nan())
        except Exception:  # in the midst of the user's backward
            self._say_failure()

    def _verdicts(
        self, sums: EpochSums, signs: Mapping[str, VitalSigns], *, remember: bool = True
    ) -> dict[str, GradientHealth]:
        health = {}
        for name, watched in self._roster.items():
            memory = watched.memory if remember else copy.deepcopy(watched.memory)
            reading = watched.read(sums, signs.get(name, VitalSigns()), loss_scaled=self._loss_scaled)
            health[name] = health_of(reading, self.policy.judge(reading, memory))
        return health
