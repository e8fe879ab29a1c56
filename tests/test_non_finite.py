"""Where NaN comes from: the module, the pass, the parameter; planted, and named."""

import math

import pytest
import torch
from torch import nn

import sapflow
from sapflow import HealthPolicy
from sapflow.gradients.cells import Page


class Plant(torch.autograd.Function):
    """The identity, whose backward lets `value` into the gradient."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + ctx.value, None


class Faulty(nn.Module):
    """The identity; in the pass that it is armed for it plants a value in its backward, or its forward."""

    def __init__(self):
        super().__init__()
        self.backward_value = self.forward_value = 0.0

    def forward(self, x):
        return Plant.apply(x, self.backward_value) + self.forward_value


class Block(nn.Module):
    """Three layers, a fault between the second and the third: its gradient meets `second` first."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.fault = Faulty()
        self.third = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.third(self.fault(self.second(torch.tanh(self.first(x)))))


class SquareRoot(nn.Module):
    """√scale · x: at scale 0 the gradient of the parameter alone is infinite, that of the input is 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x + self.scale.sqrt() * x.detach()


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture
def host():
    torch.manual_seed(0)
    return Host()


def run(host, passes, *, fault=None, at=None, value=math.nan, in_forward=False, loss_factor=None, clip=None):
    """Passes of training; in pass `at`, the last that trains, something is planted: in a module, or in the loss."""
    optimizer = torch.optim.SGD(host.parameters(), lr=0.01)
    for number in range(1, passes + 1):
        if fault is not None:
            planted = value if number == at else 0.0
            setattr(fault, "forward_value" if in_forward else "backward_value", planted)
        optimizer.zero_grad()
        loss = host(torch.randn(4, 8)).square().mean()
        if loss_factor is not None and number == at:
            loss = loss * loss_factor
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(host.parameters(), clip)
        optimizer.step()


def watched(host, what, **kwargs):
    return sapflow.watch(host, what, policy=HealthPolicy(), **kwargs)


class TestNanInTheBackward:
    @pytest.mark.parametrize("clip", [None, 1.0], ids=["as it is", "clipped between backward and step"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_is_named_with_module_pass_and_first_parameter(self, host, value, clip):
        with watched(host, ["blocks.*", "head"]) as watcher:
            run(host, 5, fault=host.blocks[1].fault, at=5, value=value, clip=clip)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert origin.slot_id == "blocks.1"
        assert origin.parameter == "second.weight"
        assert (origin.passes, origin.pass_index, origin.epoch) == (5, 4, 1)
        assert origin.in_forward is False
        assert "blocks.1" in origin.text
        assert "second.weight" in origin.text
        assert "5" in origin.text

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_of_any_block_is_told_from_the_others(self, host, index):
        with watched(host, "blocks.*") as watcher:
            run(host, 2, fault=host.blocks[index].fault, at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert origin.slot_id == f"blocks.{index}"

    def test_passes_are_counted_on_over_epochs(self, host):
        with watched(host, "blocks.*", epoch_every=3) as watcher:
            run(host, 8, fault=host.blocks[1].fault, at=8)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.epoch, origin.pass_index, origin.passes) == (3, 1, 8)

    def test_nested_watched_modules_name_the_inner_one(self, host):
        with watched(host, ["blocks.1", "blocks.1.fault", "blocks.1.first", "blocks.*"]) as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.parameter) == ("blocks.1.fault", "")

    def test_in_an_outer_module_beside_its_watched_part_is_the_outer_one_s(self, host):
        with watched(host, ["blocks.1", "blocks.1.third"]) as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.parameter) == ("blocks.1", "second.weight")

    @pytest.mark.parametrize("clip", [None, 1.0], ids=["as it is", "clipped between backward and step"])
    def test_in_a_parameter_s_gradient_alone(self, host, clip):
        host.blocks[1] = SquareRoot()
        with watched(host, "blocks.*") as watcher:
            run(host, 2)
            with torch.no_grad():
                host.blocks[1].scale.zero_()
            run(host, 2, clip=clip)
            watcher.epoch()
            (origin,) = watcher.non_finite
        # The boundaries of its pass are finite; the next one finds the parameter spoilt.
        assert (origin.slot_id, origin.parameter, origin.passes) == ("blocks.1", "scale", 4)

    def test_what_follows_a_poisoned_step_does_not_hide_the_first_origin(self, host):
        with watched(host, ["blocks.*", "head"]) as watcher:
            run(host, 6, fault=host.blocks[1].fault, at=3)
            watcher.epoch()
            first = watcher.non_finite[0]
        assert (first.slot_id, first.parameter, first.passes) == ("blocks.1", "second.weight", 3)

    def test_is_known_after_the_watcher_is_closed(self, host):
        with watched(host, "blocks.*") as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2)
        assert [origin.slot_id for origin in watcher.non_finite] == ["blocks.1"]


class TestNanFromOutside:
    @pytest.mark.parametrize("factor", [math.nan, math.inf])
    def test_from_the_loss(self, host, factor):
        with watched(host, ["blocks.*", "head"]) as watcher:
            run(host, 4, at=4, loss_factor=factor)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.parameter, origin.passes) == ("", "", 4)
        assert "outside" in origin.text

    def test_from_a_module_that_nobody_watches(self, host):
        host.head = nn.Sequential(host.head, Faulty())
        with watched(host, "blocks.*") as watcher:
            run(host, 2, fault=host.head[1], at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.parameter) == ("", "")

    def test_between_two_watched_modules(self, host):
        with watched(host, ["blocks.0", "blocks.2"]) as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert origin.slot_id == ""


class TestNanInTheForward:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_is_named_when_activations_are_asked_for(self, host, value):
        with watched(host, ["blocks.*", "head"], activations=True) as watcher:
            run(host, 3, fault=host.blocks[1].fault, at=3, value=value, in_forward=True)
            watcher.epoch()
            origin = watcher.non_finite[0]
        assert (origin.slot_id, origin.in_forward, origin.passes) == ("blocks.1", True, 3)
        assert "blocks.1" in origin.text
        assert "forward" in origin.text

    def test_nested_watched_modules_name_the_inner_one(self, host):
        with watched(host, ["blocks.1", "blocks.1.fault", "blocks.1.third"], activations=True) as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2, in_forward=True)
            watcher.epoch()
            origin = watcher.non_finite[0]
        assert (origin.slot_id, origin.in_forward) == ("blocks.1.fault", True)

    def test_in_the_data_comes_from_outside(self, host):
        with watched(host, ["blocks.*", "head"], activations=True) as watcher:
            host(torch.full((4, 8), math.nan)).square().mean().backward()
            watcher.step()
            watcher.epoch()
            origin = watcher.non_finite[0]
        assert (origin.slot_id, origin.in_forward) == ("", True)

    def test_a_fault_in_the_backward_is_not_blamed_on_the_forward(self, host):
        with watched(host, ["blocks.*", "head"], activations=True) as watcher:
            run(host, 2, fault=host.blocks[1].fault, at=2)
            watcher.epoch()
            (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.in_forward) == ("blocks.1", False)


@pytest.mark.parametrize("activations", [False, True])
def test_healthy_training_has_no_origin(host, activations):
    with watched(host, ["blocks.*", "head"], activations=activations) as watcher:
        run(host, 6)
        watcher.epoch()
        assert list(watcher.non_finite) == []


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x, mask):
        return self.layer(self.embed(x), mask)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("activations", [False, True])
def test_a_mask_of_minus_infinity_is_no_origin_and_hides_none(monkeypatch, activations, on_host):
    if not on_host:  # on an accelerator cells are tensors only
        monkeypatch.setattr(Page, "_find_memory", lambda page: setattr(page, "memory", None))
    model, mask = Masked(), nn.Transformer.generate_square_subsequent_mask(5)
    with sapflow.watch(model, ["embed", "layer"], activations=activations) as watcher:
        for factor in (1.0, math.nan):
            (model(torch.randn(4, 5, 8), mask).square().mean() * factor).backward()
            watcher.step()
            watcher.epoch()
            assert len(watcher.non_finite) == math.isnan(factor)
    (origin,) = watcher.non_finite
    assert not origin.in_forward


def test_nan_in_the_data_beside_the_signal_comes_from_outside():
    model = Masked()
    with sapflow.watch(model, ["embed", "layer"], activations=True) as watcher:
        model(torch.randn(4, 5, 8), torch.full((5, 5), math.nan)).square().mean().backward()
        watcher.step()
        watcher.epoch()
    (origin,) = watcher.non_finite
    assert (origin.slot_id, origin.in_forward) == ("", True)


def test_large_gradients_are_no_origin_though_their_squares_overflow(host):
    """A norm of 1e25 is finite in float32, and its square is not."""
    with watched(host, ["head"]) as watcher:
        (host(torch.randn(4, 8)).mean() * 1e25).backward()
        watcher.step()
        watcher.epoch()
        assert all(parameter.grad.isfinite().all() for parameter in host.parameters())
        assert list(watcher.non_finite) == []


def test_nan_after_a_pass_whose_squares_overflow_is_named(host):
    with watched(host, ["blocks.*", "head"]) as watcher:
        (host(torch.randn(4, 8)).mean() * 1e25).backward()
        watcher.step()
        run(host, 1, fault=host.blocks[1].fault, at=1)
        watcher.epoch()
        (origin,) = watcher.non_finite
        assert (origin.slot_id, origin.passes, origin.parameter) == ("blocks.1", 2, "second.weight")


def test_a_sparse_gradient_that_is_not_finite_is_named_and_the_backward_goes_on():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    model = Tokens()
    with watched(model, "*") as watcher:
        (model(torch.tensor([1, 2])).sum() * math.inf).backward()
        watcher.step()
        watcher.epoch()
        assert len(watcher.non_finite) == 1
