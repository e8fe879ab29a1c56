"""A measurement that is missing is named, with its reason and the way out, and never passes for health."""

import copy
import math

import pytest
import torch
from torch import nn

import sapflow
from flow import (
    scaled_orthogonal,
)
from sapflow import GradientMonitor
from sapflow.telemetry.vocabulary import Measurement


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(7)


def leaf(*shape, **kwargs):
    return torch.randn(*shape, **kwargs).requires_grad_()


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(3, requires_grad=True) * 2


class Opaque(nn.Module):
    """Its output is of a type that nobody knows to look into."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return Result(self.layer(x))


class Result:
    def __init__(self, y):
        self.y = y


class Unpacking(nn.Module):
    """So is its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, result):
        return self.layer(result.y)


class SideDoor(nn.Module):
    """Its parameters are trained past its forward's output, where no probe can see."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        self.layer(x).sum().backward()
        return self.layer(x.detach())


def needing(x):
    return x.requires_grad_()


# By state: what leads to it, as (module, what is done with it), and words of which one must tell the way out.
MISSING = {
    "never called": (
        Measurement.UNMEASURED,
        nn.Linear(3, 3),
        lambda m, x: None,
        ("forward", "call"),
    ),
    "holds others, which run": (
        Measurement.UNMEASURED,
        nn.ModuleList([nn.Linear(3, 3)]),
        lambda m, x: m[0](needing(x)).sum().backward(),
        ("no forward",),
    ),
    "called without gradients": (
        Measurement.UNMEASURED,
        nn.Linear(3, 3),
        lambda m, x: torch.no_grad()(m)(x),
        ("grad",),
    ),
    "no backward yet": (
        Measurement.UNMEASURED,
        nn.Linear(3, 3),
        lambda m, x: m(needing(x)),
        ("backward",),
    ),
    "masked by zeros": (
        Measurement.NO_GRADIENT,
        nn.Linear(3, 3),
        lambda m, x: (m(needing(x)) * 0).sum().backward(),
        ("loss",),
    ),
    "output unused": (
        Measurement.NO_GRADIENT,
        nn.Linear(3, 3),
        lambda m, x: (m(needing(x)), x.sum().backward()),
        ("loss", "output"),
    ),
    "all frozen": (
        Measurement.NO_GRADIENT,
        nn.Linear(3, 3).requires_grad_(False),
        lambda m, x: m(x),
        ("requires_grad", "train", "unfreeze"),
    ),
    "input is data": (
        Measurement.INPUT_DETACHED,
        nn.Linear(3, 3),
        lambda m, x: m(x).sum().backward(),
        ("needs no gradient", "requires_grad"),
    ),
    "input is integers": (
        Measurement.INPUT_DETACHED,
        nn.Embedding(4, 3),
        lambda m, x: m(torch.tensor([1, 2])).sum().backward(),
        ("integers",),
    ),
    "input cannot be looked into": (
        Measurement.INPUT_DETACHED,
        Unpacking(),
        lambda m, x: m(Result(needing(x))).sum().backward(),
        ("type that is not looked",),
    ),
    "output cannot be looked into": (
        Measurement.PROBE_LOST,
        Opaque(),
        lambda m, x: m(needing(x)).y.sum().backward(),
        ("a Result",),
    ),
    "output is a view that is changed in place": (
        Measurement.PROBE_LOST,
        nn.Linear(3, 3),
        lambda m, x: m(needing(x.view(1, 2, 3))).relu_().sum().backward(),
        ("inplace=False",),
    ),
    "output does not depend on the input": (
        Measurement.INPUT_DETACHED,
        Constant(),
        lambda m, x: m(needing(x)).sum().backward(),
        ("input",),
    ),
    "nothing but NaN": (
        Measurement.NON_FINITE,
        nn.Linear(3, 3),
        lambda m, x: (m(needing(x)) * math.nan).sum().backward(),
        ("NaN",),
    ),
    "its parts are called": (
        Measurement.PROBE_LOST,
        SideDoor(),
        lambda m, x: m.layer(needing(x)).sum().backward(),
        ("not its parts",),
    ),
    "trained by a side door": (
        Measurement.PROBE_LOST,
        SideDoor(),
        lambda m, x: m(x),
        ("attach", "output"),
    ),
}
# What a sentence that says what to do has a clause begin with.
IMPERATIVES = {
    *("add", "attach", "backpropagate", "call", "check", "clip", "close", "compile", "connect", "detach", "feed"),
    *("find", "give", "have", "include", "let", "look", "lower", "make", "pass", "put", "read", "reduce", "remove"),
    *("run", "see", "set", "start", "step", "take", "train", "try", "turn", "unfreeze", "use", "wait", "watch"),
}


def says_what_to_do(reason):
    clauses = [clause.split() for clause in reason.replace(";", ":").replace(",", ":").replace(".", ":").split(":")]
    return any(words and words[0].lower().strip("`'\"") in IMPERATIVES for words in clauses)


class TestNeverSilent:
    @pytest.mark.parametrize("case", MISSING)
    def test_a_missing_measurement_has_its_state_and_a_reason_that_says_what_to_do(self, case):
        state, module, act, words = MISSING[case]
        module, other = copy.deepcopy(module), scaled_orthogonal(1.0, 3)
        monitor = GradientMonitor({"m": module, "other": other})
        other(leaf(2, 3)).sum().backward()  # passes go by while this one is missing
        act(module, torch.randn(2, 3))
        health = monitor.health()["m"] if case == "no backward yet" else monitor.close_epoch()["m"]
        assert health.measurement is state
        assert (health.grad_ratio, health.has_vanishing) == (0.0, False)
        assert any(word in health.measurement_reason for word in words)
        assert says_what_to_do(health.measurement_reason), health.measurement_reason

    def test_every_state_but_measured_is_in_the_table(self):
        assert {row[0] for row in MISSING.values()} == set(Measurement) - {Measurement.MEASURED}

    def test_measured_needs_no_reason(self):
        module = scaled_orthogonal(1.0)
        monitor = GradientMonitor({"m": module})
        module(leaf(2, 16)).sum().backward()
        assert monitor.close_epoch()["m"].measurement_reason == ""


def test_gradients_that_stand_from_before_have_not_reached_the_parameters():
    used, idle = nn.Linear(4, 4), nn.Linear(4, 4)
    (used(leaf(2, 4)).sum() + idle(leaf(2, 4)).sum()).backward()

    def of_epoch(loss):
        loss.backward()  # and no gradient is ever zeroed
        monitor.step()
        return monitor.close_epoch()["idle"]

    with GradientMonitor({"used": used, "idle": idle}) as monitor:
        for _ in range(2):
            health = of_epoch(used(leaf(2, 4)).sum())
            assert (health.measurement, "call it" in health.measurement_reason) == (Measurement.UNMEASURED, True)
        past_the_hooks = nn.functional.linear(leaf(2, 4), idle.weight).sum()
        assert of_epoch(used(leaf(2, 4)).sum() + past_the_hooks).measurement is Measurement.PROBE_LOST
        assert of_epoch(used(leaf(2, 4)).sum()).measurement is Measurement.UNMEASURED


def test_zeros_that_an_optimizer_has_put_there_have_not_reached_the_parameters():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("used", "unused", "idle")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sapflow.watch(model, "*") as watcher:
        for _ in range(2):
            x = torch.randn(2, 4, requires_grad=True)
            ignored = 0 if watcher.epochs else model["unused"](x).sum() + model["idle"](x).sum()
            model["unused"](x)
            optimizer.zero_grad(set_to_none=False)
            (model["used"](x).sum() + ignored).backward()
            optimizer.step()
            seeds = watcher.epoch()
    assert "let the loss depend on it" in seeds["unused"].measurement_reason
    assert "call it" in seeds["idle"].measurement_reason
