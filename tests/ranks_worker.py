"""One rank of a small world: runs every case of that world size and writes what it saw as JSON.

Started by test_ranks.py. The reference of each case is computed in this process alone, over the global batch, by
torch.autograd.grad on the plain model.
"""

import datetime
import json
import logging
import math
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sapflow import GradientMonitor, grow, watch
from sapflow.errors import BlueprintError, InputError
from sapflow.gradients.selection import select
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.health.rules import Condition, Rule
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.vocabulary import SeedStage

WIDTH, BATCH, LENGTH, PASSES, RATE = 8, 8, 4, 3, 0.1
FIELDS = ("grad_ratio", "entering_norm", "leaving_norm", "min_ratio", "max_ratio", "last_ratio", "passes")
CASES = {}


def case(world):
    def register(function):
        CASES[function.__name__] = (world, function)
        return function

    return register


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h):
        return self.down(F.gelu(self.up(h)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.block = Block()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, through_block=True):
        h = self.first(x)
        if through_block:
            h = h + self.block(self.norm(h))
        return self.head(h)


def make():
    torch.manual_seed(11)
    return Net()


def global_batches(micro=1):
    """PASSES lists of micro-batches (inputs, targets), each of BATCH samples over all ranks."""
    draw = torch.Generator().manual_seed(5)
    shape = (BATCH, LENGTH, WIDTH)
    return [
        [(torch.randn(shape, generator=draw), (1 + step) * torch.randn(shape, generator=draw)) for _ in range(micro)]
        for step in range(PASSES)
    ]


def reference(batches, routed=None):
    """What one process sees that trains the plain model on the global batches: by name, the FIELDS.

    `routed` tells for each pass which part of the batch goes through the block (all of it by default).
    """
    net = make()
    squares = {name: [] for name in ("norm", "block", "block.up", "block.down")}
    for step, micro_batches in enumerate(batches):
        part = slice(0, BATCH) if routed is None else routed[step]
        total = {name: [0.0, 0.0] for name in squares}
        for x, target in micro_batches:
            h = net.first(x)
            into_norm = h[part].clone()
            into_block = net.norm(into_norm)
            up = net.block.up(into_block)
            into_down = F.gelu(up)
            out = net.block.down(into_down)
            routed_h = torch.zeros_like(h).index_put((torch.arange(BATCH)[part],), out)
            loss = F.mse_loss(net.head(h + routed_h), target) / len(micro_batches)
            ends = [out, up, into_down, into_block, into_norm]
            of_out, of_up, of_into_down, of_into_block, of_into_norm = torch.autograd.grad(
                loss, ends, retain_graph=True, materialize_grads=True
            )
            pairs = {
                "norm": (of_into_block, of_into_norm),
                "block": (of_out, of_into_block),
                "block.up": (of_up, of_into_block),
                "block.down": (of_out, of_into_down),
            }
            for name, pair in pairs.items():
                for side, gradient in enumerate(pair):
                    total[name][side] += gradient.double().square().sum().item()
            loss.backward()
        for name, pair in total.items():
            squares[name].append(pair)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    return {name: summary(pairs) for name, pairs in squares.items()}


def summary(pairs):
    pairs = [pair for pair in pairs if pair[0] > 0]
    entering, leaving = (sum(side) for side in zip(*pairs, strict=True))
    ratios = [math.sqrt(b / a) for a, b in pairs]
    values = (math.sqrt(leaving / entering), math.sqrt(entering), math.sqrt(leaving))
    return dict(zip(FIELDS, (*values, min(ratios), max(ratios), ratios[-1], len(pairs)), strict=True))


def seen(health):
    return {name: {field: getattr(of_one, field) for field in FIELDS} for name, of_one in health.items()}


def share_of(batch, rank=None, world=None):
    rank, world = (dist.get_rank(), dist.get_world_size()) if rank is None else (rank, world)
    return [tensor.chunk(world)[rank] for tensor in batch]


def train(model, monitor, batches, *, rank=None, world=None):
    """The usual loop; each rank's loss is the mean over its share of the batch. Gives losses and gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    trace = []
    for micro_batches in batches:
        for batch in micro_batches:
            x, target = share_of(batch, rank, world)
            loss = F.mse_loss(model(x), target) / len(micro_batches)
            loss.backward()
            trace.append(loss.item())
        trace += [p.grad.tolist() for p in model.parameters() if not isinstance(p, DTensor)]
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(monitor, GradientMonitor):
            monitor.step()
    return trace


def compared(health, batches, routed=None):
    expected = reference(batches, routed)
    return {"seen": seen(health), "expected": {name: expected[name] for name in health}}


def measured(model, watched, batches, **split):
    """Trains a parallel model, and compares the combined epoch of the watched modules with the reference."""
    with GradientMonitor(watched, process_group=dist.group.WORLD) as monitor:
        train(model, monitor, batches, **split)
        return compared(monitor.close_epoch(), batches)


def parts(net):
    return {"block": net.block, "block.up": net.block.up, "block.down": net.block.down}


@case(2)
def ddp(scratch):
    net = make()
    return measured(DistributedDataParallel(net), parts(net), global_batches())


@case(2)
def ddp_static_graph(scratch):
    net = make()
    return measured(DistributedDataParallel(net, static_graph=True), parts(net), global_batches())


@case(2)
def ddp_unused_parameters(scratch):
    """The block is used by rank 0 alone, by rank 1 alone, then by both, and in the end by none."""
    net, batches = make(), [*global_batches(), *global_batches()[:1]]
    half = BATCH // 2
    routed = [slice(0, half), slice(half, BATCH), slice(0, BATCH), slice(0, 0)]
    through_block = [(True, False), (False, True), (True, True), (False, False)]
    model = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    rank = dist.get_rank()
    with GradientMonitor({"block": net.block}, optimizer=optimizer, process_group=dist.group.WORLD) as monitor:
        for through, (batch,) in zip(through_block, batches, strict=True):
            x, target = share_of(batch)
            F.mse_loss(model(x, through[rank]), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        return compared(monitor.close_epoch(), batches, routed)


@case(2)
def ddp_no_sync(scratch):
    net, batches = make(), global_batches(micro=2)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with GradientMonitor(parts(net), optimizer=optimizer, process_group=dist.group.WORLD) as monitor:
        for first, second in batches:
            x, target = share_of(first)
            with model.no_sync():
                (F.mse_loss(model(x), target) / 2).backward()
            x, target = share_of(second)
            (F.mse_loss(model(x), target) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        return compared(monitor.close_epoch(), batches)


@case(2)
def ddp_to_the_bit(scratch):
    """Losses and reduced gradients with and without the monitor."""
    net, plain = make(), make()
    with GradientMonitor(parts(net), process_group=dist.group.WORLD) as monitor:
        with_monitor = train(DistributedDataParallel(net), monitor, global_batches())
        monitor.close_epoch()
    without = train(DistributedDataParallel(plain), None, global_batches())
    return {"same": with_monitor == without}


@case(2)
def ddp_second_epoch(scratch):
    """Epochs follow each other, each with its own passes."""
    net, batches = make(), global_batches()
    with GradientMonitor(parts(net), process_group=dist.group.WORLD) as monitor:
        model = DistributedDataParallel(net)
        epochs = []
        for epoch in (batches[:1], batches[1:]):
            train(model, monitor, epoch)
            epochs.append(monitor.close_epoch())
        passes = [health["block"].passes for health in epochs]
        entering = math.hypot(*(health["block"].entering_norm for health in epochs))
    return {"passes": passes, "entering": entering, "expected": reference(batches)["block"]["entering_norm"]}


@case(2)
def modules_attached_within_an_epoch(scratch):
    """So many that the sums grow; what came later had nothing in the passes before."""
    net, batches = make(), global_batches()
    with GradientMonitor({"block": net.block}, process_group=dist.group.WORLD) as monitor:
        model = DistributedDataParallel(net)
        train(model, monitor, batches[:1])
        for number in range(20):
            monitor.attach(f"late{number}", net.block)
        train(model, monitor, batches[1:])
        health = monitor.close_epoch()
    return compared({"block": health["block"]}, batches) | {"late": health["late19"].passes}


def sharded(net, **policy):
    fully_shard(net.block, **policy)
    return fully_shard(net, **policy)


@case(2)
def fsdp(scratch):
    net = make()
    return measured(sharded(net), parts(net), global_batches())


@case(2)
def fsdp_attached_before(scratch):
    net, batches = make(), global_batches()
    with GradientMonitor(parts(net), process_group=dist.group.WORLD) as monitor:
        train(sharded(net), monitor, batches)
        return compared(monitor.close_epoch(), batches)


@case(2)
def fsdp_bf16(scratch):
    net = make()
    fully_shard(net.block, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    fully_shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    return measured(net, parts(net), global_batches())


@case(2)
def fsdp_checkpoint(scratch):
    net = make()
    net.block = checkpoint_wrapper(net.block)
    return measured(sharded(net), select(net, ["block", "block.*"]), global_batches())


def tensor_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


ROWS_AND_COLUMNS = {"up": ColwiseParallel(), "down": RowwiseParallel()}


@case(2)
def tensor_parallel(scratch):
    net = make()
    parallelize_module(net.block, tensor_mesh(), ROWS_AND_COLUMNS)
    return measured(net, parts(net), global_batches(), rank=0, world=1)


@case(2)
def tensor_parallel_attached_before(scratch):
    """The probes then stand outside the hooks that lay gradients out: one side is a DTensor, the other is plain."""
    net, batches = make(), global_batches()
    with GradientMonitor(parts(net), process_group=dist.group.WORLD) as monitor:
        parallelize_module(net.block, tensor_mesh(), ROWS_AND_COLUMNS)
        train(net, monitor, batches, rank=0, world=1)
        return compared(monitor.close_epoch(), batches)


@case(2)
def tensor_parallel_prepared_input(scratch):
    net = make()
    parallelize_module(net.block, tensor_mesh(), ROWS_AND_COLUMNS)
    prepare = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    parallelize_module(net.block, tensor_mesh(), prepare)
    return measured(net, parts(net), global_batches(), rank=0, world=1)


def sequence_plan():
    return {
        "first": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(use_local_output=True),
        "block.up": ColwiseParallel(input_layouts=Shard(1)),
        "block.down": RowwiseParallel(output_layouts=Shard(1)),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


@case(2)
def sequence_parallel(scratch):
    net = make()
    parallelize_module(net, tensor_mesh(), sequence_plan())
    return measured(net, parts(net) | {"norm": net.norm}, global_batches(), rank=0, world=1)


def mesh_2d():
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))


@case(4)
def fsdp_and_tensor_parallel(scratch):
    net, mesh = make(), mesh_2d()
    parallelize_module(net.block, mesh["tensor"], ROWS_AND_COLUMNS)
    model = sharded(net, mesh=mesh["data"])
    return measured(model, parts(net), global_batches(), rank=mesh["data"].get_local_rank(), world=2)


@case(4)
def fsdp_and_tensor_parallel_block_alone(scratch):
    """Every gradient of it is plain: that two ranks compute it together shows in its parameters alone."""
    net, mesh = make(), mesh_2d()
    parallelize_module(net.block, mesh["tensor"], ROWS_AND_COLUMNS)
    model = sharded(net, mesh=mesh["data"])
    return measured(model, {"block": net.block}, global_batches(), rank=mesh["data"].get_local_rank(), world=2)


@case(4)
def fsdp_and_sequence_parallel(scratch):
    net, mesh = make(), mesh_2d()
    parallelize_module(net, mesh["tensor"], sequence_plan())
    model = sharded(net, mesh=mesh["data"])
    watched = parts(net) | {"norm": net.norm}
    return measured(model, watched, global_batches(), rank=mesh["data"].get_local_rank(), world=2)


class Collectives:
    """Counts the collectives of Python code while it is entered, and lets them raise if it has an error for them."""

    def __init__(self, error=None):
        self.error = error

    def __enter__(self):
        self.count, self._all_reduce = 0, dist.all_reduce

        def counting(*args, **kwargs):
            self.count += 1
            if self.error is not None:
                raise self.error
            return self._all_reduce(*args, **kwargs)

        dist.all_reduce = counting
        return self

    def __exit__(self, *_):
        dist.all_reduce = self._all_reduce


class Said(logging.Handler):
    """Collects what Sapflow logs while it is entered, instead of letting it reach stderr."""

    def __init__(self, level=logging.WARNING):
        super().__init__(level)
        self.messages = []
        self._logger = logging.getLogger("sapflow")

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        self._logger.addHandler(self)
        self._logger.setLevel(self.level)
        return self

    def __exit__(self, *_):
        self._logger.removeHandler(self)
        self._logger.setLevel(logging.NOTSET)


def alone():
    """What this rank sees of the first epoch by itself."""
    net = make()
    with GradientMonitor({"block": net.block}) as monitor:
        train(net, monitor, global_batches()[:1])
        return monitor.close_epoch()["block"]


@case(2)
def display_drains_stay_local(scratch):
    net = make()
    with GradientMonitor({"block": net.block}, process_group=dist.group.WORLD) as monitor:
        train(net, monitor, global_batches()[:1])
        with Collectives() as collectives:
            drains = [monitor.health()["block"], monitor.latest_health()["block"]] if dist.get_rank() == 0 else []
            samples = monitor.samples(wait=True)["block"].entering if dist.get_rank() == 0 else ()
        combined = monitor.close_epoch()["block"]
    expected = alone()
    return {
        "collectives": collectives.count,
        "local": all(drain.entering_norm == expected.entering_norm for drain in drains),
        "samples": len(samples),
        "combined": combined.entering_norm != expected.entering_norm,
    }


def disagreeing(names, passes):
    net = make()
    watched = {name: getattr(net, name) for name in names}
    with Said() as said, GradientMonitor(watched, process_group=dist.group.WORLD) as monitor:
        for _ in range(2):
            train(net, monitor, global_batches()[:1])
            for _ in range(passes - 1):
                monitor.step()
            health = monitor.close_epoch()["block"]
            net.load_state_dict(make().state_dict())
    expected = alone()
    return {
        "local": (health.entering_norm, health.grad_ratio) == (expected.entering_norm, expected.grad_ratio),
        "said": said.messages,
    }


@case(2)
def other_names_stay_local(scratch):
    return disagreeing(["block", "head"] if dist.get_rank() else ["block"], 1)


@case(2)
def other_passes_stay_local(scratch):
    return disagreeing(["block"], 1 + dist.get_rank())


@case(2)
def a_pass_left_open_on_one_rank(scratch):
    """Not every rank has to have something in the pass that is still open when the epoch closes."""
    net = make()
    ((x, target),) = global_batches()[0]
    x, target = share_of((x, target), 0, 2)
    with GradientMonitor({"block": net.block}, process_group=dist.group.WORLD) as monitor:
        F.mse_loss(net(x), target).backward()
        monitor.step()
        if dist.get_rank() == 1:
            F.mse_loss(net(x), target).backward()
        health = monitor.close_epoch()["block"]
    return {"passes": health.passes}


@case(2)
def a_non_finite_pass_of_one_rank_is_one_of_all(scratch):
    net = make()
    with GradientMonitor({"block": net.block}, process_group=dist.group.WORLD) as monitor:
        for scale in (1.0, math.nan if dist.get_rank() else 1.0):
            x, target = share_of(global_batches()[0][0])
            (F.mse_loss(net(x), target) * scale).backward()
            monitor.step()
        health = monitor.close_epoch()["block"]
    return {"passes": health.passes, "non_finite": health.non_finite_passes, "exploding": health.has_exploding}


@case(2)
def a_rank_outside_the_group(scratch):
    group = dist.new_group([0])
    try:
        GradientMonitor({}, process_group=group).close()
    except InputError as error:
        return {"refused": str(error)}
    return {"refused": ""}


@case(2)
def partial_gradients_without_a_group(scratch):
    """On rank 0 alone, where a collective of its own would block it."""
    net = make()
    parallelize_module(net.block, tensor_mesh(), ROWS_AND_COLUMNS)
    with Said() as said, GradientMonitor({"up": net.block.up} if dist.get_rank() == 0 else {}) as monitor:
        train(net, monitor, global_batches()[:1], rank=0, world=1)
        health = monitor.close_epoch()
    seen = [(of_one.measurement, of_one.measurement_reason) for of_one in health.values()]
    return {"seen": seen, "said": len(said.messages)}


@case(2)
def watching_with_a_group(scratch):
    net, batches = make(), global_batches()
    model = DistributedDataParallel(net)
    run_dir = scratch / "run"
    verdicts = []
    with Said(logging.INFO) as said:
        watcher = watch(
            model,
            ["block", "block.*"],
            run_dir=run_dir,
            process_group=dist.group.WORLD,
            epoch_every=len(batches),
            on_verdict=lambda name, seed: verdicts.append((name, seed)),
        )
        train(model, watcher, batches)
        journal = watcher.run_dir is not None
        watcher.close()
    return compared(dict(verdicts), batches) | {"journal": journal, "epochs": watcher.epochs, "said": said.messages}


def vital_signs(model):
    """As seen over all ranks, and the scale of the block's output by itself; both after one pass."""
    batch = global_batches()[:1]
    with torch.no_grad():
        plain = make()
        x = plain.norm(plain.first(batch[0][0][0]))
        rms = (plain.block(x).square().mean() / x.square().mean()).sqrt().item()
    with watch(model, ["block", "block.*"], process_group=dist.group.WORLD) as watcher:
        train(model, watcher, batch)
        signs = {name: (seed.output_input_rms, seed.parameter_liveness) for name, seed in watcher.epoch().items()}
    return {"signs": signs, "rms": rms}


@case(2)
def vital_signs_ddp(scratch):
    return vital_signs(DistributedDataParallel(make()))


@case(2)
def vital_signs_fsdp(scratch):
    return vital_signs(sharded(make()))


@case(2)
def one_rank_watches_in_fsdp(scratch):
    net = make()
    model = sharded(net)
    signs = []
    with Said():
        watcher = watch(model, "block") if dist.get_rank() == 0 else None
    train(model, None, global_batches())
    if watcher is not None:
        signs = [seed.parameter_liveness for seed in watcher.epoch().values()]
        watcher.close()
    return {"signs": signs}


@case(2)
def ddp_compiled_block(scratch):
    """torch.compile's wrapper is what is measured."""
    net = make()
    net.block = torch.compile(net.block, backend="aot_eager")
    model = DistributedDataParallel(net)
    with warnings.catch_warnings(action="ignore"):  # torch.compile warns about parts of torch
        return measured(model, select(model, "block"), global_batches())


@case(2)
def tensor_parallel_compiled(scratch):
    """Plain tensors enter and leave the block, and every rank holds them whole."""
    net = make()
    parallelize_module(net.block, tensor_mesh(), ROWS_AND_COLUMNS)
    model = torch.compile(net, backend="aot_eager")
    with warnings.catch_warnings(action="ignore"):  # torch.compile warns about parts of torch
        return measured(model, {"block": net.block}, global_batches(), rank=0, world=1)


@case(2)
def watching_a_rank_alone(scratch):
    with Said(logging.INFO) as said:
        watch(make(), "block").close()
    return {"said": said.messages}


@case(2)
def an_error_in_the_loop_meets_nobody(scratch):
    net = make()
    with Collectives() as collectives:
        try:
            with watch(net, "block", process_group=dist.group.WORLD) as watcher:
                train(net, watcher, global_batches()[:1])
                raise KeyError("the user's own")
        except KeyError:
            pass
    return {"collectives": collectives.count, "epochs": watcher.epochs}


@case(2)
def watching_again_into_a_directory_meets_nobody(scratch):
    net = make()
    with Collectives() as collectives:
        first = watch(net, "block", run_dir=scratch / "again", process_group=dist.group.WORLD)
        train(net, first, global_batches()[:1])
        with watch(net, "block", run_dir=scratch / "again", process_group=dist.group.WORLD):
            pass
        first._close_alone()  # rank 1 has no directory, so nothing has closed its first watcher
    return {"collectives": collectives.count}


@case(2)
def a_collective_that_raises(scratch):
    net = make()
    monitor = GradientMonitor({"block": net.block}, process_group=dist.group.WORLD)
    with Said() as said, Collectives(RuntimeError("no network")) as collectives, monitor:
        for _ in range(2):
            train(net, monitor, global_batches()[:1])
            health = monitor.close_epoch()["block"]
            net.load_state_dict(make().state_dict())
    local = health.entering_norm == alone().entering_norm
    return {"local": local, "said": said.messages, "collectives": collectives.count}


def plain_seed(shape):
    return nn.Linear(WIDTH, WIDTH)


class Gardener:
    """Germinates before the first epoch, then takes the seed through its life; each rank would choose its own birth."""

    def decide(self, outcome, actions):
        stages = {1: SeedStage.BLENDING, 2: SeedStage.HOLDING, 3: SeedStage.FOSSILIZED}
        slot = actions.slots["block"]
        if outcome.epoch == 0:
            torch.manual_seed(dist.get_rank())
            actions.germinate(0, slot, Blueprint("test", 2, plain_seed, calibrated=False))
            actions.advance(0, slot, SeedStage.TRAINING, "test")
        elif outcome.epoch in stages:
            slot.state.sound_epochs = 2
            actions.advance(outcome.epoch, slot, stages[outcome.epoch], "test")


def train_share(growth, optimizer):
    """An epoch of this rank's shares of the global batches."""
    for (batch,) in global_batches():
        x, target = share_of(batch)
        optimizer.zero_grad()
        growth.loss(lambda net: F.mse_loss(net(x), target)).backward()  # noqa: B023
        optimizer.step()


@case(2)
def growing(scratch):
    """After every step all ranks hold the same seed, which one process would hold that trains on the global batch."""

    def grown(model, batches, accuracy):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        sgd = lambda seed: torch.optim.SGD(seed.parameters(), lr=RATE)  # noqa: E731
        how = SeedTraining(blending_steps=len(batches), make_optimizer=sgd)
        growth = grow(model, {"block": "after"}, optimizer=optimizer, controller=Gardener(), training=how)
        weights = []
        for _ in range(4):
            for x, target in batches:
                optimizer.zero_grad()
                growth.loss(lambda net, x=x, target=target: F.mse_loss(net(x), target)).backward()
                optimizer.step()
                weights.append([p.tolist() for p in growth.actions.slots["block"].seed.parameters()])
            said = growth.epoch(lambda net: accuracy, train_loss=accuracy / 10)
        (seed,) = said.seeds
        how_it_does = {"accuracy": said.accuracy, "train_loss": said.train_loss}
        return {"weights": weights, "stage": seed.stage, "ratio": seed.grad_ratio} | how_it_does

    batches, rank = [batch for (batch,) in global_batches()], dist.get_rank()
    outcome = grown(DistributedDataParallel(make()), [share_of(batch) for batch in batches], 10.0 + rank)
    with Said():  # that it grows alone
        return outcome | ({"alone": grown(make(), batches, 10.5)} if rank == 0 else {})


@case(2)
def growing_inside_of_ddp(scratch):
    model = DistributedDataParallel(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    said = []
    for grown in (model, model.module):
        with Said() as messages:
            grow(grown, {"block": "after"}, optimizer=optimizer).close()
        said.append(messages.messages)
    return {"said": said}


class Forked(nn.Module):
    """Its batch takes another way on each rank."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        return self.ways[0 if x.is_meta else dist.get_rank()](x)


@case(2)
def a_seed_that_ranks_use_in_part(scratch):
    """And what one of them cannot germinate, the other does not; what a rule asks for is said by the first alone."""
    refused, called = [], []

    def refusing(shape):
        if dist.get_rank() == 1:
            raise RuntimeError("no room")
        return Forked()

    class Trying(Gardener):
        def decide(self, outcome, actions):
            if outcome.epoch == 0:
                try:
                    actions.germinate(0, actions.slots["block"], Blueprint("picky", 2, refusing, calibrated=False))
                except BlueprintError:
                    refused.append(str(actions.slots["block"].state.stage))
                forked = Blueprint("forked", 2, lambda shape: Forked(), calibrated=False)
                actions.germinate(0, actions.slots["block"], forked)
                actions.advance(0, actions.slots["block"], SeedStage.TRAINING, "test")

    model = DistributedDataParallel(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    actions = ("notify", "call:seen")
    rule = Rule(name="any", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1, actions=actions)
    with Said() as said:
        growth = grow(
            model, {"block": "after"}, optimizer=optimizer, controller=Trying(), rules=[rule],
            functions={"seen": called.append},
        )  # fmt: skip
        train_share(growth, optimizer)
        growth.epoch()
        weights = [p.tolist() for p in growth.actions.slots["block"].seed.parameters()]
        growth.close()
    return {"weights": weights, "refused": refused, "said": said.messages, "called": len(called)}


class Breaking(nn.Linear):
    """Fails on the second rank the third time that it runs: in the second of its shadows, as it was born by one run."""

    runs = 0

    def forward(self, x):
        self.runs += not x.is_meta
        if self.runs == 3 and dist.get_rank() == 1:
            raise RuntimeError("no room")
        return super().forward(x)


@case(2)
def a_seed_that_breaks_on_one_rank(scratch):
    """It is pruned on both, and the training goes on."""

    class Planting(Gardener):
        def decide(self, outcome, actions):
            if outcome.epoch == 0:
                breaking = Blueprint("breaking", 2, lambda shape: Breaking(WIDTH, WIDTH), calibrated=False)
                actions.germinate(0, actions.slots["block"], breaking)
                actions.advance(0, actions.slots["block"], SeedStage.TRAINING, "test")

    model = DistributedDataParallel(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with Said() as said:
        growth = grow(model, {"block": "after"}, optimizer=optimizer, controller=Planting())
        train_share(growth, optimizer)
        shadows = growth.epoch().total_shadows
        growth.close()
    (life,) = growth.actions.lives
    return {"pruned": [life.pruned_epoch, life.pruned_by], "shadows": shadows, "said": said.messages}


class Sower(Gardener):
    """Germinates, and leaves the seed where it is."""

    def decide(self, outcome, actions):
        if outcome.epoch == 0:
            super().decide(outcome, actions)


@case(2)
def growing_in_what_is_compiled_around_ddp(scratch):
    """The ranks are those of the DDP model inside."""
    model = torch.compile(DistributedDataParallel(make()), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    growth = grow(model, {"block": "after"}, optimizer=optimizer, controller=Sower())
    with torch.compiler.set_stance("force_eager"):
        train_share(growth, optimizer)
        growth.epoch()
    growth.close()
    return {"weights": [p.tolist() for p in growth.actions.slots["block"].seed.parameters()]}


@case(2)
def asked_by_hand(scratch):
    """Somebody asks the first rank, which alone knows the run directory's mailbox."""
    model, rank = DistributedDataParallel(make()), dist.get_rank()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    growth = grow(model, {"block": "after"}, optimizer=optimizer, run_dir=scratch / "asked", controller=Sower())
    stages = []
    for epoch in (1, 2, 3):
        train_share(growth, optimizer)
        if epoch == 2 and rank == 0:
            fields = {"env_id": 0, "slot_id": "block", "seed_id": "block-1", "by": "ä" * 200}
            for order, action in enumerate(("hold", "prune", "prune")):
                request = Request(request_id=f"r{order}", action=action, asked_at=float(order), **fields)
                Mailbox(growth.run_dir).post(request)
        stages.append(growth.epoch().seeds[0].stage)
    (life,) = growth.actions.lives
    growth.close()
    return {"stages": stages, "pruned": [life.pruned_epoch, life.pruned_by], "kept": growth.run_dir is not None}


@case(2)
def a_peer_that_died(scratch):
    """The last case: rank 1 ends in the middle of the epoch."""
    net = make()
    with Said() as said, GradientMonitor({"block": net.block}, process_group=dist.group.WORLD) as monitor:
        train(net, monitor, global_batches()[:1])
        if dist.get_rank() == 1:
            return {}
        health = monitor.close_epoch()["block"]
    return {"local": health.entering_norm == alone().entering_norm, "said": said.messages}


def main(rank, world, scratch):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # what a Linear returns
    dist.init_process_group(
        "gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=30),
    )  # fmt: skip
    results = {}
    for name, (needs, function) in CASES.items():
        if needs == world:
            try:
                results[name] = function(scratch)
            except BaseException:
                results[name] = {"error": traceback.format_exc()}
    (scratch / f"rank{rank}.json").write_text(json.dumps(results))
    sys.stderr.flush()
    os._exit(0)  # rank 1 leaves without a word: its peer has to live with that


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
