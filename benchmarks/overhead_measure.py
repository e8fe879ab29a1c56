"""How benchmarks/overhead.py measures: pairs of steps with and without, memory, and what the hardware allows."""

import copy
import ctypes
import gc
import multiprocessing
import os
import random
import resource
import statistics
import sys
import threading
import time
import tracemalloc
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import overhead_contenders as ways
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from overhead_contenders import Contender, Subject
from overhead_models import TASKS, Task
from torch import Tensor, nn

from sapflow.gradients.watch import EPOCH_PASSES

FULL_CYCLES = 4  # from so many on, each step of the cycle has a median of its own
WARM_UP = 5
FEW_PAIRS = 10  # in each half of a row
STRIDE = 100  # pairs between two looks at the interval, where there is no cycle
PEAK_STEPS = 20
NARROW = 0.05  # of the effect: an interval of this half-width is narrow enough
FINE = 0.2  # percent of the step: so is this, whatever the effect is
RESAMPLES = 500
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mode:
    name: str
    compiled: bool = False
    bf16: bool = False
    device: str = "cpu"

    def now(self) -> int:
        """Nanoseconds: CPU time of this thread, or, on a GPU, wall time once the device has done what it was given."""
        if self.device == "cpu":
            return time.thread_time_ns()
        torch.cuda.synchronize()
        return time.perf_counter_ns()


EAGER, EAGER_BF16 = Mode("eager, fp32"), Mode("eager, bf16 autocast", bf16=True)
COMPILED, COMPILED_BF16 = Mode("compiled, fp32", compiled=True), Mode("compiled, bf16 autocast", True, True)
ON_A_GPU = (
    Mode("eager, bf16 autocast, GPU", bf16=True, device="cuda"),
    Mode("compiled, bf16 autocast, GPU", compiled=True, bf16=True, device="cuda"),
)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def shown(self, digits: int) -> str:
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Row:
    """One contender on one model in one mode."""

    task: str
    mode: str
    contender: str
    step: float  # µs of the unwatched model
    blocks: int
    pairs: int
    percent: Estimate
    per_block: Estimate  # µs a module and pass
    other_threads: float  # µs a module and pass, in other threads of the process
    measured: bool


def estimate(differences: list[float], cycle: int | None) -> Estimate:
    """The mean difference, not moved by a few disturbed pairs, yet with all that comes once in a cycle in it.

    With enough cycles, each step of the cycle stands with its median over the cycles, and the interval is a bootstrap
    over these; before, and where there is no cycle, it is the plain mean.
    """
    cycles = 0 if cycle is None else len(differences) // cycle
    if cycle is None or cycles < FULL_CYCLES:
        student = 1.96 + 2.37 / (len(differences) - 1)  # the quantile of Student's t, to its first correction
        half = student * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        mean = float(np.mean(differences))
        return Estimate(mean, mean - half, mean + half)
    by_step: NDArray[np.float64] = np.array(differences[: cycles * cycle]).reshape(cycles, cycle)
    mean = float(np.median(by_step, axis=0).mean())
    draw = np.random.default_rng(0)
    means = [
        np.median(np.take_along_axis(by_step, draw.integers(cycles, size=by_step.shape), axis=0), axis=0).mean()
        for _ in range(RESAMPLES)
    ]
    half = 1.96 * float(np.std(means)) * (cycles / (cycles - 1)) ** 0.5  # a bootstrap of few values is too narrow
    return Estimate(mean, mean - half, mean + half)


def mean_of(estimates: list[Estimate]) -> Estimate:
    """The mean of independent estimates."""
    value = statistics.fmean(one.value for one in estimates)
    half = sum(((one.high - one.low) / 2) ** 2 for one in estimates) ** 0.5 / len(estimates)
    return Estimate(value, value - half, value + half)


def step(subject: Subject, forward: Forward, batch: tuple[Tensor, Tensor], mode: Mode) -> None:
    inputs, targets = batch
    subject.optimizer.zero_grad()
    with torch.autocast(mode.device, torch.bfloat16, enabled=mode.bf16):
        loss = F.cross_entropy(forward(inputs).flatten(0, -2), targets.flatten())
    torch.autograd.backward(loss)
    subject.after_backward()
    subject.optimizer.step()
    subject.after_step()


def subjects(task: Task, device: str = "cpu") -> tuple[Subject, Subject, tuple[Tensor, Tensor]]:
    """Two copies of the same model, to be left alone and to be watched, and the data of both."""
    torch.manual_seed(0)
    model = task.make().to(device)
    inputs, targets = task.batch()
    alone, seen = copy.deepcopy(model), copy.deepcopy(model)
    return (
        Subject(alone, task.optimizer(alone), task.cycle),
        Subject(seen, task.optimizer(seen), task.cycle),
        (inputs.to(device), targets.to(device)),
    )


