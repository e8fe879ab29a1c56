"""Modules under torch.compile, torch.export and tracing: measured where they can be, and never harmed.

Most tests compile with the backend "aot_eager", which runs what "inductor" runs up to its code generation.
"""

import copy
import shutil
from contextlib import contextmanager

import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.registry import lookup_backend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import sapflow
from flow import Net, Transformer, assert_agrees, flow_of, mlp, scaled_orthogonal, total
from sapflow import GradientMonitor
from sapflow.telemetry.vocabulary import Measurement

pytestmark = [
    # Dynamo looks at .grad of every tensor that enters a graph, of a block in the middle too, and warns itself of it.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    # Dynamo makes an instance of every autograd.Function that it traces, and torch deprecates making them.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # Inductor and torch.jit.trace use parts of torch that torch deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
]

# The same of every block, as regional compilation has it, that shares one graph among equal blocks.
NAMES = ["blocks.0.branch", "blocks.1.branch", "head"]

inductor = pytest.param(
    "inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler here")
)


class CountingBackend:
    """aot_eager, and how many graphs it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    torch.manual_seed(7)
    # Inductor would compile a program for each kind of vector registers, to see which there are.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        yield
    torch._dynamo.reset()


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def data():
    return torch.randn(8, 16)


def loss_of(net, x):
    return net(x).square().sum()


def compiled_whole(net, backend):
    return torch.compile(net, backend=backend, fullgraph=True)


def compiled_by_block_in_place(net, backend):
    for block in net.blocks:
        block.compile(backend=backend, fullgraph=True)
    return net


def compiled_by_block_wrapped(net, backend):
    for index, block in enumerate(net.blocks):
        net.blocks[index] = torch.compile(block, backend=backend, fullgraph=True)
    return net


def compiled_one_block(net, backend):
    net.blocks[1].compile(backend=backend, fullgraph=True)
    return net


def compiled_one_branch(net, backend):
    net.blocks[1].branch.compile(backend=backend, fullgraph=True)
    return net


def compiled_in_place(net, backend):
    net.compile(backend=backend, fullgraph=True)
    return net


WAYS = {
    "whole": compiled_whole,
    "whole in place": compiled_in_place,
    "every block in place": compiled_by_block_in_place,
    "every block wrapped": compiled_by_block_wrapped,
    "one block": compiled_one_block,
    "one branch": compiled_one_branch,
}


def watched(net, names=NAMES, **kwargs):
    """A monitor on the modules themselves, whatever will be wrapped around them."""
    return GradientMonitor({name: net.get_submodule(name) for name in names}, **kwargs)


def assert_all_agree(health, flows):
    for name, flow in flows.items():
        assert_agrees(health[name], flow, rel=2e-5)


class TestMeasuredUnderCompile:
    @pytest.mark.parametrize(
        ("way", "attached"),
        [(way, "before compile") for way in WAYS]
        + [(way, "after compile, before the first call") for way in ("whole", "every block in place", "one branch")],
    )
    def test_every_module_inside_is_exact(self, way, attached, data):
        net = Net(depth=2)
        flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in NAMES}
        modules = {name: net.get_submodule(name) for name in NAMES}
        if attached == "before compile":
            monitor = GradientMonitor(modules)
            compiled = WAYS[way](net, "aot_eager")
        else:
            compiled = WAYS[way](net, "aot_eager")
            monitor = GradientMonitor(modules)
        loss_of(compiled, data).backward()
        assert_all_agree(monitor.close_epoch(), flows)

    @pytest.mark.parametrize("backend", [inductor])
    @pytest.mark.parametrize("way", ["whole", "every block in place"])
    def test_with_generated_code(self, way, backend, data):
        net = Net(depth=2)
        flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in NAMES}
        monitor = watched(net)
        compiled = WAYS[way](net, backend)
        for _ in range(2):
            loss_of(compiled, data).backward()
            monitor.step()
        health = monitor.close_epoch()
        assert_all_agree(health, {name: total([flow, flow]) for name, flow in flows.items()})
        assert health["head"].passes == 2

    @pytest.mark.parametrize("way", ["every block in place", "every block wrapped"])
    def test_one_of_several_equal_blocks_is_right_or_said_to_be_lost(self, way, data):
        """Equal blocks share a graph whatever hooks they have: that of the first block knows of no probe."""
        net = Net(depth=3)
        flow = flow_of(net, "blocks.1.branch", lambda net: loss_of(net, data))
        monitor = watched(net, ["blocks.1.branch"])
        compiled = WAYS[way](net, "aot_eager")
        for _ in range(2):
            loss_of(compiled, data).backward()
            monitor.step()
        health = monitor.close_epoch()["blocks.1.branch"]
        if health.measurement is Measurement.MEASURED:
            assert_agrees(health, total([flow] * 2))
        else:
            assert health.measurement is Measurement.PROBE_LOST
            assert "torch.compile" in health.measurement_reason

    def test_a_transformer_block(self):
        net, x = Transformer(dropout=0.0), torch.randn(8, 16)
        names = ["blocks.0", "blocks.1.attention.branch", "blocks.1.mlp.branch"]
        flows = {name: flow_of(net, name, lambda net: loss_of(net, x)) for name in names}
        monitor = watched(net, names)
        loss_of(compiled_whole(net, "aot_eager"), x).backward()
        assert_all_agree(monitor.close_epoch(), flows)

    def test_nested_modules_are_both_exact(self, data):
        net = Net(depth=2)
        names = ["blocks.1", "blocks.1.branch", "blocks.1.branch.0"]
        flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in names}
        monitor = watched(net, names)
        loss_of(compiled_whole(net, "aot_eager"), data).backward()
        assert_all_agree(monitor.close_epoch(), flows)

    def test_in_place_operation_on_the_output(self):
        class Host(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.seed = nn.Linear(16, 16), scaled_orthogonal(1.5)

            def forward(self, x):
                return self.seed(self.first(x)).relu_()

        host = Host()
        monitor = GradientMonitor({"seed": host.seed})
        loss_of(compiled_whole(host, "aot_eager"), torch.randn(4, 16)).backward()
        health = monitor.close_epoch()["seed"]
        assert health.measurement is Measurement.MEASURED
        assert health.grad_ratio == pytest.approx(1.5, rel=1e-5)

    def test_in_place_operation_on_the_input_is_right_or_said_to_be_missing(self):
        class Host(nn.Module):
            def __init__(self, inplace):
                super().__init__()
                self.first = nn.Linear(16, 16)
                self.seed = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(16, 16))

            def forward(self, x):
                return self.seed(self.first(x))

        host, reference, x = Host(inplace=True), Host(inplace=False), torch.randn(4, 16)
        reference.load_state_dict(host.state_dict())
        flow = flow_of(reference, "seed", lambda host: loss_of(host, x))
        monitor = GradientMonitor({"seed": host.seed})
        loss_of(compiled_whole(host, "aot_eager"), x).backward()
        health = monitor.close_epoch()["seed"]
        if health.measurement is Measurement.MEASURED:
            assert_agrees(health, flow)
        else:
            assert health.measurement_reason

    def test_what_a_block_appends_to_a_list_is_there_and_what_is_not_measured_is_said(self, data):
        class Expert(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(16, 16)

            def forward(self, x, losses):
                losses.append(self.layer(x).square().mean())
                return x * 2

        first, second = Expert(), Expert()

        def loss_of(x):
            losses = []
            second(first(x, losses), losses)
            return losses[0] + 3 * losses[1]

        plain = loss_of(data)
        monitor = GradientMonitor({"first": first, "second": second})
        loss = torch.compile(loss_of, backend="aot_eager", fullgraph=True)(data)
        torch.testing.assert_close(loss, plain)
        loss.backward()
        health = monitor.close_epoch()["second"]
        assert health.measurement is Measurement.PROBE_LOST
        assert "list, dict or dataclass" in health.measurement_reason

    def test_an_output_that_cannot_be_looked_into_is_left_as_it_is_and_said(self, data):
        class Closed(dict):
            def items(self):
                raise RuntimeError("closed")

        class Module(nn.Module):
            def forward(self, x):
                return Closed(y=2 * x)

        module, x = Module(), data.clone().requires_grad_()
        monitor = GradientMonitor({"m": module})
        torch.compile(lambda x: module(x)["y"].sum(), backend="aot_eager", fullgraph=True)(x).backward()
        health = monitor.close_epoch()["m"]
        assert torch.equal(x.grad, torch.full_like(x, 2.0))
        assert health.measurement is Measurement.PROBE_LOST
        assert "cannot be looked into" in health.measurement_reason

    @pytest.mark.parametrize("kind", ["DTensor", "nested"])
    @pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype:UserWarning")
    def test_a_tensor_of_a_type_of_its_own_is_left_as_it_is_and_said(self, kind, data, one_rank):
        first, second, x = nn.Linear(16, 16), nn.Linear(16, 16), data

        def loss_of(x):
            if kind == "DTensor":
                return second(DTensor.from_local(first(x), mesh, [Replicate()])).to_local().square().sum()
            return second(first(x)).values().square().sum()

        if kind == "DTensor":
            mesh = init_device_mesh("cpu", (1,))
            parallelize_module(second, mesh, ColwiseParallel(use_local_output=False))
        else:
            x = torch.nested.nested_tensor([data[:3], data[3:]], layout=torch.jagged)
        plain = loss_of(x)
        monitor = GradientMonitor({"second": second}, policy=sapflow.CalibratedPolicy())
        loss = torch.compile(loss_of, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(loss, plain)
        loss.backward()
        health = monitor.close_epoch()["second"]
        assert health.measurement is Measurement.PROBE_LOST
        assert "cannot be looked into" in health.measurement_reason

    def test_one_tensor_for_two_keywords_is_one_input(self, data):
        class Sum(nn.Module):
            def __init__(self):
                super().__init__()
                self.of_q, self.of_k = nn.Linear(16, 16), nn.Linear(16, 16)

            def forward(self, q, k):
                return self.of_q(q) + self.of_k(k)

        class Host(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.sum = nn.Linear(16, 16), Sum()

            def forward(self, x):
                h = self.first(x)
                return self.sum(q=h, k=h)

        host = Host()
        flow = flow_of(host, "sum", lambda host: loss_of(host, data))
        monitor = GradientMonitor({"sum": host.sum})
        loss_of(compiled_whole(host, "aot_eager"), data).backward()
        assert_agrees(monitor.close_epoch()["sum"], flow)

    def test_calls_without_an_input_that_needs_a_gradient_beside_others_are_said(self, data):
        module, features = scaled_orthogonal(1.0), data.clone().requires_grad_()
        monitor = GradientMonitor({"m": module})
        torch.compile(lambda x, y: module(x).sum() + module(y).sum(), backend="aot_eager")(data, features).backward()
        health = monitor.close_epoch()["m"]
        assert health.measurement is Measurement.MEASURED
        assert "too low" in health.measurement_reason

    def test_first_layer_is_said_to_be_detached(self, data):
        net = Net(depth=2)
        monitor = GradientMonitor({"embed": net.embed})
        loss_of(compiled_whole(net, "aot_eager"), data).backward()
        health = monitor.close_epoch()["embed"]
        assert health.measurement is Measurement.INPUT_DETACHED
        assert "needs no gradient" in health.measurement_reason
        assert health.grad_ratio == 0.0

    def test_dead_branch_is_measured_and_vanishing(self, data):
        net = Net(depth=2)
        nn.init.zeros_(net.blocks[1].branch[0].weight)
        monitor = GradientMonitor({"branch": net.blocks[1].branch})
        loss_of(compiled_whole(net, "aot_eager"), data).backward()
        health = monitor.close_epoch()["branch"]
        assert (health.measurement, health.grad_ratio) == (Measurement.MEASURED, 0.0)
        assert health.has_vanishing

    def test_the_compiled_wrapper_itself_can_be_watched(self, data):
        net = Net(depth=2)
        flow = flow_of(net, "blocks.1", lambda net: loss_of(net, data))
        compiled_by_block_wrapped(net, "aot_eager")
        monitor = GradientMonitor({"block": net.blocks[1]})
        loss_of(net, data).backward()
        assert_agrees(monitor.close_epoch()["block"], flow)

    def test_dynamic_shapes(self):
        net = Net(depth=2)
        batches = [torch.randn(rows, 16) for rows in (3, 5, 8, 13)]
        flows = {name: total(flow_of(net, name, lambda net, x=x: loss_of(net, x)) for x in batches) for name in NAMES}
        backend = CountingBackend()
        monitor = watched(net)
        compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=True)
        for x in batches:
            loss_of(compiled, x).backward()
            monitor.step()
        assert_all_agree(monitor.close_epoch(), flows)
        assert backend.graphs <= 2

    def test_accumulated_micro_batches_are_one_pass(self, data):
        net = Net(depth=2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in NAMES}
        monitor = watched(net, optimizer=optimizer)
        compiled = compiled_whole(net, "aot_eager")
        for _ in range(3):
            for part in data.split(2):
                loss_of(compiled, part).backward()
            optimizer.step()
        health = monitor.close_epoch()
        assert {seed.passes for seed in health.values()} == {3}
        assert_all_agree(health, {name: total([flow] * 3) for name, flow in flows.items()})

    @pytest.mark.parametrize("place", ["inside", "around"])
    def test_with_activation_checkpointing(self, place, data):
        class Checkpointed(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, x):
                h = self.net.embed(x)
                for block in self.net.blocks:
                    if place == "around":
                        h = checkpoint(block, h, use_reentrant=False)
                    else:
                        h = h + checkpoint(block.branch, block.norm(h), use_reentrant=False)
                return self.net.head(h)

        net = Net(depth=2)
        names = ["blocks.0.branch", "blocks.1.branch"]
        flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in names}
        monitor = watched(net, names)
        compiled = torch.compile(Checkpointed(net), backend="aot_eager", fullgraph=True)
        loss_of(compiled, data).backward()
        assert_all_agree(monitor.close_epoch(), flows)

    @pytest.mark.parametrize("backend", ["aot_eager", inductor])
    def test_several_backward_passes_over_one_graph(self, backend):
        module, x = mlp(), torch.randn(4, 16).requires_grad_()
        flow = flow_of(module, "", lambda module: loss_of(module, x))
        monitor = GradientMonitor({"m": module})
        module.compile(backend=backend)
        with torch._functorch.config.patch(donated_buffer=False):  # as any loop must that compiles and retains graphs
            loss = loss_of(module, x)
            loss.backward(retain_graph=True)
            loss.backward()
        assert_agrees(monitor.close_epoch()["m"], total([flow, flow]))

    def test_passes_without_gradient_beside_those_with(self, data):
        net = Net(depth=2)
        flow = flow_of(net, "blocks.1.branch", lambda net: loss_of(net, data))
        monitor = watched(net, ["blocks.1.branch"])
        compiled = compiled_whole(net, "aot_eager")
        for _ in range(2):
            with torch.no_grad():
                compiled(data)
            loss_of(compiled, data).backward()
            monitor.step()
        assert_agrees(monitor.close_epoch()["blocks.1.branch"], total([flow, flow]))

    def test_non_finite_passes_are_counted(self, data):
        net = Net(depth=2)
        flow = flow_of(net, "blocks.1.branch", lambda net: loss_of(net, data))
        monitor = watched(net, ["blocks.1.branch"])
        compiled = compiled_whole(net, "aot_eager")
        for factor in (1.0, torch.nan, 1.0):
            (loss_of(compiled, data) * factor).backward()
            monitor.step()
        health = monitor.close_epoch()["blocks.1.branch"]
        assert (health.passes, health.non_finite_passes) == (2, 1)
        assert_agrees(health, total([flow, flow]))

    def test_watch_in_a_loop_that_compiles(self, data):
        net = Net(depth=2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        flow = flow_of(net, "blocks.1.branch", lambda net: loss_of(net, data))
        with sapflow.watch(net, "blocks.*.branch") as watcher:
            compiled = torch.compile(net, backend="aot_eager")
            for _ in range(5):
                optimizer.zero_grad()
                loss_of(compiled, data).backward()
                optimizer.step()
            seed = watcher.epoch()["blocks.1.branch"]
        assert seed.passes == 5
        assert_agrees(seed, total([flow] * 5))


class TestAttachedAfterTheFirstCall:
    @pytest.mark.parametrize("way", ["whole", "every block in place", "every block wrapped"])
    def test_the_probe_is_lost_and_says_what_to_do(self, way, data):
        net = Net(depth=2)
        branch = net.blocks[1].branch
        compiled = WAYS[way](net, "aot_eager")
        loss_of(compiled, data).backward()
        net.zero_grad()
        monitor = GradientMonitor({"branch": branch})
        loss_of(compiled, data).backward()
        monitor.step()
        health = monitor.close_epoch()["branch"]
        assert health.measurement is Measurement.PROBE_LOST
        assert "torch.compile" in health.measurement_reason
        assert (health.grad_ratio, health.has_vanishing, health.has_exploding) == (0.0, False, False)

    def test_a_reset_of_dynamo_brings_it_back(self, data):
        net = Net(depth=2)
        flow = flow_of(net, "blocks.1.branch", lambda net: loss_of(net, data))
        compiled = compiled_whole(net, "aot_eager")
        loss_of(compiled, data).backward()
        monitor = watched(net, ["blocks.1.branch"])
        loss_of(compiled, data).backward()
        monitor.close_epoch()
        torch._dynamo.reset()
        loss_of(compiled, data).backward()
        assert_agrees(monitor.close_epoch()["blocks.1.branch"], flow)

    def test_a_module_that_is_not_compiled_is_measured_all_the_same(self, data):
        net = Net(depth=2)
        flow = flow_of(net, "head", lambda net: loss_of(net, data))
        compiled_by_block_in_place(net, "aot_eager")
        loss_of(net, data).backward()
        monitor = watched(net, ["head"])
        loss_of(net, data).backward()
        assert_agrees(monitor.close_epoch()["head"], flow)


class TestWhatCompilationSees:
    @pytest.mark.parametrize("way", ["every block in place", "every block wrapped"])
    def test_twelve_equal_blocks_take_few_more_graphs_with_probes(self, way, data):
        def graphs(with_probes):
            torch._dynamo.reset()
            backend, net = CountingBackend(), Net(depth=12)
            names = [f"blocks.{index}.branch" for index in range(12)] if with_probes else []
            flows = {name: flow_of(net, name, lambda net: loss_of(net, data)) for name in names}
            monitor = watched(net, names)
            WAYS[way](net, backend)
            for _ in range(2):
                loss_of(net, data).backward()
                monitor.step()
            assert_all_agree(monitor.close_epoch(), {name: total([flow] * 2) for name, flow in flows.items()})
            return backend.graphs

        assert 1 <= graphs(with_probes=False) <= 3
        assert graphs(with_probes=True) <= 4

    def test_later_steps_and_epochs_compile_nothing_new(self, data):
        net, backend = Net(depth=2), CountingBackend()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        monitor = watched(net, optimizer=optimizer, ring_passes=2)
        compiled = compiled_whole(net, backend)
        for _ in range(3):
            for _ in range(5):
                loss_of(compiled, data).backward()
                optimizer.step()
            monitor.samples()
            assert {seed.passes for seed in monitor.close_epoch().values()} == {5}
        assert backend.graphs == 1

    def test_no_graph_breaks(self, data):
        net = Net(depth=2)
        with watched(net) as monitor:
            breaks = torch._dynamo.explain(net)(data).graph_break_count
            assert monitor.names
        assert breaks == 0

    @pytest.mark.parametrize("way", ["whole", "every block in place", "one block"])
    def test_losses_and_gradients_are_those_of_the_unwatched_model_to_rounding(self, way, data):
        def train(net, with_probes):
            torch._dynamo.reset()
            torch.manual_seed(3)
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            parameters = list(net.parameters())
            monitor = watched(net, NAMES if with_probes else [], optimizer=optimizer)
            compiled = WAYS[way](net, "aot_eager")
            seen = []
            for _ in range(3):
                optimizer.zero_grad()
                loss = loss_of(compiled, data)
                loss.backward()
                seen += [loss.detach().reshape(1), *(p.grad.flatten().clone() for p in parameters)]
                optimizer.step()
            return torch.cat(seen), monitor.close_epoch()

        net = Net(depth=2)
        twin = copy.deepcopy(net)
        plain, _ = train(twin, with_probes=False)
        seen, health = train(net, with_probes=True)
        torch.testing.assert_close(seen, plain, rtol=1e-5, atol=1e-5)
        assert {seed.passes for seed in health.values()} == {3}

    @pytest.mark.parametrize("way", ["whole", "every block in place"])
    def test_after_removal_it_runs_on_as_without(self, way, data):
        net = Net(depth=2)
        expected = loss_of(copy.deepcopy(net), data)
        monitor = watched(net)
        compiled = WAYS[way](net, "aot_eager")
        loss_of(compiled, data).backward()
        monitor.close()
        net.zero_grad()
        loss = loss_of(compiled, data)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        assert all(parameter.grad is not None for parameter in net.parameters())


@contextmanager
def compiled_backward():
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        yield


@pytest.mark.parametrize("way", ["eager", "whole"])
def test_compiled_autograd_leaves_gradients_as_they_are(way, data):
    """There a module is measured right or its measurement is said to be missing."""
    net = Net(depth=1)
    flow = flow_of(net, "blocks.0.branch", lambda net: loss_of(net, data))
    twin = copy.deepcopy(net)
    loss_of(twin, data).backward()
    monitor = watched(net, ["blocks.0.branch"])
    compiled = compiled_whole(net, "aot_eager") if way == "whole" else net
    for _ in range(2):
        net.zero_grad()
        with compiled_backward():
            loss_of(compiled, data).backward()
        monitor.step()
    for seen, plain in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(seen.grad, plain.grad)
    health = monitor.close_epoch()["blocks.0.branch"]
    if health.measurement is Measurement.MEASURED:
        assert_agrees(health, total([flow] * health.passes))
    else:
        assert health.measurement_reason


class TestExport:
    @pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
    def test_an_exported_model_knows_nothing_of_probes(self, strict, data):
        net = Net(depth=2)
        plain = torch.export.export(copy.deepcopy(net), (data,), strict=strict)
        with watched(net) as monitor:
            exported = torch.export.export(net, (data,), strict=strict)
            health = monitor.close_epoch()
        assert [(node.op, str(node.target)) for node in exported.graph.nodes] == [
            (node.op, str(node.target)) for node in plain.graph.nodes
        ]
        assert list(exported.state_dict) == list(plain.state_dict)
        torch.testing.assert_close(exported.module()(data), net(data), rtol=0, atol=0)
        assert all(seed.measurement is not Measurement.MEASURED for seed in health.values())

    @pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
    def test_training_goes_on_measured_after_an_export(self, strict, data):
        net = Net(depth=2)
        flow = flow_of(net, "blocks.1", lambda net: loss_of(net, data))
        monitor = watched(net, ["blocks.1"])
        torch.export.export(net, (data,), strict=strict)
        loss_of(net, data).backward()
        assert_agrees(monitor.close_epoch()["blocks.1"], flow)

    def test_a_traced_model_computes_the_same_and_trains(self, data):
        net = Net(depth=2)
        plain = torch.jit.trace(copy.deepcopy(net), data)
        with watched(net):
            traced = torch.jit.trace(net, data)
        torch.testing.assert_close(traced(data), net(data), rtol=0, atol=0)
        assert [n.kind() for n in traced.inlined_graph.nodes()] == [n.kind() for n in plain.inlined_graph.nodes()]
        loss_of(traced, data).backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
