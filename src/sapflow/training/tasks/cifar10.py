"""CIFAR-10 in its binary version: 32×32 colour images of ten classes, read from a directory.

A file is a row of records of 3,073 bytes: the label, then the red, the green and the blue values, row by row.
"""

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from sapflow.errors import InputError
from sapflow.growth.host import ConvHost
from sapflow.training.tasks.files import find, read_at_most
from sapflow.training.tasks.task import Data, FileTask, Task

SIZE = 32
COLOURS = 3
CLASSES = 10
RECORD = 1 + COLOURS * SIZE * SIZE
MOST_RECORDS = 10_000  # in one file
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)


def read_records(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (records, 3, 32, 32), and labels int64 (records,).

    Raises:
        InputError: the file is no row of records, or a label is none.
    """
    content = read_at_most(path, MOST_RECORDS * RECORD)
    if not content or len(content) % RECORD:
        raise InputError(f"{path}: has {len(content):,} bytes, and a multiple of {RECORD:,}, a record, is expected")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, RECORD)
    labels = records[:, 0].long()
    if labels.max() >= CLASSES:
        at = int((labels >= CLASSES).nonzero()[0])
        raise InputError(f"{path}: record {at} has the label {int(labels[at])}, and 0 to {CLASSES - 1} are expected")
    return records[:, 1:].reshape(-1, COLOURS, SIZE, SIZE), labels


@cache
def load_cifar10(directory: Path) -> Data:
    """Images scaled to [0, 1], of shape (samples, 3, 32, 32).

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    return Data(*_joined(directory, TRAIN), *_joined(directory, TEST))


def _joined(directory: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(read_records(find(directory, name)) for name in names), strict=True)
    return torch.cat(images).float().div_(255), torch.cat(labels)


def _task(directory: Path) -> Task:
    host = partial(ConvHost, size=SIZE, classes=CLASSES, channels=16, inputs=COLOURS)
    return Task("cifar10-cnn", partial(load_cifar10, directory), host)


TASKS = (FileTask("cifar10-cnn", f"the binary version's {', '.join((*TRAIN, *TEST))} (or .gz)", _task),)
