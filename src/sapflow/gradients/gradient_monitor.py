"""The monitor: probes on modules, passes and epochs of them, and a verdict on each module's gradient flow."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sapflow.errors import InputError
from sapflow.gradients.epoch_sums import EpochSums, fired_cells
from sapflow.gradients.pass_sums import ENTERING, LEAVING, PassBlock, PassSums
from sapflow.gradients.probe import Probe, inside_backward
from sapflow.gradients.ranks import Ranks
from sapflow.gradients.reading import reading_of
from sapflow.gradients.vitals import VITALS_EVERY, Vitals, VitalSigns, note_liveness, signs_of
from sapflow.health.policy import HealthPolicy, Policy
from sapflow.telemetry.events import GradientHealth

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Blocks of passes that wait to be sampled; an epoch longer than anybody samples loses its oldest, and counts them.
UNSAMPLED_BLOCKS = 64


class PassSample(NamedTuple):
    """Passes of one module: their indices within the epoch and the norms of each; non-finite norms are data."""

    pass_index: tuple[int, ...]
    entering: tuple[float, ...]
    leaving: tuple[float, ...]


@dataclass
class _Watched:
    probe: Probe
    memory: Any
    vitals: Vitals | None


class GradientMonitor:
    """Measures grad_ratio = ‖∂L/∂input‖₂ / ‖∂L/∂output‖₂ of modules, on every backward pass.

    TELE-557 says "output gradient norm to input gradient norm" and means the output and the input *of the backward
    pass*: the gradient that leaves a module towards its input over the one that enters at its output, in PyTorch's
    names ‖grad_input‖/‖grad_output‖. So ≪ 1 is vanishing and ≫ 1 exploding.

    A pass is everything that is backpropagated until it is closed: by the step of `optimizer`, by a call of `step()`,
    or, with neither, by the next forward of `root` after a backward. An epoch is closed by `close_epoch()`. Nothing
    synchronises with the device until an epoch closes or its `health()` is asked for.

    Args:
        modules: what to measure, by name; more can be attached later.
        policy: judges the readings; the record's band by default.
        optimizer: closes a pass after each of its steps.
        root: closes a pass when its forward is called again; for loops that have neither optimizer nor `step()`.
        on_pass: called after each pass that was closed.
        loss_scaled: a GradScaler is at work: overflowed passes are its normal business (see `HealthPolicy`).
        ring_passes: closed passes that wait on the device for one copy to the host.
        process_group: all ranks that train the model together (usually torch.distributed.group.WORLD), each with a
            monitor of the same names. `close_epoch()` then meets the others, gives the gain of the global batch (norms
            are those of its mean loss, each rank's being the mean over its equal share), and must be called at the same
            step on every rank; other drains stay local. Every closing counts as a pass,
            whether anything fired on this rank or not: close by the optimizer or by `step()`, not by both. Attach after
            parallelize_module: a colwise linear's leaving gradient is then summed over its ranks in each backward.
            None: this rank's own.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | None = None,
        *,
        policy: Policy | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        root: nn.Module | None = None,
        on_pass: Callable[[], None] | None = None,
        loss_scaled: bool = False,
        ring_passes: int = 64,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self.policy: Policy = HealthPolicy() if policy is None else policy
        self.loss_scaled = loss_scaled
        self._on_pass = on_pass
        self.passes_lost_to_sampling = 0
        self._ranks = Ranks(process_group)
        self._sums = PassSums(ring_passes, ranks=self._ranks)
        self._epoch = EpochSums(self._sums.rows)
        self._watched: dict[str, _Watched] = {}
        self._free_rows = list(range(self._sums.rows))
        self._retired_rows: list[int] = []
        self._unsampled: deque[PassBlock] = deque()
        self._root_handle: RemovableHandle | None = None
        self._optimizer_handle: RemovableHandle | None = None
        if optimizer is not None:
            self._optimizer_handle = optimizer.register_step_post_hook(lambda *_: self._close_pass())
        elif root is not None:
            self._root_handle = root.register_forward_pre_hook(self._on_root_forward)
        for name, module in (modules or {}).items():
            self.attach(name, module)

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are measured, in the order they were attached."""
        return tuple(self._watched)

    @property
    def passes(self) -> int:
        """Passes closed since the epoch began."""
        return self._sums.passes_closed

    def attach(self, name: str, module: nn.Module) -> None:
        """Measure `module` from its next forward on.

        Raises:
            InputError: the name is taken.
        """
        if name in self._watched:
            raise InputError(f"the name {name!r} is being measured already: detach it first, or choose another")
        if not self._free_rows:
            first, rows = self._sums.rows, 2 * self._sums.rows
            self._sums.grow(rows)
            self._epoch.grow(rows)
            self._free_rows = list(range(first, rows))
        row = self._free_rows.pop(0)
        self._sums.reset_row(row)
        probe, memory = Probe(module, self._sums, row), self.policy.new_memory(name)
        self._watched[name] = _Watched(probe, memory, Vitals(module, probe) if self.policy.needs else None)

    def detach(self, name: str) -> None:
        """Stop measuring a module and leave nothing on it; what its epoch had so far is gone."""
        watched = self._watched.pop(name)
        self._retired_rows.append(watched.probe.row)
        watched.probe.remove()
        if watched.vitals is not None:
            watched.vitals.remove()

    def step(self) -> None:
        """Close the pass; from the first call on, the root's forward no longer does."""
        self._remove_root_hook()
        self._close_pass()

    def end_open_pass(self) -> None:
        """Close what was backpropagated since the last closing, if anything; before an epoch is read or closed."""
        if self._sums.fired:
            self._end_pass()

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Let one module's probe listen and no other, for a forward whose loss is that module's alone."""
        others = [watched.probe for other, watched in self._watched.items() if other != name]
        was_muted = [probe.muted for probe in others]
        for probe in others:
            probe.muted = True
        try:
            yield
        finally:
            for probe, muted in zip(others, was_muted, strict=True):
                probe.muted = muted

    def health(self) -> dict[str, GradientHealth]:
        """The epoch so far, of every module; waits for the device."""
        self._sums.send()
        self._receive(wait=True)
        signs = signs_of(self._vital_numbers())
        return {
            name: self._judge(watched, copy.deepcopy(watched.memory), signs.get(name, VitalSigns()))
            for name, watched in self._watched.items()
        }

    def latest_health(self) -> dict[str, GradientHealth]:
        """The epoch so far, up to the last passes that have reached the host, without vital signs; never waits."""
        return {
            name: self._judge(watched, copy.deepcopy(watched.memory), VitalSigns())
            for name, watched in self._watched.items()
        }

    def samples(self, *, wait: bool = False) -> dict[str, PassSample]:
        """Every pass that has reached the host since the last call, of each module it fired in.

        Waits for nothing; with `wait`, for the device, so that every pass that was closed is there.
        """
        self._sums.send()
        self._receive(wait=wait)
        blocks = list(self._unsampled)
        self._unsampled.clear()
        sampled = {name: _sample(blocks, watched.probe.row) for name, watched in self._watched.items()}
        return {name: sample for name, sample in sampled.items() if sample.pass_index}

    def close_epoch(self) -> dict[str, GradientHealth]:
        """Close the open pass and the epoch, judge every module, and begin the next epoch; waits for the device."""
        self.end_open_pass()
        self._sums.send()
        self._receive(wait=True)
        numbers = self._vital_numbers()
        if self._ranks.together:
            rows = {name: watched.probe.row for name, watched in self._watched.items()}
            self._epoch, numbers = self._ranks.combine(self._epoch, numbers, rows, self._home())
        signs = signs_of(numbers)
        health = {
            name: self._judge(watched, watched.memory, signs.get(name, VitalSigns()))
            for name, watched in self._watched.items()
        }
        self._epoch = EpochSums(self._sums.rows)
        self._sums.passes_closed = 0
        self._unsampled.clear()
        self._free_rows += self._retired_rows
        self._retired_rows = []
        for watched in self._watched.values():
            watched.probe.begin_epoch()
            if watched.vitals is not None:
                watched.vitals.begin_epoch()
                watched.vitals.due = True
        return health

    def stay_local(self) -> None:
        """Meet the other ranks of the process group no more."""
        self._ranks.stay_local()

    def close(self) -> None:
        """Detach everything and leave nothing behind, on modules or optimizer."""
        for name in self.names:
            self.detach(name)
        self._remove_root_hook()
        if self._optimizer_handle is not None:
            self._optimizer_handle.remove()
            self._optimizer_handle = None

    def __enter__(self) -> "GradientMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_pass(self) -> None:
        vitals = [watched.vitals for watched in self._watched.values() if watched.vitals is not None]
        if self._sums.passes_closed % VITALS_EVERY == 0:
            note_liveness(vitals)
        self._sums.close_pass()
        for watched in self._watched.values():
            watched.probe.end_pass()
        for vital in vitals:
            vital.due = self._sums.passes_closed % VITALS_EVERY == 0

    def _close_pass(self) -> None:
        if self._ranks.together:  # a pass on one rank is a pass on all, even where nothing fired
            self._ranks.counted_passes += 1
            self._sums.open_pass(self._home())
        fired = self._sums.fired
        self._end_pass()
        if fired and self._on_pass is not None:
            self._on_pass()

    def _on_root_forward(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and self._sums.fired and not inside_backward():
            self._close_pass()

    def _remove_root_hook(self) -> None:
        if self._root_handle is not None:
            self._root_handle.remove()
            self._root_handle = None

    def _receive(self, *, wait: bool) -> None:
        for block in self._sums.receive(wait=wait):
            self._epoch.add(block.squares)
            self._ranks.keep(block.squares)
            self._unsampled.append(block)
            if len(self._unsampled) > UNSAMPLED_BLOCKS:
                self.passes_lost_to_sampling += len(self._unsampled.popleft().squares)

    def _vital_numbers(self) -> dict[str, torch.Tensor]:
        return {name: watched.vitals.numbers() for name, watched in self._watched.items() if watched.vitals is not None}

    def _home(self) -> torch.device:
        return self._sums.home([watched.probe.module for watched in self._watched.values()])

    def _judge(self, watched: _Watched, memory: Any, signs: VitalSigns) -> GradientHealth:
        reading = reading_of(self._epoch, watched.probe, signs, loss_scaled=self.loss_scaled)
        verdict = self.policy.judge(reading, memory)
        return GradientHealth(
            grad_ratio=reading.grad_ratio,
            has_vanishing=verdict.has_vanishing,
            has_exploding=verdict.has_exploding,
            measurement=reading.measurement,
            measurement_reason=reading.reason,
            passes=reading.passes,
            non_finite_passes=reading.non_finite_passes,
            entering_norm=reading.entering_square**0.5,
            leaving_norm=reading.leaving_square**0.5,
            min_ratio=reading.min_ratio,
            max_ratio=reading.max_ratio,
            last_ratio=reading.last_ratio,
            ratio_histogram=reading.histogram,
            evidence=verdict.evidence,
            output_input_rms=reading.output_input_rms,
            parameter_liveness=reading.parameter_liveness,
        )


def _sample(blocks: list[PassBlock], row: int) -> PassSample:
    """The passes of one row in which something entered or left; a side that did not fire is NaN."""
    pass_index: list[int] = []
    norms: list[list[float]] = []
    for block in blocks:
        if row >= block.squares.shape[1]:
            continue
        cells = block.squares[:, row]
        fired = fired_cells(cells)
        passes = fired.any(-1).nonzero().flatten()
        values = torch.where(fired, cells.double().sqrt(), torch.nan)[passes]
        pass_index += (passes + block.first_pass).tolist()
        norms += values.tolist()
    return PassSample(
        tuple(pass_index), tuple(pair[ENTERING] for pair in norms), tuple(pair[LEAVING] for pair in norms)
    )
