"""The shadow forward: a host is the same to the bit with it and without, whatever the seed does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.randomness import RandomState
from sapflow.growth.shadow import exchange_at, shadow_backward
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.events import GradientHealth
from sapflow.telemetry.vocabulary import Measurement, SeedStage

SOUND = GradientHealth(measurement=Measurement.MEASURED, grad_ratio=1.0)


class Host(nn.Module):
    """BatchNorm, dropout and an in-place activation around two slots."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.early = SeedSlot("early", (8,))
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.late = SeedSlot("late", (8,))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.late(self.middle(self.early(self.first(x)))))


def normal_seed():
    # BatchNorm and dropout of its own: its buffers and its random numbers are its own affair.
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))


class Poison(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, h):
        return h * self.weight * torch.nan


class Overwriter(nn.Module):
    """Writes on what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, h):
        return h.mul_(1e6).sigmoid_() * self.weight


def grown(slot: SeedSlot, seed: nn.Module, stage: SeedStage) -> None:
    slot.plant(seed, seed_id=f"{slot.state.slot_id}-1", blueprint_id="test")
    for target in (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING):
        if slot.state.stage is not stage:
            slot.state.observe(SOUND)
            slot.state.observe(SOUND)
            slot.advance(target)
    if stage is SeedStage.BLENDING:
        slot.blend(0.5)


def train(seeds=(), *, monitored=False, blending=None, steps=6):
    """Everything that belongs to the host, step by step: losses, outputs, gradients, buffers, random state."""
    torch.manual_seed(3)
    host = Host()
    slots = [host.early, host.late]
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1, momentum=0.9)
    monitor = GradientMonitor() if monitored else None
    with RandomState.seeded(11).replayed():
        if blending is not None:
            grown(host.late, blending(), SeedStage.BLENDING)
        for slot, seed in zip(slots, seeds, strict=False):
            grown(slot, seed(), SeedStage.TRAINING)
    if monitor is not None:
        for slot in slots:
            if slot.seed is not None:
                monitor.attach(slot.state.slot_id, slot.seed)
    seen = []
    for _ in range(steps):
        x, target = torch.randn(12, 6), torch.randint(3, (12,))
        before = RandomState.capture()
        optimizer.zero_grad()
        output = host(x)
        loss = F.cross_entropy(output, target)
        loss.backward()
        nn.utils.clip_grad_norm_(host.parameters(), 0.5)
        for slot in slots:
            if slot.state.stage is SeedStage.TRAINING:
                shadow_backward(
                    host, slot, lambda net, x=x, target=target: F.cross_entropy(net(x), target),
                    random_state=before, slots=slots, monitor=monitor,
                )  # fmt: skip
                torch.optim.SGD(slot.seed.parameters(), lr=0.1).step()
        optimizer.step()
        if monitor is not None:
            monitor.step()
        seen += [loss.detach(), output.detach(), torch.get_rng_state()]
        seen += [p.grad.clone() for p in host.parameters()] + [b.clone() for b in host.buffers()]
    return seen, monitor.close_epoch() if monitor is not None else {}, host


def assert_same_bits(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("monitored", [False, True])
@pytest.mark.parametrize("seeds", [(normal_seed,), (normal_seed, normal_seed), (Poison, Poison), (Overwriter, Poison)])
def test_an_incubating_seed_changes_no_bit_of_the_host(seeds, monitored):
    alone, _, _ = train()
    accompanied, _, host = train(seeds, monitored=monitored)
    assert_same_bits(alone, accompanied)
    assert host.early.state.stage is SeedStage.TRAINING


@pytest.mark.parametrize("blending", [normal_seed, Poison])
def test_monitors_change_no_bit_of_a_host_that_sees_its_seeds(blending):
    plain, _, _ = train((normal_seed,), blending=blending)
    watched, health, _ = train((normal_seed,), blending=blending, monitored=True)
    assert_same_bits(plain, watched)
    assert health["early"].measurement is Measurement.MEASURED


def test_an_incubating_seed_changes_no_bit_of_a_blending_one_nor_of_its_measurement():
    alone, alone_health, alone_host = train(blending=normal_seed, monitored=True)
    accompanied, health, host = train((normal_seed,), blending=normal_seed, monitored=True)
    assert_same_bits(alone, accompanied)
    assert alone_health["late"] == health["late"]
    assert_same_bits(list(alone_host.late.seed.buffers()), list(host.late.seed.buffers()))


def test_a_nan_seed_that_blends_leaves_the_host_finite():
    seen, _, host = train(blending=Poison)
    assert all(tensor.isfinite().all() for tensor in seen)
    host.late.close_epoch()
    assert host.late.state.masked_values > 0


def test_what_is_masked_of_a_blending_seed_is_counted_once_however_many_shadows_run():
    counts = []
    for seeds in ((), (normal_seed,)):
        _, _, host = train(seeds, blending=Poison)
        host.late.close_epoch()
        counts.append(host.late.state.masked_values)
    assert counts[0] == counts[1]


def test_seeds_that_incubate_side_by_side_do_not_see_each_other():
    _, _, one = train((normal_seed,))
    _, _, two = train((normal_seed, Poison))
    for left, right in zip(one.early.seed.parameters(), two.early.seed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_isolated_input_is_measured_and_the_seed_learns():
    host = Host().eval()  # no random numbers, so that the reference below sees the same network
    with RandomState.seeded(1).replayed():
        grown(host.early, nn.Linear(8, 8), SeedStage.TRAINING)
    seed = host.early.seed
    monitor = GradientMonitor({"early": seed})
    x, target = torch.randn(12, 6), torch.randint(3, (12,))
    loss_of = lambda y: F.cross_entropy(y, target)  # noqa: E731
    loss = shadow_backward(
        host, host.early, lambda net: loss_of(net(x)),
        random_state=RandomState.capture(), slots=[host.early, host.late], monitor=monitor,
    )  # fmt: skip
    health = monitor.close_epoch()["early"]

    h = host.first(x).detach()
    leaf = h.clone().requires_grad_()
    branch = seed(leaf)
    reference = loss_of(host.head(host.middle(h + branch)))
    entering, leaving, weight = torch.autograd.grad(reference, [branch, leaf, seed.weight])
    assert health.measurement is Measurement.MEASURED
    assert health.entering_norm == pytest.approx(entering.norm().item(), rel=1e-6)
    assert health.leaving_norm == pytest.approx(leaving.norm().item(), rel=1e-6)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(seed.weight.grad, weight)
    assert all(parameter.grad is None for parameter in host.parameters())


def test_a_slot_that_runs_twice_in_a_forward_is_measured_in_both_runs():
    host = Host().eval()
    with RandomState.seeded(1).replayed():
        grown(host.early, nn.Linear(8, 8), SeedStage.TRAINING)
    seed = host.early.seed
    monitor = GradientMonitor({"early": seed})
    views = torch.randn(12, 6), 3 * torch.randn(12, 6)
    loss_of = lambda one, other: (one - other).square().mean()  # noqa: E731
    shadow_backward(
        host, host.early, lambda net: loss_of(*map(net, views)),
        random_state=RandomState.capture(), slots=[host.early, host.late], monitor=monitor,
    )  # fmt: skip
    health = monitor.close_epoch()["early"]

    hs = [host.first(x).detach() for x in views]
    leaves = [h.clone().requires_grad_() for h in hs]
    branches = [seed(leaf) for leaf in leaves]
    reference = loss_of(*(host.head(host.middle(h + branch)) for h, branch in zip(hs, branches, strict=True)))
    *gradients, weight = torch.autograd.grad(reference, [*branches, *leaves, seed.weight])
    norms = [gradient.norm() for gradient in gradients]
    assert health.entering_norm == pytest.approx(torch.hypot(*norms[:2]).item(), rel=1e-6)
    assert health.leaving_norm == pytest.approx(torch.hypot(*norms[2:]).item(), rel=1e-6)
    torch.testing.assert_close(seed.weight.grad, weight)


def test_a_micro_batch_that_does_not_reach_a_parameter_leaves_it_the_gradient_of_those_before():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, h):
            return self.low(h) if h.shape[0] < 5 else self.high(h)

    host = Host().eval()
    grown(host.early, Routed(), SeedStage.TRAINING)
    kept = []
    for batch in (4, 6):
        x = torch.randn(batch, 6)
        shadow_backward(
            host, host.early, lambda net, x=x: net(x).square().mean(),
            random_state=RandomState.capture(), slots=[host.early, host.late],
        )  # fmt: skip
        kept.append([parameter.grad for parameter in host.early.seed.low.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


def test_what_a_slot_and_the_rest_of_the_host_exchange():
    torch.manual_seed(0)
    host = Host().eval()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    x, target = torch.randn(5, 6), torch.randint(3, (5,))
    activations, gradient = exchange_at(
        host, host.late, lambda net: F.cross_entropy(net(x), target), slots=[host.early, host.late]
    )
    h = host.middle(host.first(x)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(host.head(h), target), h)
    torch.testing.assert_close(activations, h.detach())
    torch.testing.assert_close(gradient, expected)
    assert all(torch.equal(before[name], value) for name, value in host.state_dict().items())
    assert not host.late._forward_hooks
