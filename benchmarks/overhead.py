"""Measures what watching gradients costs, against the same model unwatched; writes docs/performance.md.

    python benchmarks/overhead.py --write docs/performance.md

Needs the dependency group `bench`, and about `--budget` seconds a row.
"""

import argparse
import copy
import ctypes
import gc
import multiprocessing
import os
import platform
import random
import resource
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import overhead_contenders as ways
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from overhead_contenders import Contender, Subject
from overhead_models import CHECKPOINTED, CNN, GPT, MLP, TRANSFORMER, Task
from torch import Tensor, nn

CYCLE = 100  # steps after which everything that comes now and then has come: an epoch's end, a log_freq of 100
FULL_CYCLES = 4  # from so many on, each step of the cycle has a median of its own
WARM_UP = 5
FINE = 0.15  # percent: an interval of this half-width is narrow enough whatever the effect is
RESAMPLES = 500
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
TASKS = {task.name: task for task in (MLP, CNN, TRANSFORMER, GPT, CHECKPOINTED)}


@dataclass(frozen=True)
class Mode:
    name: str
    compiled: bool = False
    bf16: bool = False


EAGER, EAGER_BF16 = Mode("eager, fp32"), Mode("eager, bf16 autocast", bf16=True)
COMPILED, COMPILED_BF16 = Mode("compiled, fp32", compiled=True), Mode("compiled, bf16 autocast", True, True)

FEW = [ways.NOTHING, ways.SAPFLOW, ways.HOOKS]
BARE = [ways.NOTHING, ways.SAPFLOW]
TABLES: list[tuple[Task, Mode, list[Contender]]] = [
    *((task, EAGER, ways.EVERYTHING) for task in (MLP, CNN, TRANSFORMER, GPT)),
    (CHECKPOINTED, EAGER, BARE),  # full backward hooks do not see the recomputed forward's graph as one call
    *((task, EAGER_BF16, FEW) for task in (MLP, CNN, TRANSFORMER, GPT)),
    *((task, mode, BARE) for mode in (COMPILED, COMPILED_BF16) for task in (MLP, CNN, TRANSFORMER, GPT)),
]


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


def estimate(differences: list[float]) -> Estimate:
    """The mean difference, not moved by a few disturbed pairs, yet with all that comes once in a cycle in it.

    With enough cycles, each step of the cycle stands with its median over the cycles, and the interval is a bootstrap
    over these; before, it is the plain mean.
    """
    cycles = len(differences) // CYCLE
    if cycles < FULL_CYCLES:
        half = 1.96 * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        mean = float(np.mean(differences))
        return Estimate(mean, mean - half, mean + half)
    by_step: NDArray[np.float64] = np.array(differences[: cycles * CYCLE]).reshape(cycles, CYCLE)
    mean = float(np.median(by_step, axis=0).mean())
    draw = np.random.default_rng(0)
    means = [
        np.median(np.take_along_axis(by_step, draw.integers(cycles, size=by_step.shape), axis=0), axis=0).mean()
        for _ in range(RESAMPLES)
    ]
    half = 1.96 * float(np.std(means)) * (cycles / (cycles - 1)) ** 0.5  # a bootstrap of few values is too narrow
    return Estimate(mean, mean - half, mean + half)


