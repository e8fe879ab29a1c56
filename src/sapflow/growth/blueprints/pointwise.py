"""Blueprints that work on the last dimension alone: for features (features,) and for sequences (tokens, width)."""

from torch import nn

from sapflow.growth.blueprints.definition import Blueprint


def _mlp(shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def _wide(shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def _norm(shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def _gated(shape: tuple[int, ...]) -> nn.Module:
    """A gated linear unit: one half of what a layer gives decides how much of the other half passes."""
    width = shape[-1]
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GLU(), nn.Linear(width, width))


def _sigmoid(shape: tuple[int, ...]) -> nn.Module:
    """Vanishes: three sigmoid layers at PyTorch's defaults, each with a gain of about 0.14."""
    width = shape[-1]
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Sigmoid())))


def _explosive(shape: tuple[int, ...]) -> nn.Module:
    """Explodes: a chain of orthogonal layers, each with a gain of 4."""
    width = shape[-1]
    layers = [nn.Linear(width, width, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=4.0)
    return nn.Sequential(*layers)


POINTWISE_BLUEPRINTS = tuple(
    blueprint
    for dimensions in (1, 2)
    for blueprint in (
        Blueprint("mlp", dimensions, _mlp),
        Blueprint("wide", dimensions, _wide),
        Blueprint("norm", dimensions, _norm),
        Blueprint("gated", dimensions, _gated),
        Blueprint("sigmoid", dimensions, _sigmoid, calibrated=False, pathological=True),
        Blueprint("explosive", dimensions, _explosive, calibrated=False, pathological=True),
    )
)
