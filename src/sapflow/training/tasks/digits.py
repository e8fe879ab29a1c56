"""scikit-learn's digits: 1,797 real images of handwritten digits, 8×8, for a convolutional and a dense host."""

from functools import cache, partial

import torch

from sapflow.growth.host import ConvHost, DenseHost
from sapflow.training.tasks.task import Data, Task

VALIDATION_SAMPLES = 360


@cache
def load_digits() -> Data:
    """Images scaled to [0, 1], of shape (samples, 1, 8, 8), in one fixed shuffle that every run shares."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[:VALIDATION_SAMPLES], order[VALIDATION_SAMPLES:]
    return Data(images[rest], labels[rest], images[held_out], labels[held_out])


TASKS = (
    Task("digits-cnn", load_digits, partial(ConvHost, size=8, classes=10)),
    Task("digits-mlp", load_digits, partial(DenseHost, inputs=64, classes=10)),
)
