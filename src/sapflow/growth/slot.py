"""A slot in a host: the state of the seed that grows there, and the forward that the host sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from msgspec.structs import asdict
from torch import Tensor, nn

from sapflow.errors import IllegalTransitionError
from sapflow.growth.guard import Guard, device_of
from sapflow.growth.lifecycle import (
    ALL_GATES,
    SOUND_EPOCHS_TO_BLEND,
    TOLERATED_COST,
    Gate,
    check_transition,
    is_sound,
)
from sapflow.telemetry.events import GradientHealth, SeedTelemetry
from sapflow.telemetry.vocabulary import SeedStage


@dataclass
class SeedState:
    """State of a single seed slot; `health` is the gradient flow of the last closed epoch.

    Units as in `SeedTelemetry`. `sound_epochs` counts the epochs in a row, up to the last, whose gradient flow was
    sound (`lifecycle.is_sound`): the gate out of TRAINING asks for it. `blended_steps` counts the steps of the blending
    schedule. `weighed_before` counts the epochs since `accuracy_delta` was measured, None while it never was. A paused
    seed learns and is measured, but its blend weight stands, and no gate opens but that to PRUNED.
    """

    slot_id: str
    seed_id: str = ""
    blueprint_id: str = ""
    stage: SeedStage = SeedStage.DORMANT
    epochs_in_stage: int = 0
    alpha: float = 0.0
    seed_params: int = 0
    accuracy_delta: float = 0.0
    masked_values: int = 0
    paused: bool = False
    sound_epochs: int = 0
    blended_steps: int = 0
    weighed_before: int | None = None
    health: GradientHealth = field(default_factory=GradientHealth)

    @property
    def grad_ratio(self) -> float:
        """Leaving over entering gradient norm of the current epoch (TELE-557); 0.0 without data."""
        return self.health.grad_ratio

    @property
    def has_vanishing(self) -> bool:
        """The ratio is below the healthy band."""
        return self.health.has_vanishing

    @property
    def has_exploding(self) -> bool:
        """The ratio is above the healthy band, or gradients were not finite."""
        return self.health.has_exploding

    def observe(self, health: GradientHealth) -> None:
        """Take in the gradient flow of an epoch that has closed."""
        self.health = health
        self.sound_epochs = self.sound_epochs + 1 if is_sound(health) else 0

    def telemetry(self) -> SeedTelemetry:
        """The state as it is said."""
        own = {name: getattr(self, name) for name in SeedTelemetry.__struct_fields__ if name in self.__dict__}
        return SeedTelemetry(**own, **asdict(self.health))


class SeedSlot(nn.Module):
    """A place in a host where a module may grow: hands on h, or h + α·seed(h) once the seed blends in.

    While it lives, a seed is none of the host's submodules: the host's parameters, clipping and state_dict are those
    of the host alone, until fossilising makes the seed a submodule for good.

    Args:
        slot_id: stable for the whole run.
        shape: of one sample of h, without the batch dimension.
    """

    def __init__(self, slot_id: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.state = SeedState(slot_id)
        self.gates = ALL_GATES  # that stand
        self.bypassed = False  # the counterfactual: the host as if nothing grew here
        self.optimizer: torch.optim.Optimizer | None = None
        self.birth: Tensor | None = None  # where torch's random numbers stood when the seed was built
        self.fossil: nn.Module | None = None
        self._nursery: list[nn.Module] = []  # a list, so that nn.Module does not register what is in it
        self._shadow_leaves: list[Tensor] = []
        self._in_shadow = False
        self._stand_in: Callable[[Tensor], Tensor] | None = None
        # Compiled hosts are compiled anew when one of these changes, so they change only when the host's view does.
        self._seen = False
        self._weight: Tensor | None = None  # α while BLENDING: a tensor, since a number would be compiled in
        self._guard = Guard(torch.device("cpu"))
        self._onlooker = Guard(torch.device("cpu"))  # for what is only looked at: its counts are nobody's

    @property
    def seed(self) -> nn.Module | None:
        """The module that grows here, if any."""
        return self._nursery[0] if self._nursery else self.fossil

    @property
    def alive(self) -> bool:
        """Whether a seed stands in the slot."""
        return self.state.stage.alive

    @property
    def host_sees(self) -> bool:
        """Whether the host's forward contains the seed."""
        return self.state.stage.seen_by_host

    def forward(self, h: Tensor) -> Tensor:
        """`h` and the blended seed, of the same shape (batch, *shape)."""
        if self._in_shadow:
            return self._shadow_forward(h)
        if not self._seen or self.bypassed:
            return h
        branch = self._guarded_branch(h)
        return h + branch if self._weight is None else h + self._weight * branch

    def _shadow_forward(self, h: Tensor) -> Tensor:
        """h + seed(h) on a leaf of its own: the leaving gradient is known and ends here."""
        assert self.seed is not None
        leaf = h.detach().requires_grad_()
        self._shadow_leaves.append(leaf)
        branch: Tensor = self.seed(leaf.clone())  # a clone: seeds may write on neither the leaf nor h
        return h.detach() + branch

    def _guarded_branch(self, h: Tensor) -> Tensor:
        grown = self._stand_in or self.seed
        assert grown is not None
        counted = self.training and self._stand_in is None
        return (self._guard if counted else self._onlooker).guarded(grown, h)

    @contextmanager
    def shadowed(self) -> Iterator[list[Tensor]]:
        """Inside, the slot's forward is the shadow's; what is handed out gets the leaf that each run made of its h."""
        self._in_shadow, self._shadow_leaves = True, []
        try:
            yield self._shadow_leaves
        finally:
            self._in_shadow, self._shadow_leaves = False, []

    @contextmanager
    def replaced_by(self, stand_in: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside, the host sees `stand_in` in place of the seed, and nothing that happens is counted."""
        self._stand_in = stand_in
        try:
            yield
        finally:
            self._stand_in = None

    def plant(self, seed: nn.Module, *, seed_id: str, blueprint_id: str) -> None:
        """Put a seed into the empty slot, GERMINATED.

        Raises:
            IllegalTransitionError: the slot is not DORMANT.
        """
        check_transition(self.state.stage, SeedStage.GERMINATED)
        self._nursery = [seed.train(self.training)]
        self._guard, self._onlooker = Guard(device_of(seed)), Guard(device_of(seed))
        self.state = SeedState(
            self.state.slot_id,
            seed_id=seed_id,
            blueprint_id=blueprint_id,
            stage=SeedStage.GERMINATED,
            seed_params=sum(parameter.numel() for parameter in seed.parameters()),
        )

    def snapshot(self) -> dict[str, Any]:
        """What `restore` needs, at the end of an epoch: plain data and tensors."""
        return {
            "state": msgspec.to_builtins(self.state),
            "shape": list(self.shape),
            "seed": None if self.seed is None else self.seed.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "birth": self.birth,
        }

    def restore(
        self, snapshot: dict[str, Any], seed: nn.Module | None, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Be as the slot was of which this is the snapshot.

        Args:
            snapshot: of a slot of the same name.
            seed: built by the same blueprint; None where the slot had none.
            optimizer: of its parameters, made in the same way.
        """
        self.state = msgspec.convert(snapshot["state"], SeedState)
        self.optimizer = optimizer
        self.birth = snapshot.get("birth")
        fossilized = self.state.stage is SeedStage.FOSSILIZED
        self.fossil, self._nursery = (seed, []) if fossilized else (None, [seed] if seed is not None else [])
        if seed is not None:
            seed.load_state_dict(snapshot["seed"])
            seed.train(self.training)
            self._guard, self._onlooker = Guard(device_of(seed)), Guard(device_of(seed))
        if optimizer is not None:
            optimizer.load_state_dict(snapshot["optimizer"])
        self._show_to_host()

    def blend(self, alpha: float) -> None:
        """Let the host see the seed with weight `alpha` in (0, 1], while it is BLENDING."""
        self.state.alpha = alpha
        self._show_to_host()

    def _show_to_host(self) -> None:
        """Bring what the forward goes by up to date with the state."""
        self._seen = self.host_sees
        blending = self.state.stage is SeedStage.BLENDING
        # In float64, the weight is rounded as a number would be, whatever the host's dtype.
        self._weight = torch.tensor(self.state.alpha, dtype=torch.float64) if blending else None

    def closed_gate(self, target: SeedStage) -> str:
        """Why the gate to `target` is closed, in words; empty if it is open.

        Raises:
            IllegalTransitionError: no gate leads there.
        """
        check_transition(self.state.stage, target)
        if self.state.paused and target is not SeedStage.PRUNED:
            return "it is paused"
        sound = self.state.sound_epochs >= SOUND_EPOCHS_TO_BLEND
        if target is SeedStage.BLENDING and Gate.SOUND_FLOW in self.gates and not sound:
            return f"{self.state.sound_epochs} of {SOUND_EPOCHS_TO_BLEND} epochs in a row with sound gradient flow"
        if target is SeedStage.HOLDING and self.state.alpha < 1 - 1e-6:
            return f"it is blended in to {self.state.alpha:.2f}"
        if target is SeedStage.FOSSILIZED and Gate.NO_COST in self.gates:
            if self.state.weighed_before:
                return "what it gives the host was not measured in this epoch"
            if self.state.accuracy_delta < -TOLERATED_COST:
                return f"it costs the host {-self.state.accuracy_delta:.2f} % accuracy"
        return ""

    def advance(self, target: SeedStage) -> None:
        """Move the seed on to `target`.

        Raises:
            IllegalTransitionError: the stage does not lead there, or its gate is closed; nothing was changed.
        """
        if target is SeedStage.GERMINATED:
            raise IllegalTransitionError("a slot germinates by `plant` alone, which brings the seed")
        closed = self.closed_gate(target)
        if closed:
            raise IllegalTransitionError(f"the gate from {self.state.stage} to {target} is closed: {closed}")
        self.state.stage = target
        self.state.epochs_in_stage = 0
        if target is SeedStage.HOLDING:
            self.state.alpha = 1.0
        elif target is SeedStage.FOSSILIZED:
            self.fossil, self._nursery = self._nursery[0], []
        elif target is SeedStage.PRUNED:
            self._uproot()
        elif target is SeedStage.DORMANT:
            self.state = SeedState(self.state.slot_id)
        self._show_to_host()

    def _uproot(self) -> None:
        self._nursery = []
        self.optimizer = self.birth = None
        self.state.paused = False
        self.state.alpha = 0.0
        self.state.accuracy_delta, self.state.weighed_before = 0.0, None
        self.state.health = GradientHealth()

    def end_scaled_pass(self, *, overflowed: bool) -> None:
        """Where the loss is scaled: overflow is the normal business of a GradScaler, and no mask of the seed's."""
        self._guard.end_pass(overflowed=overflowed)

    def close_epoch(self) -> None:
        """Count the epoch, and bring the count of masked values to the host, which waits for the device."""
        self.state.epochs_in_stage += not self.state.paused
        if self.state.weighed_before is not None:
            self.state.weighed_before += 1
        self.state.masked_values = self._guard.take_count()

    def train(self, mode: bool = True) -> "SeedSlot":
        """As for every module, for the seed too."""
        super().train(mode)
        for seed in self._nursery:
            seed.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # What moves or casts the host (`.to`, `.half`) moves and casts the seed.
        for seed in self._nursery:
            seed._apply(fn, recurse)
        self._guard.moved(fn)
        self._onlooker.moved(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
