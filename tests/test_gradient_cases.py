"""The cases that gradient probes meet, each against torch.autograd.grad on graphs that Sapflow never saw."""

import copy
import dataclasses
import math
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sapflow
from flow import (
    Flow,
    Net,
    Residual,
    assert_agrees,
    flow_of,
    mlp,
    norm,
    scaled_orthogonal,
    total,
)
from sapflow import GradientMonitor
from sapflow.gradients import adding as probing
from sapflow.gradients.cells import Page
from sapflow.telemetry.vocabulary import Measurement


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(7)


def leaf(*shape, **kwargs):
    return torch.randn(*shape, **kwargs).requires_grad_()


def check(model, names, loss_of):
    """Every named module of the model is measured right in one backward pass of `loss_of(model)`."""
    expected = {name: flow_of(model, name, loss_of) for name in names}
    with GradientMonitor({name: model.get_submodule(name) for name in names}) as monitor:
        loss_of(model).backward()
        health = monitor.close_epoch()
    for name, flow in expected.items():
        assert_agrees(health[name], flow)


class TestWhereTheInputComesFrom:
    def test_input_that_others_use_too(self):
        x = leaf(4, 16)
        check(Net(), ["blocks.0", "blocks.1.branch", "blocks.2.norm", "head"], lambda net: net(x).square().sum())

    def test_isolated_module_that_is_fed_a_detached_leaf(self):
        host, seed = mlp(), mlp()
        h = host(torch.randn(4, 16))
        x = h.detach().requires_grad_()
        expected = flow_of(seed, "", lambda seed: seed(x).square().sum())
        monitor = GradientMonitor({"seed": seed})
        seed(h.detach().requires_grad_()).square().sum().backward()
        assert_agrees(monitor.close_epoch()["seed"], expected)
        assert all(parameter.grad is None for parameter in host.parameters())

    def test_first_layer_is_said_to_be_detached_and_never_healthy(self):
        net = Net()
        monitor = GradientMonitor({"embed": net.embed})
        net(torch.randn(4, 16)).sum().backward()
        health = monitor.close_epoch()["embed"]
        assert health.measurement is Measurement.INPUT_DETACHED
        assert (health.grad_ratio, health.has_vanishing, health.has_exploding) == (0.0, False, False)

    def test_frozen_module_whose_input_needs_a_gradient(self):
        net = Net()
        net.blocks[1].requires_grad_(False)
        check(net, ["blocks.1", "blocks.1.branch"], lambda net: net(torch.ones(4, 16)).square().sum())

    def test_first_layers_frozen(self):
        net = Net()
        net.embed.requires_grad_(False)
        net.blocks[0].requires_grad_(False)
        x = torch.randn(4, 16)
        expected = flow_of(net, "blocks.2", lambda net: net(x).square().sum())
        monitor = GradientMonitor({str(index): block for index, block in enumerate(net.blocks)})
        net(x).square().sum().backward()
        health = monitor.close_epoch()
        assert health["0"].measurement is Measurement.NO_GRADIENT
        assert health["1"].measurement is Measurement.INPUT_DETACHED
        assert_agrees(health["2"], expected)

    def test_autograd_grad_for_parameters_alone_says_that_leaving_is_unknown(self):
        seed = mlp()
        monitor = GradientMonitor({"seed": seed})
        torch.autograd.grad(seed(leaf(4, 16)).sum(), list(seed.parameters()))
        health = monitor.close_epoch()["seed"]
        # Gradient flows on to the tanh and stops at the first layer: what leaves the seed is never computed.
        assert health.measurement is Measurement.INPUT_DETACHED
        assert (health.grad_ratio, health.has_vanishing) == (0.0, False)

    def test_autograd_grad_for_parameters_and_input(self):
        seed, x = mlp(), leaf(4, 16)
        expected = flow_of(seed, "", lambda seed: seed(x).square().sum())
        monitor = GradientMonitor({"seed": seed})
        torch.autograd.grad(seed(x).square().sum(), [x, *seed.parameters()])
        assert_agrees(monitor.close_epoch()["seed"], expected)


