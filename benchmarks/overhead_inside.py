"""What Sapflow's own code takes of a step, timed where it runs: narrow where the difference of two models is wide."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import overhead_contenders as ways
from overhead_measure import EAGER, WARM_UP, step, subjects
from overhead_models import Task

from sapflow.gradients import probe
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.pass_sums import PassSums
from sapflow.gradients.probe import Probe

CYCLES = 4
# All that runs in a watched step; what they call is in them, and none calls another.
ENTRIES: tuple[tuple[type, str], ...] = (
    (Probe, "_before_forward"),
    (Probe, "_after_forward"),
    (PassSums, "_end_backward"),
    (GradientMonitor, "_close_pass"),
)


@dataclass(frozen=True)
class Inside:
    """µs of the thread's CPU time a step, by cycle; those of the whole step, and its watched blocks."""

    task: str
    own: tuple[float, ...]
    step: float
    blocks: int

    @property
    def percent(self) -> tuple[float, float, float]:
        """Of the step without it: the mean of the cycles, the lowest and the highest."""
        shares = [100 * own / (self.step - statistics.fmean(self.own)) for own in self.own]
        return statistics.fmean(shares), min(shares), max(shares)


class Stopwatch:
    def __init__(self) -> None:
        self.nanoseconds = 0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return work(*args, **kwargs)
            finally:
                self.nanoseconds += time.thread_time_ns() - began

        return timed


def inside(task: Task) -> Inside:
    """Some epochs of watching, every block, every pass."""
    _, seen, batch = subjects(task)
    watch = Stopwatch()
    adder = probe.adder
    patches = [patch.object(owner, name, watch.around(getattr(owner, name))) for owner, name in ENTRIES]
    patches.append(patch.object(probe, "adder", lambda *args: watch.around(adder(*args))))
    for one in patches:
        one.start()
    own, whole = [], 0.0
    try:
        with ways.SAPFLOW.attach(seen):
            for _ in range(WARM_UP):
                step(seen, seen.model, batch, EAGER)
            for _ in range(CYCLES):
                watch.nanoseconds, began = 0, time.thread_time_ns()
                for _ in range(task.cycle):
                    step(seen, seen.model, batch, EAGER)
                whole += time.thread_time_ns() - began
                own.append(watch.nanoseconds / task.cycle / 1e3)
    finally:
        for one in patches:
            one.stop()
    blocks = len(list(seen.model.get_submodule("blocks").children()))
    return Inside(task.name, tuple(own), whole / CYCLES / task.cycle / 1e3, blocks)