def step(subject: Subject, forward: nn.Module, batch: tuple[Tensor, Tensor], mode: Mode) -> None:
    inputs, targets = batch
    subject.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode.bf16):
        loss = F.cross_entropy(forward(inputs).flatten(0, -2), targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    subject.after_backward()
    subject.optimizer.step()
    subject.after_step()


def subjects(task: Task) -> tuple[Subject, Subject, tuple[Tensor, Tensor]]:
    """Two copies of the same model, to be left alone and to be watched, and the data of both."""
    torch.manual_seed(0)
    model = task.make()
    alone, seen = copy.deepcopy(model), copy.deepcopy(model)
    return Subject(alone, task.optimizer(alone)), Subject(seen, task.optimizer(seen)), task.batch()


def measure(task: Task, mode: Mode, contender: Contender, budget: float) -> Row:
    """Steps of both models in turns, in random order, until the interval is narrow or the budget is spent."""
    alone, seen, batch = subjects(task)
    blocks = len(list(alone.model.get_submodule("blocks").children()))
    torch._dynamo.reset()
    with contender.attach(seen):
        runners = [
            (subject, torch.compile(subject.model) if mode.compiled else subject.model) for subject in (alone, seen)
        ]
        for _ in range(WARM_UP):
            for subject, forward in runners:
                step(subject, forward, batch, mode)
        times, other_threads = _pairs(runners, batch, mode, budget)
    differences, base = [after - before for before, after in times], float(np.median([before for before, _ in times]))
    cost = estimate(differences)
    passes = (len(times) + WARM_UP) / contender.every
    return Row(
        task=task.name,
        mode=mode.name,
        contender=contender.name,
        step=base,
        blocks=blocks,
        pairs=len(times),
        percent=cost.scaled(100 / base),
        per_block=cost.scaled(1 / blocks),
        other_threads=other_threads / blocks,
        measured=not contender.is_sapflow
        or (len(seen.measured) == blocks and min(seen.measured.values()) >= int(passes)),
    )


def _pairs(
    runners: list[tuple[Subject, nn.Module]], batch: tuple[Tensor, Tensor], mode: Mode, budget: float
) -> tuple[list[tuple[float, float]], float]:
    """Thread CPU time of the steps of each pair, µs, and what other threads of the process used, µs a pair."""
    order = random.Random(0)
    times: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    try:
        deadline = time.monotonic() + budget
        of_process, of_thread = time.process_time_ns(), time.thread_time_ns()
        while time.monotonic() < deadline:
            took = [0.0, 0.0]
            for which in order.sample((0, 1), 2):
                began = time.thread_time_ns()
                step(*runners[which], batch, mode)
                took[which] = (time.thread_time_ns() - began) / 1e3
            times.append((took[0], took[1]))
            if len(times) % CYCLE == 0 and narrow(times):
                break
        others = (time.process_time_ns() - of_process) - (time.thread_time_ns() - of_thread)
    finally:
        gc.enable()
    return times, others / 1e3 / len(times)


def narrow(times: list[tuple[float, float]]) -> bool:
    """Whether the interval is narrower than half the effect, or than what is fine for any."""
    cost = estimate([after - before for before, after in times])
    fine = FINE / 100 * float(np.median([before for before, _ in times]))
    return (cost.high - cost.low) / 2 <= max(abs(cost.value) / 2, fine)


@dataclass(frozen=True)
class Memory:
    """What watching adds, a module, and what stays alive after a step."""

    task: str
    blocks: int
    python: float
    tensors: float
    activations_alive: int
    peak_alone: float  # MiB
    peak_watched: float


def memory(task: Task) -> Memory:
    """Bytes that are in use after most of an epoch of watching and were not before."""
    _, subject, batch = subjects(task)
    blocks = list(subject.model.get_submodule("blocks").children())
    outputs: list[weakref.ref[Tensor]] = []
    for _ in range(WARM_UP):
        step(subject, subject.model, batch, EAGER)
    tracemalloc.start()
    in_use, tensors = _in_use(), _tensor_bytes()
    with ways.SAPFLOW.attach(subject):
        for _ in range(CYCLE - 1):
            step(subject, subject.model, batch, EAGER)
        more, more_tensors = _in_use() - in_use, _tensor_bytes() - tensors
        for block in blocks:
            block.register_forward_hook(lambda _module, _args, output: outputs.append(weakref.ref(output)))
        step(subject, subject.model, batch, EAGER)
        alive = sum(output() is not None for output in outputs)
    tracemalloc.stop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = [pool.submit(peak_mebibytes, task.name, watched).result() for watched in (False, True)]
    return Memory(task.name, len(blocks), more / len(blocks), more_tensors / len(blocks), alive, *peaks)


def _in_use() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _tensor_bytes() -> int:
    """Bytes of the storages of all tensors that are alive."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_mebibytes(task_name: str, watched: bool) -> float:
    """The peak of a process's memory over some steps; to be called in a process of its own."""
    prepare()
    _, subject, batch = subjects(TASKS[task_name])
    with (ways.SAPFLOW if watched else ways.NOTHING).attach(subject):
        for _ in range(20):
            step(subject, subject.model, batch, EAGER)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Limit:
    """What the two gradients of a module come to."""

    task: str
    bytes_per_block: float
    read: float  # µs to read them once from memory
    norms: float  # µs of two plain norms over tensors of that size, which are in the cache


def limit(task: Task, bandwidth: float) -> Limit:
    _, subject, batch = subjects(task)
    sizes: list[tuple[Tensor, Tensor]] = []
    blocks = list(subject.model.get_submodule("blocks").children())
    for block in blocks:
        block.register_forward_hook(lambda _module, args, output: sizes.append((args[0], output)))
    step(subject, subject.model, batch, EAGER)
    per_block = sum(entered.nbytes + left.nbytes for left, entered in sizes) / len(blocks)
    pairs = [(torch.randn(left.shape), torch.randn(entered.shape)) for left, entered in sizes]
    norms = min(
        _timed(lambda left=left, entered=entered: (torch.linalg.vector_norm(left), torch.linalg.vector_norm(entered)))
        for left, entered in pairs
    )
    return Limit(task.name, per_block, per_block / bandwidth * 1e6, norms)


def _timed(work: object) -> float:
    """The median thread CPU time of a call, µs."""
    assert callable(work)
    times = []
    for _ in range(50):
        began = time.thread_time_ns()
        work()
        times.append((time.thread_time_ns() - began) / 1e3)
    return float(np.median(times))


def bandwidth() -> float:
    """Bytes a second at which one thread reads a tensor far larger than the caches, by its norm."""
    large = torch.ones(1 << 26)
    return large.nbytes / _timed(lambda: torch.linalg.vector_norm(large)) * 1e6


def backward_thread_is_ours() -> bool:
    """Whether the backward pass runs in the calling thread, so that its CPU time is that thread's."""
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(threading.get_ident()))
    x.sum().backward()  # type: ignore[no-untyped-call]
    return seen == [threading.get_ident()]


