"""Blueprints for slots of features: samples of shape (features,)."""

from torch import nn

from sapflow.growth.blueprints.blueprint import Blueprint


def _mlp(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def _wide(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def _norm(shape: tuple[int, ...]) -> nn.Module:
    (width,) = shape
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def _sigmoid(shape: tuple[int, ...]) -> nn.Module:
    """Vanishes: three sigmoid layers at PyTorch's defaults, each with a gain of about 0.14."""
    (width,) = shape
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Sigmoid())))


def _explosive(shape: tuple[int, ...]) -> nn.Module:
    """Explodes: a chain of orthogonal layers, each with a gain of 4."""
    (width,) = shape
    layers = [nn.Linear(width, width, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=4.0)
    return nn.Sequential(*layers)


FEATURE_BLUEPRINTS = (
    Blueprint("mlp", 1, _mlp),
    Blueprint("wide", 1, _wide),
    Blueprint("norm", 1, _norm),
    Blueprint("sigmoid", 1, _sigmoid, calibrated=False, pathological=True),
    Blueprint("explosive", 1, _explosive, calibrated=False, pathological=True),
)
