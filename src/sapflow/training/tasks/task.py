"""What a task is: data, split once and for all, and a host that can learn it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Data:
    """Inputs float32 (samples, …) and class labels int64 (samples,) of both splits."""

    train_inputs: Tensor
    train_labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor


@dataclass(frozen=True)
class Task:
    """A classification task; `make_host` draws its initial weights from torch's default generator."""

    name: str
    load: Callable[[], Data]
    make_host: Callable[[], nn.Module]
    batch_size: int = 64
    learning_rate: float = 0.02
