"""The seeds' side of a training step: shadows for those that incubate, blend weights, and optimizers of their own."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.blending import Schedule, blend_weight
from sapflow.growth.guard import device_of
from sapflow.growth.randomness import RandomState
from sapflow.growth.ranks import broadcast_from_first, summed_over_ranks
from sapflow.growth.shadow import Closure, shadow_backward
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LONGEST_REASON = 200

log = logging.getLogger("sapflow.growth")


@dataclass(frozen=True, kw_only=True)
class SeedTraining:
    """How seeds are trained.

    Args:
        blending_steps: steps that the blend weight takes to rise to 1.
        blending: its shape.
        shadow_every: a seed that incubates learns in one step of so many; several take turns. A shadow costs about as
            much as the host's own step behind the slot, and its forward before it.
        learning_rate: of the seeds' Adam, unless `make_optimizer` makes another.
        clip: the largest norm of a seed's gradients, which are clipped apart from the host's.
        make_optimizer: of a seed.

    Raises:
        InputError: a number is too small, or the shape is none.
    """

    blending_steps: int = 100
    blending: Schedule = "sigmoid"
    shadow_every: int = 1
    learning_rate: float = 1e-3
    clip: float = 1.0
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        for name in ("blending_steps", "shadow_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: choose at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}: choose a number above 0")
        if self.blending not in (shapes := get_args(Schedule)):
            raise InputError(f"blending={self.blending!r}: choose one of {', '.join(shapes)}")

    def optimizer_of(self, seed: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer for a seed."""
        if self.make_optimizer is not None:
            return self.make_optimizer(seed)
        return torch.optim.Adam(seed.parameters(), lr=self.learning_rate)


class SeedTrainer:
    """Trains the seeds of one host beside it: what the host cannot see changes no bit of its gradients.

    Args:
        model: what the loop calls: the host, or a wrapper around it (DDP, torch.compile).
        host: the network itself, for the shadows.
        slots: of the host, by slot_id.
        monitor: measures the seeds.
        how: see `SeedTraining`.
        grad_scaler: of the host's loss; seeds carry its scale, and one that overflows misses its own step alone.
        process_group: the ranks that train the same seeds; gradients are averaged over them.
    """

    def __init__(
        self,
        model: nn.Module,
        host: nn.Module,
        slots: Mapping[str, SeedSlot],
        monitor: GradientMonitor,
        how: SeedTraining,
        *,
        grad_scaler: torch.amp.GradScaler | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self.model = model
        self.host = host
        self.slots = slots
        self.monitor = monitor
        self.how = how
        self.steps = 0
        self.shadows = 0
        self._grad_scaler = grad_scaler
        self._scale: Tensor | None = None  # that the gradients of this step carry
        self._process_group = process_group
        self._broken: dict[str, str] = {}  # in this step, by slot_id, and how

    def loss(self, closure: Closure) -> Tensor:
        """The host's loss of a (micro-)batch, for a backward pass; seeds that incubate have had theirs by then."""
        for slot in self._growing(SeedStage.BLENDING):
            if slot.state.paused and slot.state.alpha > 0:
                continue
            slot.blend(blend_weight(self.how.blending, slot.state.blended_steps, self.how.blending_steps))
        due = self._due()
        random_state = RandomState.capture() if due else None
        loss = closure(self.model)
        if self._grad_scaler is not None and self._grad_scaler.is_enabled():
            self._scale = self._grad_scaler.scale(torch.ones((), device=loss.device))
        for slot in due:
            assert random_state is not None
            self.shadows += 1
            try:
                shadow_backward(
                    self.host,
                    slot,
                    closure,
                    random_state=random_state,
                    slots=self.slots.values(),
                    monitor=self.monitor,
                    scale=self._scale,
                )
            except Exception as error:  # training comes first: without the seed, the same has just gone well
                self._broken[slot.state.slot_id] = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
        return loss

    def step(self) -> dict[str, str]:
        """After the host's step every seed that got gradients takes one; gives those whose shadow failed, and how."""
        self._average(list(self._growing()))
        for slot in self._growing():
            assert slot.seed is not None
            assert slot.optimizer is not None
            if self._unscale(slot):
                nn.utils.clip_grad_norm_(slot.seed.parameters(), self.how.clip)
                slot.optimizer.step()
            slot.optimizer.zero_grad()
        for slot in self._growing(SeedStage.BLENDING):
            slot.state.blended_steps += not slot.state.paused
        self.steps += 1
        growing = [slot.state.slot_id for slot in self._growing()]
        broken = {slot_id: self._broken[slot_id] for slot_id in growing if slot_id in self._broken}
        self._broken.clear()
        for slot_id, how in broken.items():
            log.warning("the seed in slot %r fails in its shadow: %s", slot_id, how)
        return broken

    def skip(self) -> None:
        """Let the seeds forget what they had of the batches since the last step, and their measurement likewise."""
        for slot in self._growing():
            assert slot.optimizer is not None
            slot.optimizer.zero_grad()
        self.monitor.drop_open_pass()

    def _due(self) -> list[SeedSlot]:
        """The seeds whose turn it is to learn by a shadow."""
        incubating = enumerate(self.slots.values())
        return [
            slot
            for order, slot in incubating
            if slot.state.stage is SeedStage.TRAINING
            and slot.state.slot_id not in self._broken
            and (self.steps + order) % self.how.shadow_every == 0
        ]

    def _growing(self, stage: SeedStage | None = None) -> Iterator[SeedSlot]:
        return (slot for slot in self.slots.values() if slot.alive and stage in (None, slot.state.stage))

    def _unscale(self, slot: SeedSlot) -> bool:
        """Divide the loss scale out; whether the gradients are finite then, for which this waits for the device."""
        if self._scale is None:
            return True
        assert slot.seed is not None
        finite = True
        for parameter in slot.seed.parameters():
            if parameter.grad is not None:
                parameter.grad /= self._scale
                finite = finite and bool(parameter.grad.isfinite().all())
        slot.end_scaled_pass(overflowed=not finite)
        return finite

    def _average(self, slots: Sequence[SeedSlot]) -> None:
        """Bring the gradients and buffers of all ranks together: every rank then holds the same seed after its step.

        A batch may reach a parameter on one rank and not on another, where it counts as a gradient of 0. A seed that
        is broken on one rank is broken on all.
        """
        seeds = [slot.seed for slot in slots if slot.seed is not None]
        if self._process_group is None or not seeds:
            return
        ranks = dist.get_world_size(self._process_group)
        parameters = [parameter for seed in seeds for parameter in seed.parameters()]
        own = [float(parameter.grad is not None) for parameter in parameters]
        own += [float(slot.state.slot_id in self._broken) for slot in slots]
        sums = summed_over_ranks(own, self._process_group, device_of(self.host))
        reached, broken = sums[: len(parameters)], sums[len(parameters) :]
        for slot, by in zip(slots, broken, strict=True):
            if by:
                self._broken.setdefault(slot.state.slot_id, "on another rank")
        for parameter, by in zip(parameters, reached, strict=True):
            if by:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(gradient, group=self._process_group)
                parameter.grad = gradient / ranks
        broadcast_from_first([buffer for seed in seeds for buffer in seed.buffers()], self._process_group)
