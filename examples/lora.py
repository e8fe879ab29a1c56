"""LoRA adapters in a small transformer: born at B = 0, so with a gain of exactly 0, and yet no false alarm."""

import torch
from torch import nn
from torch.nn import functional as F

import sapflow


class Adapter(nn.Module):
    """x → B·A·x with B = 0: the branch says nothing until B has moved."""

    def __init__(self, width: int, rank: int = 4) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


class Block(nn.Module):
    """A frozen transformer block with an adapter beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.frozen.requires_grad_(False)
        self.adapter = Adapter(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.adapter(x)


class Model(nn.Module):
    """Predicts the next character of a text that it has by heart before long."""

    def __init__(self, symbols: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, symbols)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


torch.manual_seed(0)
text = "sap flow is how a botanist tells that a grafted shoot is alive. " * 4
alphabet = sorted(set(text))
tokens = torch.tensor([alphabet.index(character) for character in text])
model = Model(len(alphabet))
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)

alarms = []
watcher = sapflow.watch(
    model,
    "layers.*.adapter",
    epoch_every=10,
    on_verdict=lambda name, seed: alarms.append(name) if seed.has_vanishing or seed.has_exploding else None,
)

for _ in range(150):
    starts = torch.randint(len(tokens) - 17, (16,))
    batch = torch.stack([tokens[start : start + 17] for start in starts])
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

first, last = (watcher.history()["layers.0.adapter"]["grad_ratio"][epoch] for epoch in (0, -1))
print(watcher.report())
print(f"gain of the first adapter: {first:.1e} in its first epoch, {last:.1e} in its last; false alarms: {len(alarms)}")
watcher.close()