def prepare() -> None:
    """One thread, and an allocator that keeps its pages: page faults are a tenth of some steps, and never the same."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30)


def table(task: Task, mode: Mode, rows: list[Row]) -> str:
    """The rows of one model in one mode, in Markdown."""
    lines = [
        f"### {task.name}, {mode.name}",
        "",
        f"{task.sizes[0].upper()}{task.sizes[1:]}. A step takes {rows[0].step / 1e3:.1f} ms.",
        "",
        "| contender | % of a step | µs a module and pass | µs in other threads | pairs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        numbers = (
            f"{row.percent.shown(2)} | {row.per_block.shown(1)} | {row.other_threads:.1f}"
            if row.measured
            else "not measured | not measured | –"
        )
        lines.append(f"| {row.contender} | {numbers} | {row.pairs} |")
    return "\n".join(lines)


def aims(rows: Iterable[Row], memories: list[Memory]) -> str:
    """What the project set itself, and whether it is so."""
    found = {(row.task, row.mode, row.contender): row for row in rows}
    lines = ["| aim | measured | |", "| --- | ---: | --- |"]

    def line(aim: str, value: str, met: bool) -> None:
        lines.append(f"| {aim} | {value} | {'met' if met else '**missed**'} |")

    for (task, mode, name), row in found.items():
        if name != ways.SAPFLOW.name:
            continue
        heading = f"{task}, {mode}"
        if not row.measured:
            line(f"{heading}: measured in every step", "not measured", met=False)
        elif "compiled" in mode:
            noise = found[task, mode, ways.NOTHING.name].percent
            apart = row.percent.low > noise.high
            line(
                f"{heading}: within the noise of A/A", f"{row.percent.shown(2)} % against {noise.shown(2)} %", not apart
            )
        else:
            aim = 3 if task in (MLP.name, CNN.name) else 1
            line(f"{heading}: ≤ {aim} %", f"{row.percent.high:.2f} %", row.percent.high <= aim)
        for other, times in ((ways.HOOKS, 2.5), (ways.WANDB_1, 20.0)):
            rival = found.get((task, mode, other.name))
            if rival is not None and row.measured:
                factor = rival.per_block.low / row.per_block.high
                line(f"{heading}: {times:g} times below {other.name}", f"{factor:.1f} times", factor >= times)
    for one in memories:
        kibibytes = (one.python + one.tensors) / 1024
        line(f"{one.task}: ≤ 16 KiB more a module", f"{kibibytes:.1f} KiB", kibibytes <= 16)
        line(f"{one.task}: no activation kept alive", str(one.activations_alive), one.activations_alive == 0)
    return "\n".join(lines)


def page(budget: float, tables: list[tuple[Task, Mode, list[Row]]], memories: list[Memory]) -> str:
    speed = bandwidth()
    limits = "\n".join(
        f"| {one.task} | {one.bytes_per_block / 1024:.0f} | {one.read:.1f} | {one.norms:.1f} |"
        for one in (
            limit(task, speed) for task in dict.fromkeys(task.name for task, _, _ in tables) for task in [TASKS[task]]
        )
    )
    memory_rows = "\n".join(
        f"| {one.task} | {one.python / 1024:.1f} | {one.tensors / 1024:.1f} | {one.activations_alive} |"
        f" {one.peak_alone:.0f} | {one.peak_watched:.0f} |"
        for one in memories
    )
    results = "\n\n".join(table(*one) for one in tables)
    return f"""# What watching costs