class TestInPlaceOperations:
    """The references are the same modules with the operation out of place."""

    @pytest.mark.parametrize("operation", ["relu_", "neg_", "zero_"])
    def test_on_the_output(self, operation):
        module = mlp()
        x = torch.randn(4, 16)
        out_of_place = {"relu_": F.relu, "neg_": torch.neg, "zero_": lambda y: y * 0}[operation]
        expected = flow_of(module, "", lambda module: (out_of_place(module(x.requires_grad_())) + 1).square().sum())
        monitor = GradientMonitor({"m": module})
        y = module(x.clone().requires_grad_())
        (getattr(y, operation)() + 1).square().sum().backward()
        health = monitor.close_epoch()["m"]
        if operation == "zero_":
            assert health.measurement is Measurement.NO_GRADIENT
        else:
            assert_agrees(health, expected)

    def test_on_a_part_of_the_output(self):
        module = mlp()
        x = leaf(4, 16)
        mask = torch.ones(4, 16)
        mask[:, :5] = 3.0
        expected = flow_of(module, "", lambda module: (module(x) * mask).square().sum())
        monitor = GradientMonitor({"m": module})
        y = module(x)
        y[:, :5] *= 3.0
        y.square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    @pytest.mark.parametrize("calls", [1, 3])
    def test_on_the_input(self, calls):
        module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 16))
        reference = nn.Sequential(nn.ReLU(), module[1])
        monitor = GradientMonitor({"m": module})
        flows = []
        for _ in range(calls):
            x = leaf(4, 16)
            flows.append(flow_of(reference, "", lambda module, x=x: module(x * 1.0).square().sum()))
            module(x * 1.0).square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], total(flows))

    def test_on_the_input_inside_of_a_network(self):
        class Host(nn.Module):
            def __init__(self, inplace):
                super().__init__()
                self.first = nn.Linear(16, 16)
                self.seed = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(16, 16))

            def forward(self, x):
                return self.seed(self.first(x))

        host, reference = Host(inplace=True), Host(inplace=False)
        reference.load_state_dict(host.state_dict())
        x = torch.randn(4, 16)
        expected = flow_of(reference, "seed", lambda host: host(x).square().sum())
        monitor = GradientMonitor({"seed": host.seed})
        host(x).square().sum().backward()
        assert_agrees(monitor.close_epoch()["seed"], expected)

    @pytest.mark.parametrize("skip", ["after", "before"])
    def test_on_an_input_that_a_skip_connection_uses_too_is_no_measurement(self, skip):
        """What comes back over the skip connection cannot be told from what leaves the module."""
        module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 16))
        nn.init.zeros_(module[1].weight)
        monitor = GradientMonitor({"m": module, "relu": module[0]})
        h = leaf(4, 16) * 1.0
        (module(h) + h if skip == "after" else torch.add(h, module(h))).square().sum().backward()
        for health in monitor.close_epoch().values():
            assert health.measurement is Measurement.PROBE_LOST
            assert "set inplace=False" in health.measurement_reason

    def test_on_the_input_does_not_count_what_others_did_before(self):
        module, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 16)), leaf(4, 16)
        reference = nn.Sequential(nn.ReLU(), module[1])
        expected = flow_of(reference, "", lambda module: (module(x * 1.0) + x).square().sum())
        monitor = GradientMonitor({"m": module})
        h = x * 1.0
        skip = h * 1.0
        (module(h) + skip).square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_on_an_input_that_is_a_view(self):
        module, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 16)), leaf(4, 16)
        reference = nn.Sequential(nn.ReLU(), module[1])
        expected = flow_of(reference, "", lambda module: module(x.view(8, 8).view(4, 16) * 1.0).square().sum())
        monitor = GradientMonitor({"m": module, "relu": module[0]})
        module((x * 1.0).view(8, 8).view(4, 16)).square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
