"""What a task is: data, split once and for all, and a host that can learn it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Data:
    """Both splits: inputs as the host takes them, (samples, …), and int64 labels (samples,) or (samples, tokens)."""

    train_inputs: Tensor
    train_labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor


def percent_correct(logits: Tensor, labels: Tensor) -> float:
    """How many of the labels have the largest logit, in percent: logits (samples, classes, …), labels (samples, …)."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


def momentum_sgd(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with a momentum of 0.9."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


@dataclass(frozen=True)
class Task:
    """Something to learn; `make_host` draws its initial weights from torch's default generator.

    `loss(logits, labels)` is a mean over samples, and `accuracy(logits, labels)` one in percent.
    """

    name: str
    load: Callable[[], Data]
    make_host: Callable[[], nn.Module]
    batch_size: int = 64
    learning_rate: float = 0.02
    make_optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = momentum_sgd
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    accuracy: Callable[[Tensor, Tensor], float] = percent_correct


@dataclass(frozen=True)
class FileTask:
    """A task whose data lie in a directory of the person's: `files` says in words what it has to hold."""

    name: str
    files: str
    over: Callable[[Path], Task]
