"""The models that benchmarks/overhead.py watches: each has `blocks`, of which every one is watched."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VOCABULARY = 1024
TOKENS = 128


class Net(nn.Module):
    """A stem, blocks and a head; logits of shape (…, classes)."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module, checkpointed: bool = False) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.checkpointed else block(h)
        return self.head(h)  # type: ignore[no-any-return]


class Embedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.zeros(TOKENS, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Task:
    """A model, its data and its optimizer.

    `cycle` steps are an epoch of watching, in which everything has come that comes now and then: those of a model whose
    steps are long are as short as there is time for, which makes the ends of epochs come more often than by default.
    """

    name: str
    sizes: str
    make: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    cycle: int = 100
    weight: float = 1.0  # of its rows, in sharing out the time


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def mlp() -> nn.Module:
    blocks: list[nn.Module] = [nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(8)]
    return Net(nn.Linear(64, 512), blocks, nn.Linear(512, 10))


def cnn() -> nn.Module:
    channels = (32, 32, 64, 64)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=b // a, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(channels)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
    return Net(nn.Conv2d(3, channels[0], 3, padding=1), blocks, head)


def transformer(depth: int, width: int, heads: int, checkpointed: bool = False) -> nn.Module:
    blocks: list[nn.Module] = [TransformerBlock(width, heads) for _ in range(depth)]
    return Net(Embedding(width), blocks, nn.Linear(width, VOCABULARY), checkpointed)


def _vectors() -> tuple[Tensor, Tensor]:
    return torch.randn(128, 64), torch.randint(10, (128,))


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 3, 32, 32), torch.randint(10, (16,))


def _text(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(VOCABULARY, (batch, TOKENS)), torch.randint(VOCABULARY, (batch, TOKENS))


MLP = Task("MLP", "8 blocks of Linear(512, 512) and ReLU, batch 128, SGD", mlp, _vectors, sgd, weight=2)
CNN = Task(
    "CNN", "3 blocks of Conv 3×3, BatchNorm and ReLU, 32–32–64–64 channels, 16 images of 32×32, SGD", cnn, _images,
    sgd, weight=2,
)  # fmt: skip
TRANSFORMER = Task(
    "transformer", "4 blocks, width 256, 4 heads, 8 sequences of 128 tokens, AdamW",
    lambda: transformer(4, 256, 4), lambda: _text(8), adamw, cycle=20, weight=8,
)  # fmt: skip
GPT = Task(
    "GPT", "12 blocks, width 288, 6 heads, 4 sequences of 128 tokens, AdamW",
    lambda: transformer(12, 288, 6), lambda: _text(4), adamw, cycle=20, weight=12,
)  # fmt: skip
GPU_GPT = Task(
    "GPT of 85 million", "12 blocks, width 768, 12 heads, 32 sequences of 128 tokens, AdamW",
    lambda: transformer(12, 768, 12), lambda: _text(32), adamw,
)  # fmt: skip
CHECKPOINTED = Task(
    "checkpointed transformer", "as the transformer, every block under activation checkpointing (not reentrant)",
    lambda: transformer(4, 256, 4, checkpointed=True), lambda: _text(8), adamw, cycle=20, weight=8,
)  # fmt: skip

TASKS = {task.name: task for task in (MLP, CNN, TRANSFORMER, GPT, GPU_GPT, CHECKPOINTED)}
