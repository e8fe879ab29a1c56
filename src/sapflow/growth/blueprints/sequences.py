"""Blueprints that mix the tokens of a sequence (tokens, width): any number of them, and none looks ahead."""

from torch import Tensor, nn
from torch.nn import functional as F

from sapflow.growth.attention import CausalAttention
from sapflow.growth.blueprints.definition import Blueprint

REACH = 4  # tokens that a convolution sees: itself and those before it
MOST_HEADS = 4


class CausalConv(nn.Module):
    """A convolution over time for each feature of (batch, tokens, width), padded on the side of the past."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(width, width, REACH, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape as `x`."""
        past_first = F.pad(x.transpose(1, 2), (REACH - 1, 0))
        return self.filters(past_first).transpose(1, 2)  # type: ignore[no-any-return]


def _attention(shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    heads = max(heads for heads in range(1, MOST_HEADS + 1) if width % heads == 0)
    return nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads))


def _conv(shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    return nn.Sequential(CausalConv(width), nn.GELU(), nn.Linear(width, width))


SEQUENCE_BLUEPRINTS = (Blueprint("attention", 2, _attention), Blueprint("conv", 2, _conv))
