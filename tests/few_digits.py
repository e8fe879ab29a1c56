"""A few of the digits: what is to be seen of a run on them does not take the time of a run on all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from sapflow.training.tasks import digits
from sapflow.training.tasks.task import Data

STEPS = 5  # an epoch, of 64 samples each
VALIDATION_SAMPLES = 120


@cache
def load_few() -> Data:
    all_of_them = digits.load_digits()
    return Data(
        all_of_them.train_inputs[: 64 * STEPS],
        all_of_them.train_labels[: 64 * STEPS],
        all_of_them.validation_inputs[:VALIDATION_SAMPLES],
        all_of_them.validation_labels[:VALIDATION_SAMPLES],
    )


TASKS = tuple(replace(task, load=load_few) for task in digits.TASKS)


@contextmanager
def few_digits() -> Iterator[None]:
    """Inside, digits-cnn and digits-mlp have few samples."""
    before = digits.TASKS
    digits.TASKS = TASKS
    try:
        yield
    finally:
        digits.TASKS = before