class TestActivationCheckpointing:
    @pytest.mark.parametrize("place", ["around", "inside", "a part", "the whole network"])
    def test_is_measured_once(self, use_reentrant, place):
        class Inside(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, h):
                return checkpoint(self.inner, h, use_reentrant=use_reentrant)

        inner = mlp()
        x = leaf(4, 16)
        expected = flow_of(inner, "", lambda inner: inner(x * 2.0).square().sum())
        watched = Inside(inner) if place == "inside" else inner
        monitor = GradientMonitor({"m": watched})
        if place == "around":
            y = checkpoint(watched, x * 2.0, use_reentrant=use_reentrant)
        elif place == "inside":
            y = watched(x * 2.0)
        elif place == "a part":
            y = checkpoint(lambda h: watched(h * 2.0) * 1.0, x, use_reentrant=use_reentrant)
        else:
            y = checkpoint(lambda h: watched(h * 2.0).square().sum(), x, use_reentrant=use_reentrant)
        (y.square().sum() if y.dim() else y).backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_of_blocks_whose_skip_connection_uses_the_input_too(self, use_reentrant):
        net, x = Net(), leaf(4, 16)
        names = ["blocks.0.branch", "blocks.1", "blocks.2.branch"]
        expected = {name: flow_of(net, name, lambda net: net(x).square().sum()) for name in names}
        with GradientMonitor({name: net.get_submodule(name) for name in names}) as monitor:
            h = net.embed(x)
            for block in net.blocks:
                h = checkpoint(block, h, use_reentrant=use_reentrant)
            net.head(h).square().sum().backward()
            health = monitor.close_epoch()
        for name, flow in expected.items():
            assert_agrees(health[name], flow)


class TestSeveralCallsAndPasses:
    def test_called_twice_side_by_side(self):
        a, b = leaf(3, 16), leaf(5, 16)
        check(mlp(), [""], lambda module: module(a).square().sum() + 3 * module(b).sum())

    @pytest.mark.parametrize("order", ["data first", "data last", "backward between"])
    def test_calls_without_an_input_that_needs_a_gradient_are_left_out(self, order):
        """A gain of 1 stays one, though of what enters by the call on data nothing can leave."""
        module, data, features = scaled_orthogonal(1.0), torch.randn(4, 16), leaf(4, 16)
        monitor = GradientMonitor({"m": module})
        if order == "data first":
            (module(data).square().sum() + module(features).square().sum()).backward()
        elif order == "data last":
            (module(features).square().sum() + module(data).square().sum()).backward()
        else:
            module(features).square().sum().backward()
            module(data).square().sum().backward()
        assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(1.0, rel=1e-5)
        module(data).square().sum().backward()  # the next epoch has nothing else
        assert monitor.close_epoch()["m"].measurement is Measurement.INPUT_DETACHED

    def test_same_module_at_two_places(self):
        shared = mlp()
        net = nn.Sequential(nn.Linear(16, 16), shared, nn.Tanh(), shared, nn.Linear(16, 2))
        check(net, ["1"], lambda net: net(torch.ones(4, 16)).square().sum())

    def test_tied_weights(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(11, 16)
                self.body = mlp()
                self.head = nn.Linear(16, 11, bias=False)
                self.head.weight = self.embed.weight

            def forward(self, tokens):
                return self.head(self.body(self.embed(tokens)))

        tokens = torch.arange(8)
        check(Tied(), ["body", "head"], lambda net: F.cross_entropy(net(tokens), tokens))

    def test_cell_called_in_a_chain(self):
        x, h0 = torch.randn(6, 3, 16), torch.zeros(3, 16)

        def loss_of(cell):
            h = h0
            for step in x:
                h = cell(step, h)
            return h.square().sum()

        check(nn.GRUCell(16, 16), [""], loss_of)

    def test_lstm_module_with_a_nested_state(self):
        x = leaf(5, 2, 8)
        state = (leaf(1, 2, 8), leaf(1, 2, 8))

        def loss_of(lstm):
            out, (h, c) = lstm(x, state)
            return out.square().sum() + h.sum() + 2 * c.sum()

        check(nn.LSTM(8, 8), [""], loss_of)

    def test_several_backward_passes_over_one_graph(self):
        module, x = mlp(), leaf(4, 16)
        weights = (1.0, 2.0, 0.5)
        flows = [flow_of(module, "", lambda m, w=w: (w * m(x)).square().sum()) for w in weights]
        monitor = GradientMonitor({"m": module})
        y = module(x)
        for weight in weights:
            (weight * y).square().sum().backward(retain_graph=True)
        health = monitor.close_epoch()["m"]
        assert health.passes == 1
        assert_agrees(health, total(flows))

    def test_create_graph_for_a_gradient_penalty(self):
        def gradients(module):
            """Of the pass for the penalty's own gradient, and of the pass through the penalty."""
            x = data.clone().requires_grad_()
            y = module(x)
            (inner,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            first = torch.autograd.grad(y.square().sum(), [y, x], retain_graph=True)
            return [first, torch.autograd.grad(inner.square().sum(), [y, x])]

        module, data = mlp(), torch.randn(4, 16)
        expected = total(Flow(norm([gy]), norm([gx])) for gy, gx in gradients(copy.deepcopy(module)))
        monitor = GradientMonitor({"m": module})
        x = data.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_accumulated_micro_batches_are_one_pass(self):
        net = Net()
        optimizer = torch.optim.Adam(net.parameters())
        x = torch.randn(16, 16)
        expected = flow_of(net, "blocks.1.branch", lambda net: net(x).square().sum() / 16)
        monitor = GradientMonitor({"m": net.blocks[1].branch}, optimizer=optimizer)
        for part in x.split(4):
            (net(part).square().sum() / 16).backward()
        optimizer.step()
        health = monitor.close_epoch()["m"]
        assert health.passes == 1
        assert_agrees(health, expected)

    @pytest.mark.parametrize("way", ["step", "optimizer step", "next forward"])
    def test_the_end_of_a_pass(self, way):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        monitor = GradientMonitor(
            {"m": net.blocks[1]},
            optimizer=optimizer if way == "optimizer step" else None,
            root=net if way == "next forward" else None,
        )
        flows = []
        for index in range(3):
            x = torch.randn(4, 16) * (index + 1)
            flows.append(flow_of(net, "blocks.1", lambda net, x=x: net(x).square().sum()))
            net(x).square().sum().backward()
            if way == "step":
                monitor.step()
            elif way == "optimizer step":
                optimizer.step()
        monitor.end_open_pass()
        samples = monitor.samples(wait=True)["m"]
        assert samples.pass_index == (0, 1, 2)
        assert samples.entering == pytest.approx([flow.entering for flow in flows], rel=1e-5)
        assert samples.leaving == pytest.approx([flow.leaving for flow in flows], rel=1e-5)
        assert_agrees(monitor.close_epoch()["m"], total(flows))


class Force(nn.Module):
    """Asks for a gradient at its own input, in its forward."""

    def __init__(self):
        super().__init__()
        self.energy = mlp()

    def forward(self, x):
        (force,) = torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)
        return force


class TestOthersOnTheGraph:
    def test_a_hook_that_changes_the_gradient_at_the_output_changes_what_enters(self):
        module, x = mlp(), leaf(4, 16)
        expected = flow_of(module, "", lambda m: 3.0 * m(x).square().sum())
        monitor = GradientMonitor({"m": module})
        y = module(x)
        y.register_hook(lambda gradient: 3.0 * gradient)
        y.square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_a_gradient_that_is_asked_for_at_the_output_passes_no_module(self):
        module, x = mlp(), leaf(4, 16)
        expected = flow_of(module, "", lambda m: m(x).square().sum())
        monitor = GradientMonitor({"m": module})
        y = module(x)
        loss = y.square().sum()
        torch.autograd.grad(loss, y, retain_graph=True)
        loss.backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_a_module_that_asks_for_the_gradient_at_its_own_input(self):
        module, data = Force(), torch.randn(4, 16)
        twin, at = copy.deepcopy(module), data.clone().requires_grad_()
        y = twin(at)
        entering, leaving = torch.autograd.grad(y.square().sum(), [y, at])
        monitor = GradientMonitor({"m": module})
        module(data.clone().requires_grad_()).square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], Flow(norm([entering]), norm([leaving])))