Written by `python benchmarks/overhead.py --write docs/performance.md` (`make overhead`), with a budget of {budget:g}
seconds a row, on {os.cpu_count()} {platform.machine()} cores shared with other work, Python {platform.python_version()},
torch {torch.__version__}. Only CPUs were measured.

## Method

1. Two deep copies of a model, the same data; one is left alone, the contender is on the other, on every block and pass.
   A step is zero_grad, forward, loss, backward and the optimizer's step; for `wandb.watch` also an empty `run.log`.
2. One thread; {"thread CPU time, in which the backward pass is" if backward_thread_is_ours() else "the backward pass runs in a thread that was not timed"}. The steps
   alternate in random order; no garbage collection within them; the allocator keeps its pages.
3. The effect is the mean of the paired differences; from {FULL_CYCLES * CYCLE} pairs on, of the medians of each step of a cycle of {CYCLE}, so that
   what comes once in {CYCLE} steps (the end of an epoch) counts in full, and a disturbed step does not. Below {CYCLE} pairs it may be missing.
4. A row ends when the half-width of its 95 % interval is below half the effect or {FINE} %, or with its budget. "Nothing
   (A/A)" is the model against its own copy: the noise floor.
5. A Sapflow row counts only if its own telemetry says that every block was measured in every step. The last column but
   one is CPU time of other threads of the process (a journal's); other processes (wandb's) are not in the table.

## Aims

Upper ends of intervals; factors are the other's lower end over Sapflow's upper end.

{aims((row for _, _, rows in tables for row in rows), memories)}

## The limit

Each norm reads its gradient once. One thread reads {speed / 1e9:.1f} GB/s from memory here; a gradient that was just made
may still be in the cache. The last column is two calls of `vector_norm` on tensors of that size and nothing else.

| model | KiB of the two gradients of a module | µs to read them from memory | µs of two norms |
| --- | ---: | ---: | ---: |
{limits}

## Memory

What is in use after {CYCLE - 1} watched steps and was not before, a module (tracemalloc, and the storages of live tensors); block
outputs that are still alive after a step; and the peak of a process that runs 20 steps, alone and watched.

| model | KiB of Python objects | KiB of tensors | activations alive | peak alone, MiB | peak watched, MiB |
| --- | ---: | ---: | ---: | ---: | ---: |
{memory_rows}

## Results

{results}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds a row, at most")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    parser.add_argument("--only", default="", help="tables whose title contains this, such as 'MLP, eager'")
    options = parser.parse_args()
    prepare()
    chosen = [(task, mode, them) for task, mode, them in TABLES if options.only in f"{task.name}, {mode.name}"]
    tables = []
    for task, mode, contenders in chosen:
        rows = []
        for contender in contenders:
            rows.append(measure(task, mode, contender, options.budget))
            row = rows[-1]
            print(
                f"{task.name}, {mode.name}, {row.contender}: {row.percent.shown(2)} %, {row.pairs} pairs",
                file=sys.stderr,
            )
        tables.append((task, mode, rows))
    memories = [memory(task) for task in (MLP, TRANSFORMER) if any(task is one for one, _, _ in chosen)]
    text = page(options.budget, tables, memories)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
