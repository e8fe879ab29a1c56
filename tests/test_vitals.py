"""Vital signs, against an independent account: scale of outputs, live parameters, what moved; only where needed."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import sapflow
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.norms import add_mean_squares
from sapflow.health.policy import HealthPolicy, Need


class Needy(HealthPolicy):
    """The record's band, and everything that can be measured."""

    needs = frozenset(Need)

    def judge(self, reading, memory):
        self.readings.append(reading)
        return super().judge(reading, memory)


@pytest.fixture
def policy():
    policy = Needy()
    object.__setattr__(policy, "readings", [])
    return policy


def scaled_orthogonal(gain: float) -> nn.Linear:
    layer = nn.Linear(8, 8, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


@pytest.mark.parametrize("gain", [0.85, 3.0, 0.0])
def test_an_orthogonal_layer_scales_what_runs_through_it_by_its_gain(policy, gain):
    layer = scaled_orthogonal(gain)
    monitor = GradientMonitor({"m": layer}, policy=policy)
    for _ in range(3):
        layer(torch.randn(16, 8, requires_grad=True)).sum().backward()
        monitor.step()
    assert monitor.health()["m"].output_input_rms == pytest.approx(gain, rel=1e-5)
    assert monitor.close_epoch()["m"].output_input_rms == pytest.approx(gain, rel=1e-5)
    assert monitor.health()["m"].output_input_rms is None  # a new epoch has not been measured yet


@pytest.mark.parametrize("beside", [False, True])
def test_activations_on_several_devices(beside):
    """As where a model is split over several GPUs, and what is beside the signal was not moved along."""
    with FakeTensorMode():  # of devices that need not be there
        cells = torch.zeros(2, device="cuda:0")
        given = [torch.ones(4, device=device, requires_grad=True) for device in ("cuda:1", "cuda:2")]
        other = torch.ones(3, dtype=torch.float64, device="cpu", requires_grad=not beside)
        assert add_mean_squares(cells, (*given, other), given[1]) is False


@pytest.mark.parametrize("mask", [float("-inf"), torch.finfo(torch.float32).min, -1e4])
def test_a_mask_is_no_part_of_what_runs_through(policy, mask):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = scaled_orthogonal(3.0)

        def forward(self, x, mask):
            return self.layer(x)

    layer = Masked()
    monitor = GradientMonitor({"m": layer}, policy=policy)
    layer(torch.randn(16, 8, requires_grad=True), mask=torch.full((16, 16), mask).triu(1)).sum().backward()
    assert monitor.close_epoch()["m"].output_input_rms == pytest.approx(3.0, rel=1e-5)
    assert policy.readings[-1].keeps_size


def test_the_share_of_live_tensors_is_that_of_gradients_worth_the_name(policy):
    model = nn.ModuleDict({"live": nn.Linear(4, 4), "partly": nn.Linear(4, 4), "zero": nn.Linear(4, 4)})
    monitor = GradientMonitor(dict(model.items()), policy=policy)
    x = torch.randn(8, 4, requires_grad=True)
    weightless = model["partly"](x * 1e-6)  # its weight's gradient is a millionth of its bias's
    (model["live"](x).sum() + weightless.sum() + (model["zero"](x) * 0).sum()).backward()
    monitor.step()
    shares = {name: health.parameter_liveness for name, health in monitor.close_epoch().items()}
    assert shares == {"live": 1.0, "partly": 0.5, "zero": 0.0}


def test_modules_without_trained_parameters_or_gradients_have_no_liveness(policy):
    frozen, bare, unused = scaled_orthogonal(1.0).requires_grad_(False), nn.Tanh(), nn.Linear(8, 8)
    monitor = GradientMonitor({"frozen": frozen, "bare": bare}, policy=policy)
    bare(frozen(torch.randn(2, 8, requires_grad=True))).sum().backward()
    monitor.step()
    assert [health.parameter_liveness for health in monitor.close_epoch().values()] == [None, None]
    assert unused.weight.grad is None


def test_gradients_that_a_loop_zeroes_before_its_next_forward_tell_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    with sapflow.watch(model, "*") as watcher:
        for _ in range(3):
            for _ in range(20):
                model(torch.randn(8, 4)).square().mean().backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * parameter.grad
                        parameter.grad.zero_()
            seeds = watcher.epoch()
    assert {name: (seed.parameter_liveness, seed.fault) for name, seed in seeds.items()} == dict.fromkeys(
        "012", (None, None)
    )


def test_sparse_gradients_close_their_pass_and_are_alive_where_they_are_looked_up(policy):
    embedding, head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)
    monitor = GradientMonitor({"embedding": embedding, "head": head}, policy=policy)
    for _ in range(3):
        head(embedding(torch.tensor([1, 1, 2]))).sum().backward()
        monitor.step()
    health = monitor.close_epoch()
    assert (health["head"].passes, policy.readings[0].parameter_liveness) == (3, 1.0)
    assert embedding.weight.grad.is_sparse


def test_norms_of_half_precision_parameters_do_not_overflow(policy):
    large, small = nn.Linear(64, 64, bias=False).half(), nn.Linear(4, 4).half()
    monitor = GradientMonitor({"large": large, "small": small}, policy=policy)
    for module in (large, small):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 6e4 if module is large else 1.0)  # 64 times 6e4 is infinite
    large(torch.ones(1, 64, dtype=torch.half, requires_grad=True)).sum().backward()
    monitor.step()
    assert [flow.parameter_liveness for flow in monitor.close_epoch().values()] == [1.0, 0.0]


