"""What being watched does to training: nothing to its numbers, nothing that stays, nothing that grows."""

import copy
import gc
import pickle
import tracemalloc
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import sapflow
from flow import (
    Convolutional,
    Flow,
    Net,
    Transformer,
    assert_agrees,
    flow_of,
    mlp,
    norm,
    total,
)
from sapflow import GradientMonitor, HealthPolicy
from sapflow.telemetry.vocabulary import Measurement


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(7)


def leaf(*shape, **kwargs):
    return torch.randn(*shape, **kwargs).requires_grad_()


MODELS = {"mlp": mlp, "cnn": Convolutional, "transformer": Transformer, "residual blocks": Net}
INSIDE = {
    "mlp": ["0", "1", "2"],
    "cnn": ["stem", "body", "body.0", "body.1", "body.2", "head"],
    "transformer": ["blocks.0", "blocks.1.attention.branch", "blocks.1.mlp.branch.0", "blocks.1.mlp", "head"],
    "residual blocks": ["blocks.0", "blocks.1.branch", "head"],
}


def five_steps(model, names, data):
    """Every loss and every gradient of five steps of training, flat; and the health of the watched modules."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = GradientMonitor({name: model.get_submodule(name) for name in names}, optimizer=optimizer)
    torch.manual_seed(3)
    seen = []
    for x in data:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        seen += [loss.detach().reshape(1), *(p.grad.flatten().clone() for p in model.parameters())]
        optimizer.step()
    health = monitor.close_epoch()
    monitor.close()
    return torch.cat(seen), health


class TestWhatTrainingSees:
    @pytest.mark.parametrize("kind", MODELS)
    def test_losses_and_gradients_are_the_same_to_the_bit(self, kind):
        model, data = MODELS[kind](), torch.randn(5, 8, 16)
        twin = copy.deepcopy(model)
        plain, _ = five_steps(twin, [], data)
        watched, health = five_steps(model, INSIDE[kind], data)
        assert torch.equal(plain, watched)
        assert any(seed.passes == 5 for seed in health.values())

    @pytest.mark.parametrize(
        "given", [lambda x: x, lambda x: (x, None), lambda x: [x]], ids=["tensor", "tuple", "list"]
    )
    def test_the_module_finds_the_attributes_of_its_input_and_the_caller_those_that_the_module_sets(self, given):
        class Scaled(nn.Module):
            def forward(self, given):
                h = given if isinstance(given, torch.Tensor) else given[0]
                h.seen = True
                return h * h.scale

        module = Scaled()
        x = torch.ones(2, requires_grad=True) * 2
        x.scale = 3.0
        with GradientMonitor({"m": module}) as monitor:
            module(given(x)).sum().backward()
            assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(3.0)
        assert x.seen

    def test_where_the_module_and_others_use_the_input_several_times_the_same_to_rounding(self):
        class Gate(nn.Module):
            """Uses its input three times."""

            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

            def forward(self, h):
                return self.a(h) * torch.sigmoid(self.b(h)) + h.tanh()

        class Host(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.gate = nn.Linear(16, 16), Gate()

            def forward(self, x):
                h = self.first(x)
                return h + self.gate(h) + h.sin()

        model, data = Host(), torch.randn(5, 8, 16)
        twin = copy.deepcopy(model)
        plain, _ = five_steps(twin, [], data)
        watched, health = five_steps(model, ["gate"], data)
        assert plain[0] == watched[0]  # no forward differs
        torch.testing.assert_close(plain, watched, rtol=1e-4, atol=1e-6)
        assert health["gate"].passes == 5

    @pytest.mark.parametrize("kind", MODELS)
    def test_state_dict_keys_are_those_of_the_model_alone(self, kind):
        model = MODELS[kind]()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        GradientMonitor(dict(model.named_modules()))
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], before[key]) for key in before)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_are_inert_and_compute_the_same(self, copied):
        model, x = Net(), leaf(4, 16)
        monitor = GradientMonitor(dict(model.named_modules()))
        twin = copied(model)
        loss = twin(x).square().sum()
        loss.backward()
        assert all(health.measurement is Measurement.UNMEASURED for health in monitor.close_epoch().values())
        assert torch.equal(loss, model(x).square().sum())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_of_a_model_that_watch_closes_passes_of_are_inert(self, copied):
        model, x = Net(), leaf(4, 16)
        with sapflow.watch(model, "**", policy=HealthPolicy()) as watcher:
            twin = copied(model)
            parts = [model(x).square().sum() for _ in range(2)]
            for part in parts:
                part.backward()
                twin(x)  # as the average of a model's weights runs to be validated
            assert watcher.epoch()["blocks.1"].passes == 1

    @pytest.mark.parametrize("kind", MODELS)
    def test_after_removal_everything_is_as_before_to_the_bit(self, kind):
        model, data = MODELS[kind](), torch.randn(5, 8, 16)
        pristine = pickle.dumps(model)
        attributes = [set(vars(module)) for module in model.modules()]
        state = copy.deepcopy(model.state_dict())
        with GradientMonitor(dict(model.named_modules())), torch.random.fork_rng(devices=[]):
            model(data[0]).square().sum().backward()
        model.zero_grad()
        model.load_state_dict(state)
        assert [set(vars(module)) for module in model.modules()] == attributes
        assert _no_hooks(model)
        plain, _ = five_steps(pickle.loads(pristine), [], data)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
            assert torch.equal(five_steps(twin, [], data)[0], plain)

    def test_a_graph_that_outlives_the_monitor_adds_nothing_and_still_trains(self):
        model, x = Net(), leaf(4, 16)
        twin = copy.deepcopy(model)
        twin(x).square().sum().backward()
        with GradientMonitor(dict(model.named_modules())):
            loss = model(x).square().sum()
        loss.backward()
        for watched, plain in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(watched.grad, plain.grad)


def _no_hooks(model):
    return not any(value for module in model.modules() for name, value in vars(module).items() if "hooks" in name)


class TestCadence:
    @pytest.mark.parametrize("every", [1, 2, 4])
    def test_every_nth_pass_is_measured_exactly_and_the_others_not_at_all(self, every):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        data = [torch.randn(4, 16) * (index + 1) for index in range(12)]
        flows = [flow_of(net, "blocks.1", lambda net, x=x: net(x).square().sum()) for x in data]
        monitor = GradientMonitor({"m": net.blocks[1]}, optimizer=optimizer, every=every)
        for x in data:
            net(x).square().sum().backward()
            optimizer.step()
        sample = monitor.samples(wait=True)["m"]
        health = monitor.close_epoch()["m"]
        assert health.passes == 12 // every
        assert sample.pass_index == tuple(range(0, 12, every))
        assert_agrees(health, total(flows[::every]))

    def test_a_watcher_measures_every_fourth_pass(self):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x = torch.randn(4, 16)
        flow = flow_of(net, "blocks.1", lambda net: net(x).square().sum())
        with sapflow.watch(net, "blocks.1", every=4) as watcher:
            for _ in range(20):
                net(x).square().sum().backward()
                optimizer.step()
            seed = watcher.epoch()["blocks.1"]
        assert seed.passes == 5
        assert_agrees(seed, total([flow] * 5))

    def test_micro_batches_of_a_measured_pass_are_all_measured(self):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x = torch.randn(8, 16)
        flow = flow_of(net, "blocks.1", lambda net: net(x).square().sum())
        monitor = GradientMonitor({"m": net.blocks[1]}, optimizer=optimizer, every=3)
        for _ in range(6):
            for part in x.split(2):
                net(part).square().sum().backward()
            optimizer.step()
        health = monitor.close_epoch()["m"]
        assert health.passes == 2
        assert_agrees(health, total([flow] * 2))

    @pytest.mark.parametrize("every", [0, -1])
    def test_a_cadence_below_one_is_refused(self, every):
        with pytest.raises(sapflow.errors.InputError, match="every"):
            GradientMonitor({"m": nn.Linear(2, 2)}, every=every)


def test_memory_is_flat_over_ten_thousand_passes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x, inside = torch.randn(2, 4), []
    # What is counted: the objects that the collector knows, the tensors among them, the bytes that Python asked for.
    with sapflow.watch(model, ["1", "2"], epoch_every=100) as watcher:

        def passes(count):
            for _ in range(count):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            gc.collect()
            objects = gc.get_objects()
            inside.append((len(objects), sum(type(item) is torch.Tensor for item in objects)))

        passes(2000)
        tracemalloc.start()
        try:
            passes(200)
            early = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            passes(7600)
            tracemalloc.start()
            passes(200)
            late = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert watcher.epochs == 100
    (objects, tensors), after = inside[1], inside[-1]
    assert after[1] == tensors
    assert after[0] - objects < 200
    assert late - early < 20_000


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and this machine has none")


@contextmanager
def no_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
class TestOnAGpu:
    def test_two_hundred_steps_without_a_synchronisation(self):
        net = Net().cuda()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        x = torch.randn(4, 16, device="cuda")
        modules = {f"blocks.{index}": block for index, block in enumerate(net.blocks)}
        with GradientMonitor(modules, optimizer=optimizer, policy=HealthPolicy()) as monitor:

            def steps(count):
                for _ in range(count):
                    optimizer.zero_grad()
                    net(x).square().sum().backward()
                    optimizer.step()
                    monitor.samples()

            steps(4)  # what is allocated on first use may wait
            with no_synchronisation():
                steps(200)
            assert [health.passes for health in monitor.close_epoch().values()] == [204] * 3

    def test_bfloat16_transformer_block(self):
        model = Transformer(64, dropout=0.0).cuda()
        x = torch.randn(16, 64, device="cuda")
        names = ["blocks.1", "blocks.1.attention.branch", "blocks.1.mlp.branch"]

        def loss_of(model):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                y = model(x)
            return y.float().square().mean()

        expected = {}
        for name in names:
            twin = copy.deepcopy(model)
            seen = {}
            module = twin.get_submodule(name)

            def boundary(module, args, output, seen=seen):
                seen["x"] = args[0].detach().clone().requires_grad_()
                seen["y"] = output

            handle = module.register_forward_hook(boundary)
            loss = loss_of(twin)
            handle.remove()
            (entering,) = torch.autograd.grad(loss, seen["y"])
            with torch.autocast("cuda", dtype=torch.bfloat16):
                again = module(seen["x"])
            (leaving,) = torch.autograd.grad(again, seen["x"], entering)
            expected[name] = Flow(norm([entering]), norm([leaving]))
        with GradientMonitor({name: model.get_submodule(name) for name in names}) as monitor:
            loss_of(model).backward()
            health = monitor.close_epoch()
        for name, flow in expected.items():
            assert_agrees(health[name], flow, rel=1e-3)