class Meeting(nn.Module):
    """Waits inside of its forward, as told."""

    def __init__(self):
        super().__init__()
        self.layer = scaled_orthogonal(1.5)

    def forward(self, given, wait):
        wait()
        return self.layer(given[0] if isinstance(given, list) else given)


class TestThreads:
    """Two forwards of one module at a time: the one that begins second ends second."""

    @staticmethod
    def meet(forward, first, second):
        """Forward with `first` begins in another thread, then that with `second` here, and they end in this order."""
        begun, second_begun = Event(), Event()
        outputs = []

        def wait():
            begun.set()
            second_begun.wait()

        def other():
            with torch.set_grad_enabled(isinstance(first, list)):  # where autograd is on is each thread's own
                outputs.append(forward(first, wait))

        thread = Thread(target=other)
        thread.start()
        begun.wait()
        outputs.append(forward(second, lambda: (second_begun.set(), thread.join())))
        return outputs

    def test_what_two_learners_are_given(self):
        module, x, y = Meeting(), leaf(4, 16) * 1, leaf(4, 16) * 1
        monitor = GradientMonitor({"m": module})
        outputs = self.meet(module, [x], [y])
        torch.cat(outputs).square().sum().backward()
        assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(1.5, rel=1e-5)

    def test_a_list_has_its_own_tensors_when_its_forward_has_ended(self):
        module, given = Meeting(), [leaf(4, 16) * 1]
        (x,) = given
        seen = []

        def forward(items, wait):
            output = module(items, wait)
            seen.append(given[0] is x)
            return output

        with GradientMonitor({"m": module}):
            self.meet(forward, given, [leaf(4, 16) * 1])
        assert seen == [True, True]

    def test_a_learner_beside_an_actor(self):
        module = Meeting()
        with sapflow.watch(nn.Sequential(module), "0") as watcher:
            output = self.meet(module, torch.randn(4, 16), leaf(4, 16) * 1)[1]
            output.square().sum().backward()
            watcher.step()
            assert watcher.epoch()["0"].grad_ratio == pytest.approx(1.5, rel=1e-5)

    def test_an_actor_that_begins_another_forward_ends_none_of_a_learner(self):
        model = Meeting()
        with sapflow.watch(model, "") as watcher, ThreadPoolExecutor(1) as actor:

            def act():
                with torch.no_grad():
                    model(torch.randn(4, 16), lambda: None)

            model(leaf(4, 16) * 1, lambda: actor.submit(act).result()).square().sum().backward()
            watcher.step()
            assert watcher.epoch()[""].grad_ratio == pytest.approx(1.5, rel=1e-5)

    def test_what_a_thread_that_runs_no_more_left_open_is_forgotten(self):
        """As autograd's own do on a GPU, in which a checkpoint stops its forward early."""
        module = Meeting()
        with GradientMonitor({"m": module}) as monitor, ThreadPoolExecutor(1) as other:
            given = [leaf(4, 16) * 1]
            (x,) = given
            with pytest.raises(ZeroDivisionError):
                other.submit(module, given, lambda: 1 / 0).result()
            other.shutdown()
            monitor.step()
            assert given[0] is x