def compiled(model: nn.Module) -> Forward:
    """The model, compiled as if it were the only one: compiled code is looked up by the code that it stands for."""

    def forward(inputs: Tensor) -> Tensor:
        return model(inputs)  # type: ignore[no-any-return]

    own = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return torch.compile(types.FunctionType(own, globals(), closure=forward.__closure__))


def measure(task: Task, mode: Mode, contender: Contender, budget: float) -> Row:
    """Steps of both models in turns, in random order, until the interval is narrow or the budget is spent.

    Half way they change places, since where a model happens to lie in memory makes its steps slower or faster.
    """
    one, other, batch = subjects(task, mode.device)
    blocks = len(list(one.model.get_submodule("blocks").children()))
    halves = [_half(mode, contender, *pair, batch, budget / 2) for pair in ((one, other), (other, one))]
    cost = mean_of([half.cost for half in halves])
    base = statistics.fmean(half.step for half in halves)
    return Row(
        task=task.name,
        mode=mode.name,
        contender=contender.name,
        step=base,
        blocks=blocks,
        pairs=sum(half.pairs for half in halves),
        percent=cost.scaled(100 / base),
        per_block=cost.scaled(1 / blocks),
        other_threads=statistics.fmean(half.other_threads for half in halves) / blocks,
        measured=all(half.measured for half in halves),
    )


@dataclass(frozen=True)
class _Half:
    """What one of two models costs more with the contender than the other without; µs a step."""

    cost: Estimate
    step: float
    pairs: int
    other_threads: float
    measured: bool


def _half(
    mode: Mode, contender: Contender, alone: Subject, seen: Subject, batch: tuple[Tensor, Tensor], budget: float
) -> _Half:
    if mode.compiled:
        torch._dynamo.reset()
    with contender.attach(seen):
        runners: list[tuple[Subject, Forward]] = [
            (subject, compiled(subject.model) if mode.compiled else subject.model) for subject in (alone, seen)
        ]
        for _ in range(WARM_UP):
            for subject, forward in runners:
                step(subject, forward, batch, mode)
        cycle = None if contender.by_the_clock else max(contender.cycle, seen.cycle)
        times, other_threads = _pairs(runners, batch, mode, budget, cycle)
    passes = (len(times) + WARM_UP) // contender.every
    blocks = len(list(seen.model.get_submodule("blocks").children()))
    return _Half(
        estimate([after - before for before, after in times], cycle),
        float(np.median([before for before, _ in times])),
        len(times),
        other_threads,
        not contender.is_sapflow or (len(seen.measured) == blocks and min(seen.measured.values()) >= passes),
    )


def _pairs(
    runners: list[tuple[Subject, Forward]], batch: tuple[Tensor, Tensor], mode: Mode, budget: float, cycle: int | None
) -> tuple[list[tuple[float, float]], float]:
    """What the steps of each pair took, µs, and what other threads of the process used, µs a pair."""
    order = random.Random(0)
    times: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        deadline = time.monotonic() + budget
        of_process, of_thread = time.process_time_ns(), time.thread_time_ns()
        while time.monotonic() < deadline or len(times) < FEW_PAIRS:
            took = [0.0, 0.0]
            for which in order.sample((0, 1), 2):
                began = mode.now()
                step(*runners[which], batch, mode)
                took[which] = (mode.now() - began) / 1e3
            times.append((took[0], took[1]))
            if len(times) % (cycle or STRIDE) == 0 and narrow(times, cycle):
                break
        others = (time.process_time_ns() - of_process) - (time.thread_time_ns() - of_thread)
    finally:
        gc.enable()
    return times, others / 1e3 / len(times)


def narrow(times: list[tuple[float, float]], cycle: int | None) -> bool:
    """Whether the interval of both halves will be narrow beside the effect, or narrow enough for any."""
    cost = estimate([after - before for before, after in times], cycle)
    fine = FINE / 100 * float(np.median([before for before, _ in times]))
    return (cost.high - cost.low) / 2 <= 2**0.5 * max(abs(cost.value) * NARROW, fine)


@dataclass(frozen=True)
class Memory:
    """What watching adds, bytes, and what stays alive after a step."""

    task: str
    python: float  # with each module more
    tensors: float  # likewise
    once: float  # for the watcher itself, however many modules it has
    activations_alive: int
    peak_alone: float  # MiB
    peak_watched: float