def test_what_cannot_be_noted_is_said_once_and_the_pass_closes(policy, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no norms on this device")

    monkeypatch.setattr("torch._foreach_norm", broken)
    layer = scaled_orthogonal(1.0)
    monitor = GradientMonitor({"m": layer}, policy=policy)
    for _ in range(4):
        layer(torch.randn(2, 8, requires_grad=True)).sum().backward()
        monitor.step()
    health = monitor.close_epoch()["m"]
    assert (health.passes, health.parameter_liveness) == (4, None)
    assert "no norms on this device" in health.measurement_reason
    assert len(caplog.records) == 1


def test_a_module_that_nothing_was_routed_to_is_not_dead(policy):
    experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    monitor = GradientMonitor({"0": experts[0], "1": experts[1]}, policy=policy)
    for routed in (1, 0):  # both are passes to note vital signs on
        experts.zero_grad()
        experts[routed](torch.randn(2, 4, requires_grad=True)).sum().backward()
        monitor.step()
    assert [flow.parameter_liveness for flow in monitor.close_epoch().values()] == [1.0, 1.0]


def test_what_was_frozen_or_replaced_meanwhile_is_not_dead(policy):
    frozen, replaced, half = (nn.Linear(4, 4) for _ in range(3))
    monitor = GradientMonitor({"frozen": frozen, "replaced": replaced, "half": half}, policy=policy)
    frozen.requires_grad_(False)
    half.weight.requires_grad_(False)
    replaced.load_state_dict({name: torch.ones_like(p) for name, p in replaced.named_parameters()}, assign=True)
    for _ in range(2):
        half(replaced(frozen(torch.randn(2, 4, requires_grad=True)))).sum().backward()
        monitor.step()
    health = monitor.close_epoch()
    assert {name: flow.parameter_liveness for name, flow in health.items()} == {
        "frozen": None,
        "replaced": 1.0,
        "half": 1.0,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_gradient_that_is_not_finite_makes_no_other_module_dead(policy, value):
    bad, live = nn.Linear(4, 4), nn.Linear(4, 4)
    monitor = GradientMonitor({"bad": bad, "live": live}, policy=policy)
    x = torch.randn(2, 4, requires_grad=True)
    (bad(x).sum() * value + live(x).sum()).backward()
    monitor.step()
    assert [flow.parameter_liveness for flow in monitor.close_epoch().values()] == [1.0, 1.0]


def test_what_has_moved_since_it_was_attached(policy):
    layer = scaled_orthogonal(1.0)
    with torch.no_grad():
        layer.weight.mul_(2.0)  # before: does not count
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    monitor = GradientMonitor({"m": layer}, policy=policy)
    for step in (False, True):
        layer(torch.randn(2, 8, requires_grad=True)).sum().backward()
        if step:
            optimizer.step()
        monitor.close_epoch()
    assert [reading.parameters_moved for reading in policy.readings] == [False, True]


def test_what_an_optimizer_moves_without_counting_it_has_moved(policy):
    layer, still = scaled_orthogonal(1.0), scaled_orthogonal(1.0)
    monitor = GradientMonitor({"m": layer, "still": still}, policy=policy)
    for _ in range(3):
        still(layer(torch.randn(2, 8, requires_grad=True))).square().sum().backward()
        layer.weight.data.mul_(0.9)  # a tensor of its own, whose version nobody sees
        monitor.step()
    monitor.close_epoch()
    assert [reading.parameters_moved for reading in policy.readings] == [True, False]


def test_few_passes_of_many_are_measured_and_more_of_them_while_a_module_is_young(policy):
    layer, tripled = scaled_orthogonal(1.0), scaled_orthogonal(3.0)
    once, thrice = layer.weight.detach().clone(), tripled.weight.detach()
    noted = {0, 1, 2, 4, 8, 16, 32, 64, 128}
    monitor = GradientMonitor({"m": layer}, policy=policy)
    for index in range(129):
        layer.weight.data.copy_(once if index in noted else thrice)
        layer(torch.randn(2, 8, requires_grad=True)).sum().backward()
        monitor.step()
    assert monitor.close_epoch()["m"].output_input_rms == pytest.approx(1.0, rel=1e-5)


def test_a_module_that_comes_later_is_young_again_and_a_window_begins_with_a_look(policy):
    def run(passes):
        for _ in range(passes):
            for layer in layers.values():
                layer(torch.randn(2, 8, requires_grad=True)).sum().backward()
            monitor.step()

    layers = {"old": scaled_orthogonal(2.0)}
    monitor = GradientMonitor(layers, policy=policy, windows=True)
    run(10)
    monitor.close_window()
    run(1)
    assert monitor.close_window()["old"].output_input_rms == pytest.approx(2.0, rel=1e-5)
    run(9)
    layers["new"] = scaled_orthogonal(3.0)
    monitor.attach("new", layers["new"])
    run(2)
    assert monitor.close_window()["new"].output_input_rms == pytest.approx(3.0, rel=1e-5)


def test_a_policy_that_needs_nothing_has_nothing_measured_and_nothing_is_left():
    layer = scaled_orthogonal(1.0)
    with GradientMonitor({"m": layer}) as monitor:
        layer(torch.randn(2, 8, requires_grad=True)).sum().backward()
        health = monitor.close_epoch()["m"]
        assert (health.output_input_rms, health.parameter_liveness) == (None, None)
        assert len(layer._forward_hooks) == 1
    assert not layer._forward_hooks


def test_nothing_is_left_of_vital_signs_and_copies_are_inert(policy):
    layer = scaled_orthogonal(1.0)
    with GradientMonitor({"m": layer}, policy=policy) as monitor:
        copy.deepcopy(layer)(torch.randn(2, 8, requires_grad=True)).sum().backward()
        assert monitor.health()["m"].output_input_rms is None
    assert not layer._forward_hooks
    assert not layer._forward_hooks_with_kwargs
