"""The page that benchmarks/overhead.py writes: docs/performance.md."""

import os
import platform
from collections.abc import Iterable

import overhead_contenders as ways
import torch
from overhead_inside import CYCLES, Inside
from overhead_measure import (
    FINE,
    FULL_CYCLES,
    NARROW,
    PEAK_STEPS,
    Memory,
    Mode,
    Row,
    backward_is_ours,
    bandwidth,
    limit,
)
from overhead_models import CNN, MLP, TASKS, Task

from sapflow.gradients.watch import EPOCH_PASSES


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


def verdict(reached: bool, out_of_reach: bool) -> str:
    """What an interval says of an aim."""
    return "met" if reached else "**missed**" if out_of_reach else "open: the interval is too wide to tell"


def aims(rows: Iterable[Row], memories: list[Memory]) -> str:
    """What the project set itself, and whether it is so."""
    found = {(row.task, row.mode, row.contender): row for row in rows}
    lines = ["| aim | measured | |", "| --- | ---: | --- |"]

    def line(aim: str, value: str, said: str) -> None:
        lines.append(f"| {aim} | {value} | {said} |")

    for (task, mode, name), row in found.items():
        if name != ways.SAPFLOW.name:
            continue
        heading, cost = f"{task}, {mode}", row.percent
        if not row.measured:
            line(f"{heading}: measured in every step", "not measured", "**missed**")
        elif "compiled" in mode:
            noise = found[task, mode, ways.NOTHING.name].percent
            apart = cost.low > noise.high
            shown = f"{cost.shown(2)} % against {noise.shown(2)} %"
            line(f"{heading}: within the noise of A/A", shown, verdict(not apart, apart))
        else:
            aim = 3 if task in (MLP.name, CNN.name) else 1
            line(f"{heading}: ≤ {aim} %", f"{cost.shown(2)} %", verdict(cost.high <= aim, cost.low > aim))
        for other, times in ((ways.HOOKS, 2.5), (ways.WANDB_1, 20.0)):
            rival = found.get((task, mode, other.name))
            if rival is not None and row.measured:
                ours, theirs = row.per_block, rival.per_block
                shown = f"{theirs.value / ours.value:.1f} times" if ours.low > 0 and theirs.low > 0 else "–"
                said = verdict(theirs.low >= times * ours.high > 0, theirs.high < times * ours.low)
                line(f"{heading}: {times:g} times below {other.name}", shown, said)
    for one in memories:
        kibibytes = (one.python + one.tensors) / 1024
        line(f"{one.task}: ≤ 16 KiB more a module", f"{kibibytes:.1f} KiB", verdict(kibibytes <= 16, True))
        alive = one.activations_alive
        line(f"{one.task}: no activation kept alive", str(alive), verdict(alive == 0, True))
    return "\n".join(lines)


def timed_inside(insides: Iterable[Inside]) -> str:
    """What Sapflow's own code takes, in Markdown."""
    lines = ["| model | % of a step | µs a module and pass |", "| --- | ---: | ---: |"]
    for one in insides:
        mean, low, high = one.percent
        lines.append(f"| {one.task} | {mean:.2f} [{low:.2f}, {high:.2f}] | {sum(one.own) / CYCLES / one.blocks:.1f} |")
    return "\n".join(lines)


