"""Hosts: networks with slots at named places."""

from torch import Tensor, nn

from sapflow.growth.slot import SeedSlot


class DenseHost(nn.Module):
    """A small perceptron over (batch, inputs) with slots early, mid and late."""

    def __init__(self, inputs: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), SeedSlot("early", (width,)),
            nn.Linear(width, width), nn.ReLU(), SeedSlot("mid", (width,)),
            nn.Linear(width, width), nn.ReLU(), SeedSlot("late", (width,)),
            nn.Dropout(0.1),
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]


class ConvHost(nn.Module):
    """A small convolutional network over (batch, 1, size, size) with slots early, mid and late."""

    def __init__(self, size: int, classes: int, channels: int = 8) -> None:
        super().__init__()
        half = size // 2
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            SeedSlot("early", (channels, size, size)),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(), nn.MaxPool2d(2),
            SeedSlot("mid", (2 * channels, half, half)),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(),
            SeedSlot("late", (2 * channels, half, half)),
            nn.Dropout(0.1),
        )  # fmt: skip
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.head(self.body(x).mean((-2, -1)))  # type: ignore[no-any-return]


def slots_of(host: nn.Module) -> dict[str, SeedSlot]:
    """The slots of a host by slot_id, in the order of its modules."""
    return {module.state.slot_id: module for module in host.modules() if isinstance(module, SeedSlot)}
