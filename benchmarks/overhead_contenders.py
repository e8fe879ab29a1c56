"""What benchmarks/overhead.py compares: each way to see gradients, put on a model and taken off it again."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

import sapflow
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement


def idle() -> None:
    """What a contender does that does nothing at that moment."""


@dataclass
class Subject:
    """A model under measurement, its optimizer, and what a contender does at two moments of the step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    cycle: int  # steps of an epoch of watching
    after_backward: Callable[[], Any] = idle
    after_step: Callable[[], Any] = idle
    measured: dict[str, int] = field(default_factory=dict)  # passes that Sapflow says it has measured, by module


Attach = Callable[[Subject], AbstractContextManager[None]]


@dataclass(frozen=True)
class Contender:
    name: str
    attach: Attach
    every: int = 1  # a pass in so many is measured
    is_sapflow: bool = False
    weight: float = 0.25  # in sharing out the time: what is aimed at has most of it
    cycle: int = 1  # steps after which it has done all that it does now and then, beside an epoch of watching
    by_the_clock: bool = False  # it does something in steps that nobody can foretell


@contextmanager
def nothing(subject: Subject) -> Iterator[None]:
    yield


def watched(every: int = 1, journal: bool = False, pattern: str = "blocks.*") -> Attach:
    """`sapflow.watch` as a user calls it; its own account of what was measured goes into the subject."""

    @contextmanager
    def attach(subject: Subject) -> Iterator[None]:
        def count(name: str, seed: SeedTelemetry) -> None:
            if seed.measurement is Measurement.MEASURED:
                subject.measured[name] = subject.measured.get(name, 0) + seed.passes

        options: dict[str, Any] = {"every": every, "epoch_every": subject.cycle}
        with tempfile.TemporaryDirectory() as folder:
            if journal:
                options["run_dir"] = f"{folder}/run"
            with sapflow.watch(subject.model, pattern, optimizer=subject.optimizer, on_verdict=count, **options):
                yield

    return attach


def full_hooks(note: Callable[[Tensor, Tensor], object]) -> Attach:
    """`register_full_backward_hook` on every block; the last two norms of each are kept."""

    @contextmanager
    def attach(subject: Subject) -> Iterator[None]:
        kept: dict[nn.Module, object] = {}

        def hook(module: nn.Module, left: tuple[Tensor, ...], entered: tuple[Tensor, ...]) -> None:
            kept[module] = note(left[0], entered[0])

        blocks = subject.model.get_submodule("blocks").children()
        handles = [block.register_full_backward_hook(hook) for block in blocks]
        yield
        for handle in handles:
            handle.remove()

    return attach


def bare_hooks(note: Callable[[Tensor], object]) -> Attach:
    """The least that sees both gradients in Python: an alias of each block's input, and hooks on two graph nodes."""

    @contextmanager
    def attach(subject: Subject) -> Iterator[None]:
        def seen(gradients: tuple[Tensor, ...]) -> None:
            note(gradients[0])

        def before(_block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if not args[0].requires_grad:
                return args
            alias = args[0][...]
            assert alias.grad_fn is not None
            alias.grad_fn.register_prehook(seen)
            return (alias, *args[1:])

        def after(_block: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            assert output.grad_fn is not None
            output.grad_fn.register_prehook(seen)

        blocks = list(subject.model.get_submodule("blocks").children())
        handles = [block.register_forward_pre_hook(before) for block in blocks]
        handles += [block.register_forward_hook(after) for block in blocks]
        yield
        for handle in handles:
            handle.remove()

    return attach


@contextmanager
def native_hooks(subject: Subject) -> Iterator[None]:
    """Those with norms again, as hooks in C++, which are compiled on the first call."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("overhead_hooks.cpp")
    native = load("sapflow_overhead_hooks", [str(source)], extra_cflags=["-O2"])
    blocks = list(subject.model.get_submodule("blocks").children())
    handles = [block.register_forward_pre_hook(native.before) for block in blocks]
    handles += [block.register_forward_hook(native.after) for block in blocks]
    yield
    for handle in handles:
        handle.remove()


def wandb_watch(log_freq: int) -> Attach:
    """`wandb.watch` offline, with the `run.log` a step that lets it write."""

    @contextmanager
    def attach(subject: Subject) -> Iterator[None]:
        os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline"}
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            run = wandb.init(project="overhead", mode="offline", dir=folder, settings=wandb.Settings(console="off"))
            run.watch(subject.model, log="gradients", log_freq=log_freq)
            subject.after_step = lambda: run.log({})
            yield
            subject.after_step = idle
            run.unwatch(subject.model)
            run.finish()

    return attach


@contextmanager
def lightning_grad_norm(subject: Subject) -> Iterator[None]:
    from lightning.pytorch.utilities import grad_norm

    subject.after_backward = lambda: grad_norm(subject.model, 2)
    yield
    subject.after_backward = idle


NOTHING = Contender("nothing (A/A)", nothing, weight=1.0)
SAPFLOW = Contender("Sapflow", watched(), is_sapflow=True, weight=4.0)
SAPFLOW_ON_ONE = Contender("Sapflow on one block", watched(pattern="blocks.0"), is_sapflow=True)
SAPFLOW_JOURNAL = Contender("Sapflow with a journal", watched(journal=True), is_sapflow=True, by_the_clock=True)
SAPFLOW_EVERY = Contender("Sapflow, every=10", watched(every=10), every=10, is_sapflow=True)
HOOKS = Contender("full backward hooks, no sync", full_hooks(lambda left, entered: (left.norm(), entered.norm())))
HOOKS_ITEM = Contender(
    "full backward hooks with `.item()`", full_hooks(lambda left, entered: (left.norm().item(), entered.norm().item()))
)
LEAST = Contender("an alias and two empty hooks", bare_hooks(lambda gradient: None))
LEAST_NORMS = Contender("these, and two norms that nobody keeps", bare_hooks(vector_norm))
NATIVE_NORMS = Contender("these again, in C++", native_hooks)
WANDB_1 = Contender("`wandb.watch`, log_freq 1", wandb_watch(1))
WANDB_100 = Contender("`wandb.watch`, log_freq 100", wandb_watch(100), cycle=100)
LIGHTNING = Contender("Lightning's `grad_norm`", lightning_grad_norm)

# Where there is a compiler for it.
COMPILED_HOOKS = [NATIVE_NORMS] if shutil.which("c++") else []

EVERYTHING = [
    NOTHING, SAPFLOW, SAPFLOW_JOURNAL, SAPFLOW_EVERY, LEAST, LEAST_NORMS, *COMPILED_HOOKS, HOOKS_ITEM, HOOKS, WANDB_1,
    WANDB_100, LIGHTNING,
]  # fmt: skip
# Of models with long steps those alone that the issue of cost is about: each row takes minutes.
LONG = [
    NOTHING, SAPFLOW, SAPFLOW_JOURNAL, HOOKS_ITEM, HOOKS, WANDB_1, WANDB_100, LIGHTNING,
]  # fmt: skip
