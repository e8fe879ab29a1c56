"""Modules that change the containers they are given: their callers find every change there, watched or not."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flow import Flow, assert_agrees, norm
from sapflow import GradientMonitor
from sapflow.telemetry.vocabulary import Measurement


@dataclass
class State:
    h: Tensor
    losses: list[Tensor]


@dataclass(frozen=True)
class Frozen:
    h: Tensor
    losses: list[Tensor]


class Output(OrderedDict):
    """Like the outputs of Hugging Face's models: entries are set one by one, or not at all."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no update")

    def pop(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no pop")

    def __delitem__(self, key: str) -> None:
        raise RuntimeError("no deletion")


class Expert(nn.Module):
    """A block with an auxiliary loss, which it leaves in what it is given."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        y = self.layer(x).tanh()
        loss = y.square().mean()
        if self.way == "list":
            given.append(loss)
        elif self.way == "list, in front":
            given.insert(0, loss * (given[-1] if given else 1.0))
        elif self.way == "dict":
            given[f"loss{len(given)}"] = loss
        elif self.way == "tuple":
            given[0].append(loss)
        else:
            given.losses.append(loss)
            if self.way == "dataclass":
                given.h = y + given.h
        return y


class Mixture(nn.Module):
    def __init__(self, way: str, depth: int = 3) -> None:
        super().__init__()
        self.way = way
        self.blocks = nn.ModuleList(Expert(way) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        makers = {
            "dict": dict,
            "tuple": lambda: ([], 1),
            "dataclass": lambda: State(x, []),
            "frozen dataclass": lambda: Frozen(x, []),
        }
        given = makers.get(self.way, list)()
        for block in self.blocks:
            x = block(x, given)
        losses = {
            "dict": lambda: list(given.values()),
            "tuple": lambda: given[0],
            "dataclass": lambda: [*given.losses, given.h.square().sum()],
            "frozen dataclass": lambda: given.losses,
        }.get(self.way, lambda: given)()
        return x.square().mean() + sum(losses)


def trained(model: nn.Module, data: Tensor, run: Any = None) -> list[Tensor]:
    loss = (model if run is None else run)(data)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


WAYS = ["list", "list, in front", "dict", "tuple", "dataclass", "frozen dataclass"]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_module_leaves_in_what_it_is_given_is_there_to_the_bit(way: str) -> None:
    torch.manual_seed(0)
    model, data = Mixture(way), torch.randn(4, 8, requires_grad=True)
    plain = trained(copy.deepcopy(model), data)
    with GradientMonitor({str(index): block for index, block in enumerate(model.blocks)}) as monitor:
        watched = trained(model, data)
        health = monitor.close_epoch()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert all(flow.measurement is Measurement.MEASURED for flow in health.values())


def test_what_was_given_is_the_same_afterwards_and_what_leaves_through_it_is_measured() -> None:
    class Reader(nn.Module):
        def forward(self, state: State) -> Tensor:
            self.seen = state
            return 2.0 * state.h + 3.0 * state.losses[0]

    h, loss = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    state, reader = State(h, [loss]), Reader()
    monitor = GradientMonitor({"m": reader})
    y = reader(state)
    assert reader.seen is state
    assert (state.h is h, state.losses[0] is loss) == (True, True)
    (y.sum() + 5 * h.sum() + 7 * loss.sum()).backward()
    ones = torch.ones(3)
    assert_agrees(monitor.close_epoch()["m"], Flow(norm([ones]), norm([2 * ones, 3 * ones])))


def test_what_a_forward_that_raised_was_given_is_put_back() -> None:
    class Fragile(nn.Module):
        def forward(self, items: list[Tensor]) -> Tensor:
            raise ValueError("no")

    module, x = Fragile(), torch.randn(3, requires_grad=True)
    items = [x]
    monitor = GradientMonitor({"m": module})
    with pytest.raises(ValueError, match="no"):
        module(items)
    monitor.close()
    assert items[0] is x


def test_a_dict_that_forbids_updates_is_measured() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, given: Output) -> Output:
            return Output(y=2.0 * given["x"], weight=self.weight)

    module, x = Wrapper(), torch.randn(3, requires_grad=True)
    monitor = GradientMonitor({"m": module})
    given = Output(x=x, note="kept")
    out = module(given)
    assert (type(out), list(out), given["x"] is x) == (Output, ["y", "weight"], True)
    out["y"].sum().backward()
    assert_agrees(monitor.close_epoch()["m"], Flow(3**0.5, 2 * 3**0.5))
