"""Hosts: networks with slots at named places."""

import torch
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.growth.attention import CausalAttention
from sapflow.growth.slot import SeedSlot

DROPOUT = 0.1


class DenseHost(nn.Module):
    """A small perceptron over (batch, inputs) with slots early, mid and late."""

    def __init__(self, inputs: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), SeedSlot("early", (width,)),
            nn.Linear(width, width), nn.ReLU(), SeedSlot("mid", (width,)),
            nn.Linear(width, width), nn.ReLU(), SeedSlot("late", (width,)),
            nn.Dropout(DROPOUT),
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]


class ConvHost(nn.Module):
    """A small convolutional network over (batch, inputs, size, size) with slots early, mid and late."""

    def __init__(self, size: int, classes: int, channels: int = 8, inputs: int = 1) -> None:
        super().__init__()
        half = size // 2
        self.body = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            SeedSlot("early", (channels, size, size)),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(), nn.MaxPool2d(2),
            SeedSlot("mid", (2 * channels, half, half)),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(),
            SeedSlot("late", (2 * channels, half, half)),
            nn.Dropout(DROPOUT),
        )  # fmt: skip
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.head(self.body(x).mean((-2, -1)))  # type: ignore[no-any-return]


class TransformerHost(nn.Module):
    """A small causal transformer over tokens (batch, up to context) with slots early, mid and late.

    Four pre-norm blocks; the slots lie on the residual stream between them.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.body = nn.Sequential(
            nn.Dropout(DROPOUT),
            _Block(width, heads), SeedSlot("early", (context, width)),
            _Block(width, heads), SeedSlot("mid", (context, width)),
            _Block(width, heads), SeedSlot("late", (context, width)),
            _Block(width, heads),
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        # The scale that is usual for transformers; at PyTorch's, tokens outweigh what the blocks add to the stream.
        for table in (self.embedding.weight, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, vocabulary, tokens) of the token that follows each, as `cross_entropy` takes them."""
        stream = self.body(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return self.head(self.norm(stream)).transpose(1, 2)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention, then a perceptron, each on the normalised stream and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads), nn.Dropout(DROPOUT))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width),
            nn.Dropout(DROPOUT),
        )  # fmt: skip

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.attention(stream)
        return stream + self.perceptron(stream)  # type: ignore[no-any-return]


def slots_of(host: nn.Module) -> dict[str, SeedSlot]:
    """The slots of a host by slot_id, in the order of its modules.

    Raises:
        InputError: two have the same slot_id, as in copies of a block.
    """
    slots: dict[str, SeedSlot] = {}
    for name, module in host.named_modules():
        if isinstance(module, SeedSlot) and slots.setdefault(module.state.slot_id, module) is not module:
            raise InputError(f"slot {module.state.slot_id!r}: {name} is a second one of that slot_id: give it its own")
    return slots