def memory(task: Task) -> Memory:
    """Bytes that are in use after most of an epoch of watching and were not before."""
    _, subject, batch = subjects(task)
    blocks = list(subject.model.get_submodule("blocks").children())
    outputs: list[weakref.ref[Tensor]] = []
    _growth(subject, batch, ways.SAPFLOW)  # what is imported, cached or kept for reuse once is nobody's
    tracemalloc.start()
    of_training = _growth(subject, batch, ways.NOTHING)[0]
    one, one_tensors = _growth(subject, batch, ways.SAPFLOW_ON_ONE)
    with ExitStack() as watching:
        every, every_tensors = _growth(subject, batch, ways.SAPFLOW, watching)
        for block in blocks:
            block.register_forward_hook(lambda _module, _args, output: outputs.append(weakref.ref(output)))
        step(subject, subject.model, batch, EAGER)
        alive = sum(output() is not None for output in outputs)
    tracemalloc.stop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = [pool.submit(peak_mebibytes, task.name, watched).result() for watched in (False, True)]
    python, tensors = (every - one) / (len(blocks) - 1), (every_tensors - one_tensors) / (len(blocks) - 1)
    once = one + one_tensors - of_training - python - tensors
    return Memory(task.name, python, tensors, once, alive, *peaks)


def _growth(
    subject: Subject, batch: tuple[Tensor, Tensor], contender: Contender, stays: ExitStack | None = None
) -> tuple[int, int]:
    """Bytes of Python objects and of tensors that are in use after steps with a contender, which may stay attached."""
    tensors, in_use = _tensor_bytes(), _in_use()  # in this order: to look at a tensor's memory makes an object of it
    with ExitStack() as attached:
        (attached if stays is None else stays).enter_context(contender.attach(subject))
        for _ in range(EPOCH_PASSES - 1):
            step(subject, subject.model, batch, EAGER)
        more = _in_use() - in_use
        return more, _tensor_bytes() - tensors


def _in_use() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _tensor_bytes() -> int:
    """Bytes of the storages of all tensors that are alive."""
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_mebibytes(task_name: str, watched: bool) -> float:
    """The peak of a process's memory over some steps; to be called in a process of its own."""
    prepare()
    _, subject, batch = subjects(TASKS[task_name])
    with (ways.SAPFLOW if watched else ways.NOTHING).attach(subject):
        for _ in range(PEAK_STEPS):
            step(subject, subject.model, batch, EAGER)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Limit:
    """What the two gradients of a module come to."""

    task: str
    bytes_per_block: float
    read: float  # µs to read them once from memory
    norms: float  # µs of two plain norms over tensors of that size, which are in the cache


def limit(task: Task, speed: float) -> Limit:
    """`speed`: bytes that are read in a second."""
    _, subject, batch = subjects(task)
    sizes: list[tuple[Tensor, Tensor]] = []
    blocks = list(subject.model.get_submodule("blocks").children())
    for block in blocks:
        block.register_forward_hook(lambda _module, args, output: sizes.append((args[0], output)))
    step(subject, subject.model, batch, EAGER)
    per_block = sum(entered.nbytes + left.nbytes for left, entered in sizes) / len(blocks)
    pairs = [(torch.randn(left.shape), torch.randn(entered.shape)) for left, entered in sizes]
    norms = [_timed(torch.linalg.vector_norm, tensor) for pair in pairs for tensor in pair]
    return Limit(task.name, per_block, per_block / speed * 1e6, sum(norms) / len(blocks))


def _timed(work: Callable[..., object], *args: Any) -> float:
    """The median thread CPU time of a call, µs."""
    times = []
    for _ in range(50):
        began = time.thread_time_ns()
        work(*args)
        times.append((time.thread_time_ns() - began) / 1e3)
    return float(np.median(times))


def bandwidth() -> float:
    """Bytes a second at which one thread reads a tensor far larger than the caches, by its norm."""
    large = torch.ones(1 << 26)
    return large.nbytes / _timed(torch.linalg.vector_norm, large) * 1e6


def backward_is_ours() -> bool:
    """Whether the backward pass runs in the calling thread, so that its CPU time is that thread's."""
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(threading.get_ident()))
    torch.autograd.backward(x.sum())
    return seen == [threading.get_ident()]


def prepare() -> None:
    """One thread, and an allocator that keeps its pages: page faults are a tenth of some steps, and never the same.

    On Linux the thread stays on one core, too: wherever it moves to, its caches are cold.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30)
