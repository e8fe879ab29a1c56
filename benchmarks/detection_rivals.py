"""Other detectors, written anew from their published thresholds, each over the same passes of the same blocks.

Each asks once a pass; so that none is blamed for a single odd pass, an alarm takes FOR_PASSES in a row, NaN one.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

FOR_PASSES = 5


class Look:
    """One block at the end of a pass: its parameters and their gradients, and what its activations took and gave.

    `activated` holds (module, input, output) of each ReLU, GELU, tanh and sigmoid of the pass.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.activated: list[tuple[nn.Module, Tensor, Tensor]] = []
        for module in block.modules():
            if isinstance(module, nn.ReLU | nn.Tanh | nn.Sigmoid):
                module.register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.activated.append((module, given[0].detach(), output.detach()))

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.block.parameters() if p.requires_grad and p.grad is not None]

    @property
    def weight_gradients(self) -> list[Tensor]:
        """Of matrices and kernels, in the order of the layers."""
        return [gradient for gradient in self.gradients if gradient.dim() > 1]

    @property
    def broken(self) -> bool:
        """NaN or infinity in its gradients or its activations."""
        seen = [*self.gradients, *(output for _, _, output in self.activated)]
        return any(not bool(tensor.isfinite().all()) for tensor in seen)


class Rival(Protocol):
    name: str

    def ill(self, look: Look) -> bool:
        """Whether the finite pass speaks against the block."""


class AbsoluteNorms:
    """The norm of a block's gradient below 1e-7, or above 10."""

    name = "absolute norms (1e-7, 10)"

    def ill(self, look: Look) -> bool:
        norm = float(torch.stack([gradient.norm() for gradient in look.gradients]).norm())
        return not 1e-7 <= norm <= 10


class SageMakerDebugger:
    """Its built-in rules and their defaults.

    VanishingGradient: mean |gradient| of a tensor below 1e-7. DeadRelu: over half of a layer's ReLUs active in less
    than 1 % of the cases. SaturatedActivation: more than half of a layer's units beyond ±9.4999 (tanh) or outside of
    (-23, 16.99999) (sigmoid) in all but 1 %. ExplodingTensor: NaN or infinity.
    """

    name = "SageMaker Debugger"

    def ill(self, look: Look) -> bool:
        if any(float(gradient.abs().mean()) < 1e-7 for gradient in look.gradients):
            return True
        return any(self._idle(module, given) for module, given, _ in look.activated)

    def _idle(self, module: nn.Module, given: Tensor) -> bool:
        match module:
            case nn.ReLU():
                active = given > 0
            case nn.Tanh():
                active = given.abs() < 9.4999
            case _:
                active = (given > -23) & (given < 16.99999)
        share = _units(active.double()).mean(0)
        return float((share < 0.01).double().mean()) > 0.5


class DeepChecker:
    """TheDeepChecker's checks of a training.

    More than half of a layer's neurons dead (95th percentile of |output| below 1e-5) or saturated (tanh and sigmoid, ρ
    of Rakitianskaia and Engelbrecht above 0.85 by 50 bins); the mean |gradient| of a weight below 1e-8 or above 1e8, or
    halved or doubled in each of five passes; 95 % of a weight below 1e-5.
    """

    name = "TheDeepChecker"
    WINDOW = 5

    def __init__(self) -> None:
        self._means: dict[int, list[float]] = {}

    def ill(self, look: Look) -> bool:
        weights = [p for p in look.block.parameters() if p.dim() > 1]
        dead_weight = any(float((weight.abs() < 1e-5).double().mean()) > 0.95 for weight in weights)
        return dead_weight or self._runs_away(look) or any(self._idle(*one) for one in look.activated)

    def _runs_away(self, look: Look) -> bool:
        means = [float(gradient.abs().mean()) for gradient in look.weight_gradients]
        for index, mean in enumerate(means):
            series = self._means.setdefault(index, [])
            series.append(mean)
            del series[: -self.WINDOW]
            rates = [after / before if before else 1.0 for before, after in pairwise(series)]
            full = len(series) == self.WINDOW
            if not 1e-8 <= mean <= 1e8 or (full and (max(rates) <= 0.5 or min(rates) >= 2.0)):
                return True
        return False

    def _idle(self, module: nn.Module, given: Tensor, output: Tensor) -> bool:
        units = _units(output)
        if isinstance(module, nn.ReLU):
            idle = units.abs().quantile(0.95, dim=0) < 1e-5
        else:
            low, high = (-1.0, 1.0) if isinstance(module, nn.Tanh) else (0.0, 1.0)
            scaled = 2 * (units - low) / (high - low) - 1
            idle = _rho(scaled) > 0.85
        return float(idle.double().mean()) > 0.5


class AutoTrainer:
    """AUTOTRAINER's symptoms.

    ‖first‖ / ‖last‖ weight gradient below 1e-3 with ‖first‖ below 1e-4, or above 70; at least 70 % of all gradients
    exactly 0. It also asks that the training as a whole fails to converge, which is left out here.
    """

    name = "AUTOTRAINER"

    def ill(self, look: Look) -> bool:
        kernels = [float(gradient.norm()) for gradient in look.weight_gradients]
        first, last = kernels[0], kernels[-1]
        rate = first / last if last else (1.0 if not first else float("inf"))
        gradients = torch.cat([gradient.flatten() for gradient in look.gradients])
        zeros = float((gradients == 0).double().mean())
        return (rate < 1e-3 and first < 1e-4) or rate > 70 or zeros >= 0.7


RIVALS: tuple[type[Rival], ...] = (AbsoluteNorms, SageMakerDebugger, DeepChecker, AutoTrainer)


class Panel:
    """All rivals over all blocks of one training; `first[rival][block]` is the pass of the first alarm, from 1."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self._looks = {name: Look(block) for name, block in blocks.items()}
        self._rivals = {rival.name: {name: rival() for name in blocks} for rival in RIVALS}
        self._run = {rival: dict.fromkeys(blocks, 0) for rival in self._rivals}
        self.first: dict[str, dict[str, int]] = {rival: {} for rival in self._rivals}

    def see(self, number: int) -> None:
        """The pass `number`, while its gradients stand."""
        for block, look in self._looks.items():
            broken = look.broken
            for rival, detectors in self._rivals.items():
                ill = broken or detectors[block].ill(look)
                self._run[rival][block] = self._run[rival][block] + 1 if ill else 0
                if broken or self._run[rival][block] >= FOR_PASSES:
                    self.first[rival].setdefault(block, number + 1)
            look.activated.clear()


def _units(values: Tensor) -> Tensor:
    """(cases, units): channels are the units of a map, features those of everything else."""
    return values.movedim(1, -1).flatten(0, -2) if values.dim() == 4 else values.flatten(0, -2)


def _rho(units: Tensor) -> Tensor:
    """ρ of each unit, (units,): the mean |value| over 50 bins of [-1, 1], weighted by how full they are."""
    bins = ((units + 1) * 25).long().clamp(0, 49)
    counts = torch.zeros(50, units.shape[1], dtype=torch.float64).scatter_add_(
        0, bins, torch.ones_like(bins, dtype=torch.float64)
    )
    sums = torch.zeros(50, units.shape[1], dtype=torch.float64).scatter_add_(0, bins, units.double())
    means = torch.where(counts > 0, sums / counts.clamp(min=1), 0.0)
    return (means.abs() * counts).sum(0) / counts.sum(0)
