"""Hosts of blocks, healthy and with one planted fault; the same block is built of the host's own kind of layer."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 4
BATCH = 32
ONSETS = 40, 80  # the first pass of a fault that is not there from birth is one of these
WIDTHS = {"mlp": 64, "cnn": 8, "transformer": 32}
HOSTS = tuple(WIDTHS)


class Kit(NamedTuple):
    """What blocks of a host are made of: `layer(inputs, outputs)`, features last or (cnn) second, and its width."""

    host: str
    width: int

    def layer(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        if self.host == "cnn":
            return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        return nn.Linear(inputs, outputs, bias=bias)

    def norm(self) -> nn.Module:
        return nn.GroupNorm(2, self.width) if self.host == "cnn" else nn.LayerNorm(self.width)

    def two(self, between: nn.Module, hidden: int | None = None) -> nn.Sequential:
        hidden = hidden or self.width
        return nn.Sequential(self.layer(self.width, hidden), between, self.layer(hidden, self.width))


class Attention(nn.Module):
    """Self-attention of four heads behind a layer norm; tokens are second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        normed = self.norm(h)
        return self.attention(normed, normed, normed, need_weights=False)[0]


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class OneSampleNorm(nn.Module):
    """Batch normalisation by the statistics of one sample, as the smallest of ghost batches has it."""

    def __init__(self, width: int, host: str) -> None:
        super().__init__()
        shape = (width, 1, 1) if host == "cnn" else (width,)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, h: Tensor) -> Tensor:
        each = h[:, None]
        normed = (each - each.mean(1, keepdim=True)) / (each.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return normed[:, 0] * self.weight + self.bias


class BreaksAt(nn.Module):
    """Gives NaN from the step on at which `broken` is set."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.broken = False

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = self.block(h)
        return y * torch.nan if self.broken else y


@torch.no_grad()
def scaled(block: nn.Module, factor: float) -> nn.Module:
    for parameter in block.parameters():
        parameter.mul_(factor)
    return block


def zeroed(block: nn.Sequential, *layers: int) -> nn.Sequential:
    for layer in layers:
        for parameter in block[layer].parameters():
            nn.init.zeros_(parameter)
    return block


def orthogonal(layer: nn.Module, gain: float) -> nn.Module:
    """The layer with a weight that is `gain` times an orthogonal one (of a convolution: its centre), and no bias."""
    with torch.no_grad():
        layer.weight.zero_()
        target = layer.weight[:, :, 1, 1] if layer.weight.dim() == 4 else layer.weight
        drawn = torch.empty_like(target)
        target.copy_(nn.init.orthogonal_(drawn, gain))
        layer.bias.zero_()
    return layer


# --- healthy


def default(kit: Kit) -> nn.Module:
    return kit.two(nn.ReLU())


def normalised(kit: Kit) -> nn.Module:
    return nn.Sequential(kit.norm(), *kit.two(nn.GELU(), 4 * kit.width))


def attention(kit: Kit) -> nn.Module:
    return Attention(kit.width) if kit.host == "transformer" else normalised(kit)


def zero_last(kit: Kit) -> nn.Module:
    return zeroed(nn.Sequential(kit.norm(), *kit.two(nn.GELU())), 3)


def low_rank(kit: Kit) -> nn.Module:
    down, up = kit.layer(kit.width, 4, bias=False), kit.layer(4, kit.width, bias=False)
    return zeroed(nn.Sequential(down, up), 1)


def width_changing(kit: Kit) -> nn.Module:
    return kit.two(nn.GELU(), kit.width // 4)


def deep_residual(kit: Kit) -> nn.Module:
    return nn.Sequential(
        *(Residual(nn.Sequential(kit.norm(), kit.layer(kit.width, kit.width), nn.GELU())) for _ in range(4))
    )


def frozen_part(kit: Kit) -> nn.Module:
    block = nn.Sequential(kit.norm(), *kit.two(nn.GELU()))
    block[1].requires_grad_(False)
    return block


HEALTHY: dict[str, Callable[[Kit], nn.Module]] = {
    "default initialisation": default, "normalised": normalised, "attention": attention, "zero-last": zero_last,
    "low-rank, B = 0": low_rank, "width-changing": width_changing, "deep residual": deep_residual,
    "frozen part": frozen_part,
}  # fmt: skip


# --- faulty


class Kind(StrEnum):
    SIGMOIDS = "stacked sigmoids"
    TINY = "tiny initialisation"
    HUGE = "huge initialisation"
    DEAD_RELU = "dead ReLU"
    DOUBLE_ZERO = "double zero"
    LATE_FALL = "late onset, weights shrink"
    SATURATED = "saturated tanh, by biases"
    SATURATED_BY_WEIGHTS = "saturated tanh, by weights"
    EXPLODING_DEPTH = "exploding depth"
    NAN = "NaN at step t"
    LEARNING_RATE = "too high a learning rate"
    LATE_DEATH = "late onset, ReLU dies"
    LATE_RISE = "late onset, weights grow"
    ONE_SAMPLE = "BatchNorm of one sample"


@dataclass
class Planted:
    """A faulty block; `strike` makes it so at the onset, unless it is born so; `rate` multiplies its learning rate."""

    block: nn.Module
    strike: Callable[[], object] | None = None
    rate: float = 1.0


def plant(kind: Kind, kit: Kit) -> Planted:
    width = kit.width
    match kind:
        case Kind.SIGMOIDS:
            layers = [part for _ in range(4) for part in (kit.layer(width, width), nn.Sigmoid())]
            return Planted(nn.Sequential(*layers))
        case Kind.TINY:
            return Planted(scaled(kit.two(nn.GELU()), 1e-2))
        case Kind.HUGE:
            return Planted(scaled(kit.two(nn.GELU()), 10.0))
        case Kind.DEAD_RELU:
            block = kit.two(nn.ReLU())
            nn.init.constant_(block[0].bias, -100.0)
            return Planted(block)
        case Kind.DOUBLE_ZERO:
            block = nn.Sequential(kit.layer(width, 4, bias=False), kit.layer(4, width, bias=False))
            return Planted(zeroed(block, 0, 1))
        case Kind.SATURATED:
            block = kit.two(nn.Tanh())
            with torch.no_grad():
                block[0].bias.copy_(torch.randn_like(block[0].bias).sign() * 20)
            return Planted(block)
        case Kind.SATURATED_BY_WEIGHTS:
            block = kit.two(nn.Tanh())
            scaled(block[0], 100.0)
            return Planted(block)
        case Kind.EXPLODING_DEPTH:
            return Planted(nn.Sequential(*(orthogonal(kit.layer(width, width), 1.7) for _ in range(8))))
        case Kind.NAN:
            breaking = BreaksAt(default(kit))
            return Planted(breaking, lambda: setattr(breaking, "broken", True))
        case Kind.LEARNING_RATE:
            return Planted(default(kit), rate=300.0)
        case Kind.LATE_FALL:
            block = default(kit)
            return Planted(block, lambda: scaled(block, 1e-2))
        case Kind.LATE_DEATH:
            block = kit.two(nn.ReLU())
            return Planted(block, lambda: nn.init.constant_(block[0].bias, -100.0))
        case Kind.LATE_RISE:
            block = default(kit)
            return Planted(block, lambda: scaled(block, 10.0))
        case Kind.ONE_SAMPLE:
            first, last = kit.layer(width, width), kit.layer(width, width)
            return Planted(nn.Sequential(first, OneSampleNorm(width, kit.host), nn.ReLU(), last))


# --- hosts


class Host(nn.Module):
    """h + block(h), block after block, over scikit-learn's digits: as vectors, images, or sequences of eight rows."""

    def __init__(self, kit: Kit, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.kind = kit.host
        match kit.host:
            case "cnn":
                self.stem: nn.Module = nn.Conv2d(1, kit.width, 3, padding=1)
            case "transformer":
                self.stem = nn.Linear(8, kit.width)
                self.place = nn.Parameter(torch.randn(8, kit.width) / math.sqrt(kit.width))
            case _:
                self.stem = nn.Linear(64, kit.width)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(kit.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self._embedded(x)
        for block in self.blocks:
            h = h + block(h)
        pooled = {"cnn": (2, 3), "transformer": (1,)}.get(self.kind)
        return self.head(h.mean(pooled) if pooled else h)

    def _embedded(self, x: Tensor) -> Tensor:
        match self.kind:
            case "cnn":
                return self.stem(x.view(-1, 1, 8, 8))
            case "transformer":
                return self.stem(x.view(-1, 8, 8)) + self.place
            case _:
                return self.stem(x)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Standardised (1797, 64) float32, and labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.as_tensor(labels)


# --- a training with one of them


@dataclass(frozen=True)
class Setting:
    """What one trial trains; it determines every number in it.

    Adam and SGD with momentum take turns, and so do names with and without peers; a tiny initialisation is planted
    under SGD alone, since Adam's steps, which know no scale, heal it within some ten passes.
    """

    host: str
    repetition: int
    kind: Kind | None = None
    healthy: str = ""

    @property
    def adam(self) -> bool:
        return self.repetition % 2 == 0 and self.kind is not Kind.TINY

    @property
    def names(self) -> list[str]:
        alike = self.repetition // 2 % 2 == 0
        return [f"blocks.{index}" for index in range(BLOCKS)] if alike else ["early", "middle", "late", "last"]


class Training:
    """A host, its optimizer, and where and when the fault strikes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        drawn = random.Random(f"{setting}")
        torch.manual_seed(drawn.randrange(2**31))
        kit = Kit(setting.host, WIDTHS[setting.host])
        sound = HEALTHY[setting.healthy]
        blocks = [sound(kit) for _ in range(BLOCKS)]
        self.planted = plant(setting.kind, kit) if setting.kind is not None else None
        self.sick: str | None = None
        self.onset = 0
        if self.planted is not None:
            place = drawn.randrange(BLOCKS)
            blocks[place] = self.planted.block
            self.sick = setting.names[place]
            if self.planted.strike is not None:
                self.onset = drawn.randrange(*ONSETS)
        self.host = Host(kit, blocks)
        self.blocks = dict(zip(setting.names, blocks, strict=True))
        self.optimizer = self._optimizer()
        self._batches = torch.Generator().manual_seed(drawn.randrange(2**31))

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = 1e-3 if self.setting.adam else 5e-3
        own = set(self.planted.block.parameters()) if self.planted is not None else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in self.host.parameters() if p not in own]}]
        if self.planted is not None:
            groups.append({"params": list(own), "lr": rate * self.planted.rate})
        if self.setting.adam:
            return torch.optim.Adam(groups, lr=rate)
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)

    def run(self, passes: int) -> Iterator[int]:
        """Trains; gives the number of each pass when its optimizer has stepped, its gradients still standing."""
        images, labels = digits()
        for number in range(passes):
            if self.planted is not None and self.planted.strike is not None and number == self.onset:
                self.planted.strike()
            batch = torch.randint(len(images), (BATCH,), generator=self._batches)
            self.optimizer.zero_grad()
            F.cross_entropy(self.host(images[batch]), labels[batch]).backward()
            self.optimizer.step()
            yield number