class TestNestedModules:
    def test_outer_and_inner_are_both_exact(self):
        x = leaf(4, 16)
        names = ["blocks.1", "blocks.1.branch", "blocks.1.branch.0", "blocks.1.branch.2", "blocks.1.norm"]
        check(Net(), names, lambda net: net(x).square().sum())

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        gains=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), rows=st.integers(1, 5), calls=st.integers(1, 3)
    )
    def test_a_chain_has_the_product_of_the_gains_of_its_links(self, gains, rows, calls):
        chain = nn.Sequential(*(scaled_orthogonal(gain, 4) for gain in gains))
        monitor = GradientMonitor({"chain": chain} | dict(chain.named_children()))
        for _ in range(calls):
            (chain(leaf(rows, 4)) * torch.randn(rows, 4)).sum().backward()
            monitor.step()
        health = monitor.close_epoch()
        assert health["chain"].grad_ratio == pytest.approx(math.prod(gains), rel=1e-5)
        assert [health[str(i)].grad_ratio for i in range(len(gains))] == pytest.approx(gains, rel=1e-5)
        assert health["chain"].passes == calls


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    note: str = "kept"


class Wrapped(nn.Module):
    """Puts a layer behind a structure: unpacks the input, packs the output."""

    def __init__(self, unpack, pack):
        super().__init__()
        self.layer = scaled_orthogonal(3.0)
        self.unpack, self.pack = unpack, pack

    def forward(self, *args, **kwargs):
        return self.pack(self.layer(self.unpack(*args, **kwargs)))