def page(
    minutes: float, tables: list[tuple[Task, Mode, list[Row]]], memories: list[Memory], insides: list[Inside]
) -> str:
    """docs/performance.md."""
    speed = bandwidth()
    clock = (
        "the calling thread, where the backward pass runs too" if backward_is_ours() else "**not the backward pass**"
    )
    limits = "\n".join(
        f"| {one.task} | {one.bytes_per_block / 1024:.0f} | {one.read:.1f} | {one.norms:.1f} |"
        for one in (
            limit(TASKS[name], speed)
            for name in dict.fromkeys(task.name for task, mode, _ in tables if mode.device == "cpu")
        )
    )
    memory_rows = "\n".join(
        f"| {one.task} | {one.python / 1024:.1f} | {one.tensors / 1024:.1f} | {one.once / 1024:.1f} |"
        f" {one.activations_alive} | {one.peak_alone:.0f} | {one.peak_watched:.0f} |"
        for one in memories
    )
    results = "\n\n".join(table(*one) for one in tables)
    gpu = f"The GPU is one {torch.cuda.get_device_name()}." if torch.cuda.is_available() else "Only CPUs were measured."
    return f"""# What watching costs

Written by `python benchmarks/overhead.py --write docs/performance.md` (`make overhead`) within {minutes:g} minutes, on
{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, torch {torch.__version__}.
{gpu} What comes after the journal has pages of its own: [looking](sanctum-performance.md),
[keeping and asking](history-performance.md), [exporting](exporters-performance.md).

## Method

1. Two deep copies of a model get the same data; one is left alone, the other has the contender on every block, in every
   pass. A step is zero_grad, forward, loss, backward, optimizer step; for `wandb.watch` also an empty `run.log`.
2. One thread. Time is CPU time of {clock};
   on a GPU it is wall time until the device has finished the step. The steps alternate in random order, garbage
   collection waits, and the allocator keeps its pages. Compiled, each model has code of its own. What comes by the
   clock (a journal's samples) comes twice as often a step as in a run of its own, since the other model's steps take
   time too.
3. The effect is the mean of the paired differences over a cycle of steps: 100, which is an epoch of watching by
   default, or 20 where steps are long, with an epoch closed in each. From {FULL_CYCLES} cycles on, each step of it
   stands with its median over the cycles: a disturbed step does not count, and what comes once in a cycle counts in
   full. With fewer, and with a journal, it is the plain mean. Half way the models change places, since where one
   happens to lie in memory makes its steps slower or faster by up to 0.5 %; the effect is the mean of both halves.
4. A row ends when the half-width of its 95 % interval is below {100 * NARROW:.0f} % of the effect or {FINE} % of the
   step, or when its share of the time is up. "Nothing (A/A)" is the model against its own copy: the noise floor.
5. A Sapflow row has numbers only if its own telemetry says that every block was measured in every step. "Other threads"
   is the CPU time of the process outside the timed thread; that of other processes (wandb has one) is not in the table.

## Aims

An aim is met where the whole interval meets it, and missed where none of it does; a factor is that of the means, its
interval from the lower end of the other's over the upper end of Sapflow's to the opposite.

{aims((row for _, _, rows in tables for row in rows), memories)}

## The limit

A norm reads its gradient once. One thread reads {speed / 1e9:.1f} GB/s from memory here; a gradient that was just made
may still be in the cache. The last column is two calls of `vector_norm` on hot tensors of that size and nothing else.

| model | KiB of the two gradients of a module | µs to read them from memory | µs of two norms |
| --- | ---: | ---: | ---: |
{limits}

What it is made of shows in the results: "an alias and two empty hooks" is what Python and autograd take before
anything is measured, in every step with its code out of the cache; "two norms that nobody keeps" adds the limit above
as it is in a real step, and "in C++" does the same without Python. What Sapflow costs beyond these is adding to a cell,
closing the pass, and what is derived.

Compiled, the sum of squares is a loop of its own in the kernel that comes next, since what makes the gradient is a
matrix product or a convolution: there, too, each gradient is read once more than without. In bf16 steps are shorter and
hooks are not, and a norm takes longer than in fp32, since every number is converted.

Kept, since it lowered that: hooks on graph nodes instead of tensors; the norm of a gradient that leaves one module and
enters the next taken once; on the CPU, cells that are written as numbers in memory and not by operations; on
accelerators, eight modules closed by two kernels; a ring that travels to the host a block at a time; a norm in two
stages for large tensors, in the order of memory; one small tensor for the activations of a module that is compiled.

Tried, and left out: norms of small gradients gathered and taken by one `_foreach_norm` (1 µs less a gradient, and every
gradient lives longer, in the way of autograd, which would add to it in place, and of whoever changes it); `torch.dot`
(a fifth faster on large fp32 tensors, 3e-3 off on 5e7 numbers, and several times slower on bf16); hooks put on a node
by way of a tensor's (3 µs less a module where caches are hot, but they see a gradient before the user's own hooks have
changed it, and fire for gradients that are only asked for); hooks in C++, which save no more than "these again, in C++"
is below "two norms that nobody keeps", and would take a compiler on every machine that trains.

## Timed from within

Where a step is long, the difference of two models is lost in what the machine does meanwhile. What Sapflow's own code
takes is not: its hooks, and what closes a pass and an epoch, each timed where it runs, over {CYCLES} epochs (the mean,
the lowest and the highest). That is without the calls that lead there, the alias's node, and the caches that all of it
takes from the model: what these come to shows where steps are short.

{timed_inside(insides)}

## Memory

What is in use after {EPOCH_PASSES - 1} watched steps and was not before, less what the same steps leave unwatched
(tracemalloc; storages of live tensors): with each module more, by the difference between all blocks watched and one;
and for the watcher itself. Then block outputs that are still alive after a step, and the peak of a process that runs
{PEAK_STEPS} steps, alone and watched.

| model | KiB of Python objects | KiB of tensors | KiB once | activations alive | peak alone, MiB | peak watched, MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{memory_rows}

## Results

{results}
"""
