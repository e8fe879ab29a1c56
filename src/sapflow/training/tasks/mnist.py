"""MNIST, or what has its format and shape: 28×28 grey images of ten classes in IDX files, read from a directory.

An IDX file begins with two zero bytes, a byte for the type (8: unsigned bytes) and one for the number of dimensions;
their sizes follow as big-endian 32-bit numbers, and then the values.
"""

import math
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.growth.host import ConvHost, DenseHost
from sapflow.training.tasks.files import find, read_at_most
from sapflow.training.tasks.task import Data, FileTask, Task

SIZE = 28
CLASSES = 10
MOST_IMAGES = 100_000  # in one file
UNSIGNED_BYTES = 8
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read_idx(path: Path, sample: tuple[int, ...]) -> Tensor:
    """The unsigned bytes of an IDX file, uint8 (samples, *sample).

    Raises:
        InputError: it is none, holds something else, or is longer or shorter than its header says.
    """
    dimensions = 1 + len(sample)
    start = 4 + 4 * dimensions
    content = read_at_most(path, start + MOST_IMAGES * math.prod(sample))
    if len(content) < start:
        raise InputError(f"{path}: is truncated: {len(content)} bytes, and its header alone has {start}")
    magic = bytes((0, 0, UNSIGNED_BYTES, dimensions))
    if content[:4] != magic:
        raise InputError(
            f"{path}: begins with {content[:4].hex(' ')}, and an IDX file of unsigned bytes in {dimensions} dimensions "
            f"with {magic.hex(' ')}"
        )
    count, *shape = struct.unpack(f">{dimensions}I", content[4:start])
    if tuple(shape) != sample:
        raise InputError(f"{path}: holds samples of {_times(shape)}, and {_times(sample)} is expected")
    if not 2 <= count <= MOST_IMAGES:
        raise InputError(f"{path}: says that it has {count:,} samples, and 2 to {MOST_IMAGES:,} are expected")
    expected = start + count * math.prod(sample)
    if len(content) != expected:
        raise InputError(f"{path}: has {len(content):,} bytes, and {expected:,} are expected of {count:,} samples")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(count, *sample)


@cache
def load_mnist(directory: Path) -> Data:
    """Images scaled to [0, 1], of shape (samples, 1, 28, 28).

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    return Data(*_split(directory, *TRAIN), *_split(directory, *TEST))


def _split(directory: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images_path, labels_path = find(directory, images_name), find(directory, labels_name)
    labels = read_idx(labels_path, ())
    images = read_idx(images_path, (SIZE, SIZE))
    if len(images) != len(labels):
        raise InputError(
            f"{labels_path}: has {len(labels):,} labels, and {len(images):,} are expected, one for each image of "
            f"{images_path.name}"
        )
    if labels.max() >= CLASSES:
        raise InputError(f"{labels_path}: has the label {int(labels.max())}, and 0 to {CLASSES - 1} are expected")
    return images.unsqueeze(1).float().div_(255), labels.long()


def _times(shape: tuple[int, ...] | list[int]) -> str:
    return "×".join(map(str, shape))


def _task(name: str, make_host: Callable[[], nn.Module], directory: Path) -> Task:
    return Task(name, partial(load_mnist, directory), make_host)


FILES = f"the IDX files {', '.join((*TRAIN, *TEST))} (or .gz)"
HOSTS: dict[str, Callable[[], nn.Module]] = {
    "mnist-cnn": partial(ConvHost, size=SIZE, classes=CLASSES),
    "mnist-mlp": partial(DenseHost, inputs=SIZE * SIZE, classes=CLASSES),
}
TASKS = tuple(FileTask(name, FILES, partial(_task, name, make_host)) for name, make_host in HOSTS.items())
