"""Causal self-attention: what hosts and seeds over sequences are made of."""

from torch import Tensor, nn
from torch.nn import functional as F


class CausalAttention(nn.Module):
    """Attention over (batch, tokens, width), any number of tokens: a token looks at itself and at those before it.

    Args:
        width: of a token; the heads share it.
        heads: how many; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape as `x`."""
        queries, keys, values = self.project_in(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.project_out(mixed.transpose(-2, -3).flatten(-2))  # type: ignore[no-any-return]
