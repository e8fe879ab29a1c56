"""Blueprints that can never learn, each by a fault of its own; for slots of features."""

import torch
from torch import Tensor, nn

from sapflow.growth.blueprints import Blueprint


def _sigmoids(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Sigmoid())))


def _two_layers(shape: tuple[int, ...], between: nn.Module) -> nn.Sequential:
    (width,) = shape
    return nn.Sequential(nn.Linear(width, width), between, nn.Linear(width, width))


@torch.no_grad()
def _tiny(shape: tuple[int, ...]) -> nn.Module:
    seed = _two_layers(shape, nn.GELU())
    for parameter in seed.parameters():
        parameter.mul_(1e-3)
    return seed


@torch.no_grad()
def _huge(shape: tuple[int, ...]) -> nn.Module:
    seed = _two_layers(shape, nn.GELU())
    for parameter in seed.parameters():
        parameter.mul_(20.0)
    return seed


@torch.no_grad()
def _dead_relu(shape: tuple[int, ...]) -> nn.Module:
    seed = _two_layers(shape, nn.ReLU())
    seed[0].bias.fill_(-100.0)  # type: ignore[union-attr]
    return seed


@torch.no_grad()
def _saturated(shape: tuple[int, ...]) -> nn.Module:
    seed = _two_layers(shape, nn.Tanh())
    seed[0].weight.mul_(200.0)  # type: ignore[union-attr]
    return seed


@torch.no_grad()
def _double_zero(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    seed = nn.Sequential(nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False))
    for parameter in seed.parameters():
        parameter.zero_()
    return seed


def _exploding_depth(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    layers = [nn.Linear(width, width) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=2.5)
    return nn.Sequential(*layers)


class _Breaks(nn.Module):
    """Sound at first, and NaN from some step on."""

    def __init__(self, width: int, step: int = 40) -> None:
        super().__init__()
        self.layers = _two_layers((width,), nn.GELU())
        self.left = step

    def forward(self, h: Tensor) -> Tensor:
        self.left -= self.training
        branch: Tensor = self.layers(h)
        return branch if self.left > 0 else branch * torch.nan


def _nan_later(shape: tuple[int, ...]) -> nn.Module:
    return _Breaks(*shape)


FAULTY = tuple(
    Blueprint(name, 1, build, calibrated=False, pathological=True)
    for name, build in (
        ("sigmoids", _sigmoids), ("tiny", _tiny), ("huge", _huge), ("dead-relu", _dead_relu),
        ("saturated", _saturated), ("double-zero", _double_zero), ("exploding", _exploding_depth), ("nan", _nan_later),
    )
)  # fmt: skip
