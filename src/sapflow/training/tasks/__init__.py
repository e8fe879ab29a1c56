"""Tasks by name: data and a host for it."""

from sapflow.errors import InputError
from sapflow.training.tasks.digits import DIGITS_CNN, DIGITS_MLP
from sapflow.training.tasks.task import Task

TASKS = {task.name: task for task in (DIGITS_CNN, DIGITS_MLP)}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]
