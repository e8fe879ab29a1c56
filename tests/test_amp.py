"""Autocast and loss scaling: norms without the scale, overflow as the business of every day."""

import math

import pytest
import torch
from torch import nn

import sapflow
from flow import Net, assert_agrees, flow_of, total
from sapflow import GradientMonitor, HealthPolicy
from sapflow.telemetry.vocabulary import Measurement

BRANCH = "blocks.1.branch"


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(7)


def scaler_of(scale, **kwargs):
    return torch.amp.GradScaler("cpu", init_scale=scale, **kwargs)


def loss_under(dtype, x):
    def loss_of(net):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            y = net(x)
        return y.float().square().mean()

    return loss_of


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class TestAutocast:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", ["blocks.0", BRANCH, "blocks.2.norm", "head"])
    def test_without_a_scaler_norms_are_exact(self, name, dtype):
        net, loss_of = Net(), loss_under(dtype, torch.randn(8, 16))
        expected = flow_of(net, name, loss_of)
        monitor = GradientMonitor({"m": net.get_submodule(name)})
        loss_of(net).backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    @pytest.mark.parametrize("scale", [1.0, 1024.0, 4096.0])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_scale_cancels_in_the_ratio(self, dtype, scale):
        net, loss_of = Net(), loss_under(dtype, torch.randn(8, 16))
        expected = flow_of(net, BRANCH, lambda net: loss_of(net) * scale)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)})
        (loss_of(net) * scale).backward()
        health = monitor.close_epoch()["m"]
        assert_agrees(health, expected)
        # Powers of two change no digit but of what float16 can hardly hold.
        unscaled = flow_of(net, BRANCH, loss_of)
        assert health.grad_ratio == pytest.approx(unscaled.ratio, rel=2e-3 if dtype is torch.float16 else 1e-5)


def train(net, losses, scaler, optimizer):
    """One optimizer step a list of micro-batch losses; the scales at which they were backpropagated."""
    scales = []
    for micro_batches in losses:
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        for loss_of in micro_batches:
            scaler.scale(loss_of(net)).backward()
        scaler.step(optimizer)
        scaler.update()
    return scales