STRUCTURES = {
    "tuple": (lambda pair: pair[0], lambda y: (y, None), lambda x: ((x, 2),), lambda out: out[0]),
    "list": (lambda items: items[1], lambda y: [None, y], lambda x: ([None, x],), lambda out: out[1]),
    "dict": (lambda d: d["x"], lambda y: {"y": y, "n": 1}, lambda x: ({"x": x},), lambda out: out["y"]),
    "ordered dict": (
        lambda d: d["x"],
        lambda y: OrderedDict(a=None, y=y),
        lambda x: (OrderedDict(x=x),),
        lambda out: out["y"],
    ),
    "namedtuple": (lambda p: p.right, lambda y: Pair(y, 0), lambda x: (Pair(None, x),), lambda out: out.left),
    "dataclass": (lambda b: b.x, Batch, lambda x: (Batch(x),), lambda out: out.x),
    "nested": (
        lambda d: d["batch"].x[0],
        lambda y: Pair([{"y": (y, "text")}], None),
        lambda x: ({"batch": Batch([x, None])},),
        lambda out: out.left[0]["y"][0],
    ),
    "None beside it": (lambda x, mask: x, lambda y: y, lambda x: (x, None), lambda out: out),
    "same tensor twice": (lambda x, also: (x + also) / 2, lambda y: (y, y), lambda x: (x, x), lambda out: out[1]),
}


class TestStructures:
    @pytest.mark.parametrize("kind", STRUCTURES)
    def test_tensors_are_found_in(self, kind):
        unpack, pack, given_as, taken_from = STRUCTURES[kind]
        module, x = Wrapped(unpack, pack), torch.randn(4, 16)
        monitor = GradientMonitor({"m": module})
        out = module(*given_as(x.clone().requires_grad_()))
        taken_from(out).square().sum().backward()
        y = x @ module.layer.weight.T
        entering = norm([2 * y])
        assert_agrees(monitor.close_epoch()["m"], Flow(entering, 3.0 * entering))
        assert type(out) is type(pack(y))

    def test_tensors_are_found_in_keywords(self):
        module = Wrapped(lambda x, *, more: x + more["y"], lambda y: y)
        x, y = leaf(4, 16), leaf(4, 16)
        check(module, [""], lambda module: module(x, more={"y": y}).square().sum())

    def test_a_container_that_is_given_twice(self):
        module, x = Wrapped(lambda state, *, context: context["state"]["x"], lambda y: y), leaf(4, 16) * 1
        state = {"x": x}
        monitor = GradientMonitor({"m": module})
        module(state, context={"state": state}).square().sum().backward()
        assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(3.0, rel=1e-5)
        assert state["x"] is x

    def test_a_dataclass_keeps_what_holds_no_tensor(self):
        module = Wrapped(lambda batch: batch.x if batch.note == "mine" else None, lambda y: Batch(y, "yours"))
        monitor = GradientMonitor({"m": module})
        batch = Batch(leaf(2, 16), "mine")
        out = module(batch)
        assert (out.note, batch.note) == ("yours", "mine")
        out.x.sum().backward()
        assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(3.0, rel=1e-5)

    @pytest.mark.parametrize("batch_first", [True, False])
    def test_query_key_and_value_the_same_tensor(self, batch_first):
        x = leaf(2, 5, 16)
        attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        check(attention, [""], lambda attention: attention(x, x, x)[0].square().sum())

    def test_query_apart_from_key_and_value(self):
        q, kv = leaf(2, 5, 16), leaf(2, 7, 16)
        attention = nn.MultiheadAttention(16, 4, batch_first=True)
        check(attention, [""], lambda attention: attention(query=q, key=kv, value=kv)[0].square().sum())

    def test_two_inputs_of_which_one_cannot_be_measured_are_no_measurement(self, monkeypatch):
        module = Wrapped(lambda x, more: x + more, lambda y: y)
        monitor = GradientMonitor({"m": module})
        unreadable = torch.randn(3, 16)
        norm_of = probing.norm_of

        def norm_or_error(gradient):
            if gradient.shape == unreadable.shape:
                raise RuntimeError("unreadable")
            return norm_of(gradient)

        monkeypatch.setattr(probing, "norm_of", norm_or_error)
        for _ in range(2):
            module(leaf(4, 1, 16), leaf(3, 16)).sum().backward()
            health = monitor.close_epoch()["m"]
            assert (health.measurement, health.passes, health.grad_ratio) == (Measurement.PROBE_LOST, 0, 0.0)
            assert "unreadable" in health.measurement_reason

    def test_integers_and_masks_beside_the_tensor(self):
        x, mask = leaf(4, 16), torch.rand(4, 16) > 0.5
        module = Wrapped(lambda x, mask, power: (x * mask) ** power, lambda y: y)
        check(module, [""], lambda module: module(x, mask, power=2).square().sum())


# Forward-mode derivatives load torch's own decompositions, which still use torch.jit.script.
TORCH_WARNS_OF_ITSELF = "ignore:.*torch.jit.*:DeprecationWarning"


