"""The gradients at a module's boundary computed without Sapflow, and small models to measure."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from sapflow.telemetry.events import GradientHealth
from sapflow.telemetry.vocabulary import Measurement


@dataclass(frozen=True)
class Flow:
    """entering = ‖∂L/∂y‖ and leaving = ‖∂L/∂x‖; of several passes, the roots of the summed squares."""

    entering: float
    leaving: float

    @property
    def ratio(self) -> float:
        return self.leaving / self.entering

    def __add__(self, other: "Flow") -> "Flow":
        return Flow(math.hypot(self.entering, other.entering), math.hypot(self.leaving, other.leaving))

    def __truediv__(self, scale: float) -> "Flow":
        return Flow(self.entering / scale, self.leaving / scale)


def total(flows: Iterable[Flow]) -> Flow:
    return sum(flows, Flow(0.0, 0.0))


def norm(gradients: Iterable[Tensor | None]) -> float:
    """The norm of all gradients together, in double precision."""
    return math.sqrt(sum(float(g.detach().double().square().sum()) for g in gradients if g is not None))


class _Call(NamedTuple):
    args: Any
    kwargs: Any
    output: Any
    random_state: Tensor
    autocast: dict[str, Any]


def flow_of(model: nn.Module, name: str, loss_of: Callable[[Any], Tensor]) -> Flow:
    """What one backward pass of `loss_of(model)` sends into and out of the module `name`, all of its calls together.

    Computed on a copy, which nobody watches, from two pieces of graph: torch.autograd.grad from the loss to the outputs
    of the module's calls, and from these outputs through the module alone, called again on leaves. Only inputs that
    need a gradient in the model count as leaving, and only calls that have such inputs count at all. For modules that
    change neither input nor output in place.
    """
    twin = copy.deepcopy(model)
    module = twin.get_submodule(name)
    calls: list[_Call] = []
    begun: list[tuple[Tensor, dict[str, Any]]] = []

    def before(module: nn.Module, args: Any) -> None:
        autocast = {"dtype": torch.get_autocast_dtype("cpu"), "enabled": torch.is_autocast_enabled("cpu")}
        begun.append((torch.get_rng_state(), autocast))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(_Call(args, kwargs, output, *begun.pop()))

    with torch.random.fork_rng(devices=[]):
        handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after, with_kwargs=True)]
        loss = loss_of(twin)
        for handle in handles:
            handle.remove()
        outputs = [_distinct(call.output) for call in calls]
        flat = [tensor for tensors in outputs for tensor in tensors]
        entering = iter(torch.autograd.grad(loss, flat, allow_unused=True, retain_graph=True))
        flow = Flow(0.0, 0.0)
        for call, tensors in zip(calls, outputs, strict=True):
            gradients = [next(entering) for _ in tensors]
            if _distinct((call.args, call.kwargs)):
                flow += Flow(norm(gradients), _leaving(module, call, gradients))
    return flow


def _distinct(structure: Any) -> list[Tensor]:
    tensors = [leaf for leaf in tree_leaves(structure) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return list({id(tensor): tensor for tensor in tensors}.values())


def _leaving(module: nn.Module, call: _Call, entering: list[Tensor | None]) -> float:
    leaves: dict[int, Tensor] = {}

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.requires_grad:
            return leaves.setdefault(id(value), value.detach().clone().requires_grad_())
        return value

    args, kwargs = tree_map(leaf, (call.args, call.kwargs))
    if not leaves:
        return 0.0
    torch.set_rng_state(call.random_state)
    with torch.autocast("cpu", **call.autocast):
        outputs = _distinct(module(*args, **kwargs))
    reached = [(y, g) for y, g in zip(outputs, entering, strict=True) if g is not None]
    if not reached:
        return 0.0
    ys, gs = zip(*reached, strict=True)
    return norm(torch.autograd.grad(ys, list(leaves.values()), grad_outputs=gs, allow_unused=True))


def assert_agrees(health: GradientHealth, flow: Flow, rel: float = 1e-5) -> None:
    """The measurement is there, and what it says is true."""
    assert health.measurement is Measurement.MEASURED, health.measurement_reason
    assert health.entering_norm == pytest.approx(flow.entering, rel=rel)
    assert health.leaving_norm == pytest.approx(flow.leaving, rel=rel)
    assert health.grad_ratio == pytest.approx(flow.ratio, rel=rel)


def scaled_orthogonal(gain: float, width: int = 16) -> nn.Linear:
    """A layer whose gradients leave with exactly `gain` times the norm they entered with."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


def mlp(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


class Residual(nn.Module):
    """h + branch(norm(h)): the shape of most of what is grown into a network."""

    def __init__(self, width: int = 16, branch: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.branch = mlp(width) if branch is None else branch

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(self.norm(h))


class Net(nn.Module):
    """An embedding layer, residual blocks, a head."""

    def __init__(self, depth: int = 3, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Convolutional(nn.Module):
    """Convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x.view(-1, 1, 4, 4))).mean((2, 3)))


class Attention(nn.Module):
    """Causal self-attention of two heads."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """A block of GPT, with dropout."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.attention = Residual(width, nn.Sequential(Attention(width), nn.Dropout(dropout)))
        hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.mlp = Residual(width, nn.Sequential(*hidden, nn.Dropout(dropout)))

    def forward(self, h: Tensor) -> Tensor:
        return self.mlp(self.attention(h))


class Transformer(nn.Module):
    """Two blocks between an embedding layer and a head."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.Sequential(TransformerBlock(width, dropout), TransformerBlock(width, dropout))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.view(-1, 2, x.shape[-1]))))