class TestGradScaler:
    @pytest.mark.parametrize("scale", [1.0, 1024.0, 4096.0])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_norms_are_divided_by_the_scale(self, dtype, scale):
        net, loss_of = Net(), loss_under(dtype, torch.randn(8, 16))
        expected = flow_of(net, BRANCH, lambda net: loss_of(net) * scale) / scale
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(scale)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        train(net, [[loss_of]] * 3, scaler, optimizer)
        health = monitor.close_epoch()["m"]
        assert health.passes == 3
        assert_agrees(health, total([expected] * 3))

    def test_norms_are_divided_by_the_scale_of_their_own_pass(self):
        net = Net()
        losses = [loss_under(torch.float32, torch.randn(8, 16) * factor) for factor in (1.0, 3.0, 0.2, 2.0, 0.5)]
        flows = [flow_of(net, BRANCH, loss_of) for loss_of in losses]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        scaler = scaler_of(8.0, growth_factor=4.0, growth_interval=1)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        scales = train(net, [[loss_of] for loss_of in losses], scaler, optimizer)
        assert scales == [8.0 * 4**index for index in range(5)]
        samples = monitor.samples(wait=True)["m"]
        assert samples.entering == pytest.approx([flow.entering for flow in flows], rel=1e-5)
        assert samples.leaving == pytest.approx([flow.leaving for flow in flows], rel=1e-5)
        assert_agrees(monitor.close_epoch()["m"], total(flows))

    def test_micro_batches_share_the_scale_of_their_pass(self):
        net = Net()
        parts = [loss_under(torch.float32, part) for part in torch.randn(8, 16).split(2)]
        flow = total(flow_of(net, BRANCH, loss_of) for loss_of in parts)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        scaler = scaler_of(16.0, growth_factor=2.0, growth_interval=1)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        train(net, [parts] * 3, scaler, optimizer)
        health = monitor.close_epoch()["m"]
        assert health.passes == 3
        assert_agrees(health, total([flow] * 3))

    def test_unscaling_and_clipping_in_between_change_nothing(self):
        net, loss_of = Net(), loss_under(torch.float32, torch.randn(8, 16))
        flow = flow_of(net, BRANCH, loss_of)
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(1024.0)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            scaler.step(optimizer)
            scaler.update()
        assert_agrees(monitor.close_epoch()["m"], total([flow] * 2))

    def test_a_disabled_scaler_scales_nothing(self):
        net, loss_of = Net(), loss_under(torch.float32, torch.randn(8, 16))
        flow = flow_of(net, BRANCH, loss_of)
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(1024.0, enabled=False)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        train(net, [[loss_of]] * 2, scaler, optimizer)
        assert_agrees(monitor.close_epoch()["m"], total([flow] * 2))

    @pytest.mark.parametrize("optimizer_given", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_watch_divides_by_the_scale_too(self, dtype, optimizer_given):
        net, loss_of = Net(), loss_under(dtype, torch.randn(8, 16))
        expected = flow_of(net, BRANCH, lambda net: loss_of(net) * 256.0) / 256.0
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(256.0)
        with sapflow.watch(
            net, BRANCH, optimizer=optimizer if optimizer_given else None, grad_scaler=scaler
        ) as watcher:
            train(net, [[loss_of]] * 4, scaler, optimizer)
            seed = watcher.epoch()[BRANCH]
        assert seed.passes == 4
        assert_agrees(seed, total([expected] * 4))


def test_several_close_by_one_scaler_and_the_end_of_one_is_not_that_of_another():
    net, loss_of = Net(), loss_under(torch.float32, torch.randn(8, 16))
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(8.0)
    first, second = (
        GradientMonitor({name: net.get_submodule(name)}, grad_scaler=scaler) for name in (BRANCH, "blocks.2")
    )
    train(net, [[loss_of]] * 2, scaler, optimizer)
    first.close()
    train(net, [[loss_of]] * 3, scaler, optimizer)
    assert second.close_epoch()["blocks.2"].passes == 5
    second.close()
    assert "update" not in vars(scaler)


class TestOverflow:
    """A loss scale too large for float16: the scaler skips the step and halves the scale, until it fits."""

    def overflowing(self, steps, watched_by):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        scaler = scaler_of(2.0**20, growth_interval=10_000)
        loss_of = loss_under(torch.float16, torch.randn(8, 16) * 4)
        health_of = watched_by(net, optimizer, scaler)
        scales = train(net, [[loss_of]] * steps, scaler, optimizer)
        skipped = [before > after for before, after in zip(scales, [*scales[1:], scaler.get_scale()], strict=True)]
        return net, loss_of, skipped, scales, health_of()

    @staticmethod
    def by_monitor(net, optimizer, scaler):
        monitor = GradientMonitor(
            {BRANCH: net.get_submodule(BRANCH), "head": net.head}, optimizer=optimizer, grad_scaler=scaler
        )
        return monitor.close_epoch

    @staticmethod
    def by_watcher(net, optimizer, scaler):
        return sapflow.watch(net, [BRANCH, "head"], grad_scaler=scaler, policy=HealthPolicy()).epoch

    @staticmethod
    def by_watcher_with_optimizer(net, optimizer, scaler):
        return sapflow.watch(
            net, [BRANCH, "head"], optimizer=optimizer, grad_scaler=scaler, policy=HealthPolicy()
        ).epoch

    @pytest.mark.parametrize("way", ["by_monitor", "by_watcher", "by_watcher_with_optimizer"])
    def test_overflowed_passes_are_counted_apart_and_the_others_exact(self, way):
        net, loss_of, skipped, scales, health = self.overflowing(12, getattr(self, way))
        assert 1 <= sum(skipped) < 12  # the tests' own premise
        head = health["head"]
        assert head.passes + head.non_finite_passes == 12
        kept = [scale for scale, skip in zip(scales, skipped, strict=True) if not skip]
        branch = health[BRANCH]
        # Where a step was taken nothing was infinite; where none was, it may have been elsewhere than in this branch.
        assert branch.passes >= len(kept)
        assert branch.passes + branch.non_finite_passes == 12
        finite = [flow_of(net, BRANCH, lambda net, s=s: loss_of(net) * s) / s for s in scales[-branch.passes :]]
        assert_agrees(branch, total(finite))

    @pytest.mark.parametrize("way", ["by_monitor", "by_watcher", "by_watcher_with_optimizer"])
    def test_overflow_explodes_only_when_three_are_in_a_row(self, way):
        def explodes(factors):
            net = Net()
            fine = loss_under(torch.float32, torch.randn(4, 16))
            optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(4.0)
            health_of = getattr(self, way)(net, optimizer, scaler)
            train(net, [[lambda net, f=f: fine(net) * f] for f in factors], scaler, optimizer)
            health = health_of()["head"]
            bad = sum(not math.isfinite(f) for f in factors)
            assert (health.non_finite_passes, health.passes) == (bad, len(factors) - bad)
            return health.has_exploding

        inf = math.inf
        assert not explodes([1.0, inf, 1.0, 1.0])
        assert not explodes([inf, inf, 1.0, inf, inf, 1.0])
        assert explodes([1.0, inf, inf, inf, 1.0])

    @pytest.mark.parametrize("judge", ["close_epoch", "close_window"])
    def test_three_in_a_row_are_three_wherever_epochs_and_windows_end(self, judge):
        net = Net()
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(4.0)
        fine = loss_under(torch.float32, torch.randn(4, 16))
        monitor = GradientMonitor({"m": net.head}, grad_scaler=scaler, windows=judge == "close_window")
        flags = []
        for factor in (math.inf, math.inf, 1.0, math.inf, math.inf, math.inf, 1.0, math.inf):
            train(net, [[lambda net, f=factor: fine(net) * f]], scaler, optimizer)
            flags.append(getattr(monitor, judge)()["m"].has_exploding)
        assert flags == [False] * 5 + [True] + [False] * 2

    @pytest.mark.parametrize("detached", ["before the epoch ends", "after it"])
    def test_a_module_does_not_go_on_with_the_overflows_of_one_that_is_gone(self, detached):
        net = Net()
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(4.0)
        fine = loss_under(torch.float32, torch.randn(4, 16))
        monitor = GradientMonitor({"old": net.head}, grad_scaler=scaler, windows=True)
        train(net, [[lambda net: fine(net) * math.inf]] * 2, scaler, optimizer)
        if detached == "after it":
            monitor.close_epoch()
        monitor.detach("old")
        monitor.close_epoch()
        monitor.attach("new", net.head)
        train(net, [[lambda net: fine(net) * math.inf]], scaler, optimizer)
        assert not monitor.close_window()["new"].has_exploding
        assert not monitor.close_epoch()["new"].has_exploding

    def test_micro_batches_after_an_overflowed_pass_are_one_pass_still(self):
        """A skipped step is no step: what closes its pass must not take every later micro-batch for one."""
        net = Net()
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(64.0)
        fine = loss_under(torch.float32, torch.randn(4, 16))
        flow = flow_of(net, BRANCH, fine)

        def bad(net):
            return fine(net) * math.inf

        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        train(net, [[fine, fine], [bad, fine], [fine, fine], [fine, fine]], scaler, optimizer)
        health = monitor.close_epoch()["m"]
        assert (health.passes, health.non_finite_passes) == (3, 1)
        assert_agrees(health, total([flow] * 6))
        assert not health.has_exploding

    def test_nothing_but_overflow_is_no_measurement(self):
        net = Net()
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), scaler_of(64.0)
        monitor = GradientMonitor({"m": net.get_submodule(BRANCH)}, optimizer=optimizer, grad_scaler=scaler)
        fine = loss_under(torch.float32, torch.randn(4, 16))
        train(net, [[lambda net: fine(net) * math.inf]] * 2, scaler, optimizer)
        health = monitor.close_epoch()["m"]
        assert (health.measurement, health.grad_ratio) == (Measurement.NON_FINITE, 0.0)
        assert (health.non_finite_passes, health.has_exploding) == (2, False)