class TestFunctorch:
    """Transforms pass through unharmed and unmeasured."""

    def unharmed(self, transform):
        module, x = mlp(4), torch.randn(3, 4)
        expected = transform(copy.deepcopy(module), x)
        monitor = GradientMonitor({"m": module})
        result = transform(module, x)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        health = monitor.close_epoch()["m"]
        assert health.measurement is not Measurement.MEASURED
        assert "torch.func" in health.measurement_reason

    def test_grad(self):
        self.unharmed(lambda module, x: torch.func.grad(lambda x: module(x).square().sum())(x))

    def test_grad_of_parameters_by_functional_call(self):
        def transform(module, x):
            parameters = {name: p.detach() for name, p in module.named_parameters()}
            return torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(parameters)

        self.unharmed(transform)

    def test_jacrev(self):
        self.unharmed(lambda module, x: torch.func.jacrev(module)(x))

    def test_vmap(self):
        self.unharmed(lambda module, x: torch.func.vmap(module)(x).detach())

    def test_vmap_of_grad(self):
        self.unharmed(lambda module, x: torch.func.vmap(torch.func.grad(lambda x: module(x).sum()))(x))

    @pytest.mark.filterwarnings(TORCH_WARNS_OF_ITSELF)
    def test_hessian(self):
        self.unharmed(lambda module, x: torch.func.hessian(lambda x: module(x).square().sum())(x[0]))

    @pytest.mark.filterwarnings(TORCH_WARNS_OF_ITSELF)
    def test_jvp(self):
        self.unharmed(lambda module, x: torch.func.jvp(module, (x,), (torch.ones_like(x),))[1].detach())

    def test_backward_through_a_vmapped_module_trains_its_parameters_as_before(self):
        module, x = mlp(4), torch.randn(3, 4)
        twin = copy.deepcopy(module)
        torch.func.vmap(twin)(x).square().sum().backward()
        monitor = GradientMonitor({"m": module})
        torch.func.vmap(module)(x).square().sum().backward()
        for watched, plain in zip(module.parameters(), twin.parameters(), strict=True):
            assert torch.equal(watched.grad, plain.grad)
        assert monitor.close_epoch()["m"].measurement is not Measurement.MEASURED

    @pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_several_backwards_in_one_cost_no_measurement(self, in_memory, way, monkeypatch):
        """As torch.autograd.functional.jacobian(…, vectorize=True) has them."""
        if not in_memory:  # as on an accelerator
            monkeypatch.setattr(Page, "_find_memory", lambda page: setattr(page, "memory", None))
        module, x = mlp(4), leaf(3, 4)
        expected = flow_of(module, "", lambda module: module(x).square().sum())
        monitor = GradientMonitor({"m": module})
        y = module(x)
        rows = torch.eye(y.numel()).view(-1, *y.shape)
        if way == "vmap":
            torch.func.vmap(lambda row: torch.autograd.grad(y, x, row, retain_graph=True))(rows)
        else:
            torch.autograd.grad(y, x, rows, retain_graph=True, is_grads_batched=True)
        y.square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)

    def test_functional_call_outside_of_a_transform_is_measured(self):
        module, x = mlp(), leaf(4, 16)
        doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
        twin = copy.deepcopy(module)
        twin.load_state_dict(doubled)
        expected = flow_of(twin, "", lambda twin: twin(x).square().sum())
        monitor = GradientMonitor({"m": module})
        torch.func.functional_call(module, doubled, (x,)).square().sum().backward()
        assert_agrees(monitor.close_epoch()["m"], expected)


