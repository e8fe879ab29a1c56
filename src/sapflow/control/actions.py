"""What can be done to the slots of an env; whatever is done is said as events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn

from sapflow.errors import IllegalTransitionError
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.blueprints import Blueprint, blueprint_for
from sapflow.growth.germination import germinate
from sapflow.growth.guard import device_of
from sapflow.growth.lifecycle import check_transition
from sapflow.growth.randomness import RandomState, stream_seed
from sapflow.growth.ranks import broadcast_from_first, on_all_ranks
from sapflow.growth.shadow import Closure, exchange_at
from sapflow.growth.slot import SeedSlot
from sapflow.health.rules import RuleBook
from sapflow.telemetry.events import (
    AlertCleared,
    GradientHealth,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
)
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(kw_only=True)
class Life:
    """What became of one seed, so far; epochs count from 1, 0 is before the first."""

    slot_id: str
    seed_id: str
    blueprint_id: str
    planted: bool
    born_epoch: int
    stage: SeedStage = SeedStage.GERMINATED
    last_ratio: float = 0.0
    accuracy_delta: float = 0.0  # as last measured, in percentage points
    blended_epoch: int | None = None  # after which the host began to see it
    pruned_epoch: int | None = None
    pruned_by: str = ""


class SlotActions:
    """Germinate, advance and prune the seeds of one host.

    Args:
        host: the network that holds the slots.
        slots: its slots by slot_id.
        monitor: measures every seed while it lives, under its slot_id.
        rules: forget a seed that is gone.
        stream: where it is said.
        make_optimizer: of a seed's own optimizer.
        random_name: with the slot and a count it determines each seed's random stream.
        process_group: the ranks that train the same seeds; they begin as the first rank's.

    Attributes:
        closure: gives the host's loss of some batch, on which gains at birth are measured; set before seeds germinate.
        held: seeds that were held by other than a rule, by seed_id: no rule lets them go.
    """

    def __init__(
        self,
        host: nn.Module,
        slots: Mapping[str, SeedSlot],
        monitor: GradientMonitor,
        rules: RuleBook,
        stream: EventStream,
        *,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        random_name: str,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self.host = host
        self.slots = slots
        self.monitor = monitor
        self.rules = rules
        self.stream = stream
        self.closure: Closure | None = None
        self.make_optimizer = make_optimizer
        self.random_name = random_name
        self.process_group = process_group
        self.lives: list[Life] = []
        self.held: set[str] = set()
        self._living: dict[str, Life] = {}

    def state_dict(self) -> dict[str, Any]:
        """Slots and lives at the end of an epoch, as plain data and tensors."""
        return {
            "slots": {slot_id: slot.snapshot() for slot_id, slot in self.slots.items()},
            "lives": msgspec.to_builtins(self.lives),
            "held": sorted(self.held),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring slots and lives to where they were; seeds are built by their blueprints and measured from now on.

        Raises:
            BlueprintError: a seed's blueprint is not known here.
        """
        like = next(self.host.parameters())
        self.lives = msgspec.convert(state["lives"], list[Life])
        self.held = set(state.get("held", ()))
        for slot_id, snapshot in state["slots"].items():
            slot, seed = self.slots[slot_id], None
            if snapshot["seed"] is not None:
                slot.shape = tuple(snapshot["shape"])
                blueprint = blueprint_for(snapshot["state"]["blueprint_id"], slot.shape)
                dtypes = (value.dtype for value in snapshot["seed"].values() if value.is_floating_point())
                with RandomState.capture().replayed():
                    if (birth := snapshot.get("birth")) is not None:  # what is drawn may be in no state_dict
                        torch.set_rng_state(birth.cpu())
                    seed = blueprint.build(slot.shape).to(device=like.device, dtype=next(dtypes, like.dtype))
            slot.restore(snapshot, seed, None if seed is None else self.make_optimizer(seed))
        for life in self.lives:
            if life.pruned_epoch is None:
                self._living[life.slot_id] = life
                seed = self.slots[life.slot_id].seed
                assert seed is not None
                self.monitor.attach(life.slot_id, seed)

    def germinate(self, epoch: int, slot: SeedSlot, blueprint: Blueprint, *, planted: bool = False) -> None:
        """Plant a seed, measured from its first pass on.

        Raises:
            BlueprintError: it does not fit the slot, here or on another rank.
            InputError: the forward of the closure does not pass the slot.
            IllegalTransitionError: the slot is not DORMANT.
                Whatever it is, and whatever an optimizer that cannot be made raises: nothing was changed.
        """
        assert self.closure is not None
        check_transition(slot.state.stage, SeedStage.GERMINATED)
        slot_id, closure = slot.state.slot_id, self.closure
        seed_id = f"{slot_id}-{sum(life.slot_id == slot_id for life in self.lives) + 1}"

        def born() -> tuple[nn.Module, float, Tensor, torch.optim.Optimizer]:
            seed, birth_gain, birth = germinate(
                slot,
                replace(blueprint, build=partial(self._build_new, blueprint)),
                exchange=lambda: exchange_at(self.host, slot, closure, slots=self.slots.values(), monitor=self.monitor),
                random_seed=stream_seed(self.random_name, seed_id),
            )
            return seed, birth_gain, birth, self.make_optimizer(seed)

        with torch.inference_mode(False):  # the loop may end its epochs where it validates, without gradients
            seed, birth_gain, birth, optimizer = on_all_ranks(born, self.process_group, device_of(self.host))
            if self.process_group is not None:
                broadcast_from_first([*seed.parameters(), *seed.buffers()], self.process_group)
            slot.plant(seed, seed_id=seed_id, blueprint_id=blueprint.blueprint_id)
            slot.optimizer, slot.birth = optimizer, birth
            self.monitor.attach(slot_id, seed)
        life = Life(
            slot_id=slot_id,
            seed_id=seed_id,
            blueprint_id=blueprint.blueprint_id,
            planted=planted,
            born_epoch=epoch,
        )
        self.lives.append(life)
        self._living[slot_id] = life
        self.stream.emit(
            SeedGerminated(
                epoch=epoch,
                slot_id=slot_id,
                seed_id=seed_id,
                blueprint_id=blueprint.blueprint_id,
                seed_params=slot.state.seed_params,
                birth_gain=birth_gain,
                planted=planted,
            )
        )

    def _build_new(self, blueprint: Blueprint, shape: tuple[int, ...]) -> nn.Module:
        """What the blueprint builds, if nothing of it is trained already, which germination would scale."""
        seed = blueprint.build(shape)
        others = (self.host, *(slot.seed for slot in self.slots.values() if slot.seed is not None))
        taken = {id(parameter) for other in others for parameter in other.parameters()}
        if isinstance(seed, nn.Module) and not taken.isdisjoint(map(id, seed.parameters())):
            raise ValueError("it has parameters of the host or of another seed, and would train them: make new ones")
        return seed

    def observe(self, slot_id: str, health: GradientHealth) -> None:
        """Take the gradient flow of an epoch into the state of a slot and the life of its seed."""
        self.slots[slot_id].state.observe(health)
        self._living[slot_id].last_ratio = health.grad_ratio

    def weigh(self, slot_id: str, accuracy_delta: float) -> None:
        """Take what the seed gives the host (see `SeedTelemetry`) into the state of its slot and into its life."""
        state, life = self.slots[slot_id].state, self._living[slot_id]
        state.accuracy_delta = life.accuracy_delta = accuracy_delta
        state.weighed_before = 0

    def advance(self, epoch: int, slot: SeedSlot, target: SeedStage, reason: str) -> None:
        """Move a seed, or the empty slot after it, on to its next stage.

        Raises:
            IllegalTransitionError: the stage does not lead there, or the gate is closed; or it is PRUNED.
        """
        if target is SeedStage.PRUNED:
            raise IllegalTransitionError("a seed is pruned by `prune` alone, which ends its measurement and its life")
        self._advance(epoch, slot, target, reason)

    def _advance(self, epoch: int, slot: SeedSlot, target: SeedStage, reason: str) -> None:
        before = slot.state
        from_stage, seed_id, blueprint_id = before.stage, before.seed_id, before.blueprint_id
        slot.advance(target)
        life = self._living.get(before.slot_id)
        if life is not None:
            life.stage = target
            if target is SeedStage.BLENDING:
                life.blended_epoch = epoch
        self.stream.emit(
            SeedStageChanged(
                epoch=epoch,
                slot_id=before.slot_id,
                seed_id=seed_id,
                blueprint_id=blueprint_id,
                from_stage=from_stage,
                to_stage=target,
                reason=reason,
            )
        )
        if target is SeedStage.FOSSILIZED:
            self.stream.emit(
                SeedFossilized(
                    epoch=epoch,
                    slot_id=before.slot_id,
                    seed_id=seed_id,
                    blueprint_id=blueprint_id,
                    seed_params=before.seed_params,
                    accuracy_delta=before.accuracy_delta,
                )
            )

    def hold(self, slot: SeedSlot, *, by_rule: bool = False) -> None:
        """Pause a seed: it learns and is measured, but its blend weight stands and it moves on to no other stage.

        What is held `by_rule` goes on when the rule's alert is cleared.

        Raises:
            IllegalTransitionError: no seed grows in the slot, or it is fossilised.
        """
        self._check_growing(slot)
        slot.state.paused = True
        if not by_rule:
            self.held.add(slot.state.seed_id)

    def resume(self, slot: SeedSlot) -> None:
        """Let a paused seed go on.

        Raises:
            IllegalTransitionError: no seed grows in the slot, or it is fossilised.
        """
        self._check_growing(slot)
        slot.state.paused = False
        self.held.discard(slot.state.seed_id)

    def slow_down(self, slot: SeedSlot, factor: float) -> float:
        """Multiply the learning rate of a seed by `factor`, and return what it is then.

        Raises:
            IllegalTransitionError: no seed grows in the slot, or it is fossilised.
        """
        self._check_growing(slot)
        assert slot.optimizer is not None
        for group in slot.optimizer.param_groups:
            group["lr"] *= factor
        return float(slot.optimizer.param_groups[0]["lr"])

    def _check_growing(self, slot: SeedSlot) -> None:
        if not slot.alive or slot.state.stage is SeedStage.FOSSILIZED:
            raise IllegalTransitionError(f"nothing grows in slot {slot.state.slot_id!r}: it is {slot.state.stage}")

    def prune(self, epoch: int, slot: SeedSlot, *, rule: str, evidence: str) -> None:
        """Cut a seed out: the host goes on as if it had never been there, and its alerts are closed.

        Raises:
            IllegalTransitionError: no seed lives in the slot, or it is fossilised.
        """
        stage, grad_ratio = slot.state.stage, slot.state.grad_ratio
        self._advance(epoch, slot, SeedStage.PRUNED, f"{rule}: {evidence}")
        self.monitor.detach(slot.state.slot_id)
        self.held.discard(slot.state.seed_id)
        life = self._living.pop(slot.state.slot_id)
        life.pruned_epoch, life.pruned_by = epoch, rule
        self.stream.emit(
            SeedPruned(
                epoch=epoch,
                slot_id=slot.state.slot_id,
                seed_id=slot.state.seed_id,
                blueprint_id=slot.state.blueprint_id,
                stage=stage,
                rule=rule,
                grad_ratio=grad_ratio,
                evidence=evidence,
            )
        )
        for alert in self.rules.forget(slot.state.seed_id):
            self.stream.emit(AlertCleared(epoch=epoch, alert=alert, reason="the seed was pruned"))
