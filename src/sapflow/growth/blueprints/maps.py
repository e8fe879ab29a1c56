"""Blueprints for slots of feature maps: samples of shape (channels, height, width)."""

from torch import nn

from sapflow.growth.blueprints.definition import Blueprint


def _conv(shape: tuple[int, ...]) -> nn.Module:
    channels = shape[0]
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 1))


def _norm(shape: tuple[int, ...]) -> nn.Module:
    channels = shape[0]
    return nn.Sequential(
        nn.GroupNorm(1, channels),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(channels, channels, 1),
    )


def _depthwise(shape: tuple[int, ...]) -> nn.Module:
    channels = shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.GELU(), nn.Conv2d(channels, channels, 1)
    )


def _bottleneck(shape: tuple[int, ...]) -> nn.Module:
    channels = shape[0]
    narrow = max(1, channels // 2)
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 1), nn.GELU(), nn.Conv2d(narrow, narrow, 3, padding=1), nn.GELU(),
        nn.Conv2d(narrow, channels, 1),
    )  # fmt: skip


def _sigmoid(shape: tuple[int, ...]) -> nn.Module:
    """Vanishes: three sigmoid layers at PyTorch's defaults."""
    channels = shape[0]
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(channels, channels, 1), nn.Sigmoid())))


def _explosive(shape: tuple[int, ...]) -> nn.Module:
    """Explodes: a chain of orthogonal 1×1 convolutions, each with a gain of 4."""
    channels = shape[0]
    layers = [nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=4.0)
    return nn.Sequential(*layers)


MAP_BLUEPRINTS = (
    Blueprint("conv", 3, _conv),
    Blueprint("norm", 3, _norm),
    Blueprint("depthwise", 3, _depthwise),
    Blueprint("bottleneck", 3, _bottleneck),
    Blueprint("sigmoid", 3, _sigmoid, calibrated=False, pathological=True),
    Blueprint("explosive", 3, _explosive, calibrated=False, pathological=True),
)