class TestKindsOfNumbers:
    def test_float64(self):
        x = leaf(4, 16, dtype=torch.float64)
        check(mlp().double(), [""], lambda module: module(x).square().sum())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_gradients_are_summed_in_float32(self, dtype):
        module = scaled_orthogonal(2.0).to(dtype)
        x = leaf(64, 16, dtype=dtype)
        check(module, [""], lambda module: module(x).sum())

    @pytest.mark.parametrize("value", [300.0, 1e-4, 0.1])
    @pytest.mark.parametrize("elements", [1_000_003, 1 << 20])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_norms_neither_overflow_nor_lose_digits(self, value, elements, dtype):
        module = nn.Identity()
        monitor = GradientMonitor({"m": module})
        x = torch.zeros(elements, dtype=dtype, requires_grad=True)
        gradient = torch.full_like(x, value)
        module(x * 1).backward(gradient)
        assert monitor.close_epoch()["m"].entering_norm == pytest.approx(norm([gradient]), rel=1e-6)

    def test_float32_norms_of_large_gradients_keep_their_digits(self):
        module = nn.Identity()
        monitor = GradientMonitor({"m": module})
        x = torch.zeros(2048, 2049, requires_grad=True)
        gradient = torch.rand(2049, 2048).T  # not contiguous, no multiple of anything
        module(x * 1).backward(gradient)
        assert monitor.close_epoch()["m"].entering_norm == pytest.approx(norm([gradient]), rel=1e-6)

    @pytest.mark.parametrize("size", [1e25, 1e20, 1e17, 1e-17, 1e-20, 3e-22, 1e-26])
    def test_at_the_ends_of_float32_the_ratio_is_right_or_missing(self, size):
        module = scaled_orthogonal(0.7)
        monitor = GradientMonitor({"m": module})
        module(leaf(1, 16)).backward(torch.full((1, 16), size))
        health = monitor.close_epoch()["m"]
        if health.measurement is Measurement.MEASURED:
            assert health.grad_ratio == pytest.approx(0.7, rel=1e-5)
        else:
            assert health.grad_ratio == 0.0

    def test_sparse_gradients(self):
        class Lookup(nn.Module):
            def forward(self, table):
                return F.embedding(torch.tensor([1, 1, 2]), table, sparse=True)

        module = Lookup()
        monitor = GradientMonitor({"m": module})
        table = torch.ones(10, 4, requires_grad=True)
        module(table).sum().backward()
        assert table.grad.is_sparse
        # Row 1 is looked up twice: its gradients are added before they are squared.
        assert_agrees(monitor.close_epoch()["m"], Flow(math.sqrt(12), math.sqrt(4 * 4 + 4)))

    def test_complex_gradients(self):
        class Phase(nn.Module):
            def forward(self, z):
                return z * (3 + 4j)

        module = Phase()
        monitor = GradientMonitor({"m": module})
        z = torch.randn(6, dtype=torch.complex64, requires_grad=True)
        module(z).backward(torch.full((6,), 1 + 1j, dtype=torch.complex64))
        assert_agrees(monitor.close_epoch()["m"], Flow(math.sqrt(12), 5 * math.sqrt(12)))

    def test_conjugated_gradients(self):
        """The backward of `conj` hands on a view that only says of itself that it is conjugated."""

        class Turn(nn.Module):
            def __init__(self):
                super().__init__()
                self.by = nn.Parameter(torch.tensor([3 + 4j]))

            def forward(self, z):
                return z * self.by.conj()

        model = nn.Sequential(Turn())
        with sapflow.watch(model, "*") as watcher:
            model(leaf(6, dtype=torch.complex64)).conj().real.sum().backward()
            seed = watcher.epoch()["0"]
        assert_agrees(seed, Flow(math.sqrt(6), 5 * math.sqrt(6)))
        assert seed.parameter_liveness == 1.0

    def test_real_in_complex_out(self):
        x = leaf(8, 16)

        class Spectrum(nn.Module):
            def forward(self, x):
                return torch.fft.fft(x)

        module = Spectrum()
        monitor = GradientMonitor({"m": module})
        y = module(x)
        gradient = torch.randn(8, 16, dtype=torch.complex64)
        y.backward(gradient)
        (leaving,) = torch.autograd.grad(torch.fft.fft(x), x, gradient)
        entering = torch.view_as_real(gradient)
        assert_agrees(monitor.close_epoch()["m"], Flow(norm([entering]), norm([leaving])))


def test_residual_blocks_hide_a_dead_branch_and_the_branch_shows_it():
    """The gain of branch plus skip is 1 whatever the branch does: that is why the branch is what is watched."""
    block = Residual(branch=scaled_orthogonal(0.0))
    monitor = GradientMonitor({"block": block, "branch": block.branch})
    block(leaf(4, 16)).sum().backward()
    health = monitor.close_epoch()
    assert health["block"].grad_ratio == pytest.approx(1.0, rel=1e-6)
    assert (health["branch"].grad_ratio, health["branch"].has_vanishing) == (0.0, True)
