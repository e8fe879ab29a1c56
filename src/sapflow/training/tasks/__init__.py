"""Tasks by name: data and a host for it. A new task is one new file here, or an entry point of an installed package."""

import pkgutil
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sapflow.errors import InputError
from sapflow.training.tasks.task import FileTask, Task

ENTRY_POINTS = "sapflow.tasks"


def task_named(name: str, data_dir: str = "") -> Task:
    """The task of this name, over the data in `data_dir` if it reads any.

    The file `x.py` here has the tasks `x` and `x-…` in its TASKS; nothing else is imported for them. Other names are
    those of entry points of the group `sapflow.tasks`, each of which names a `Task` or a `FileTask`.

    Raises:
        InputError: there is none, it cannot be imported, or it lacks the directory or has no use for one.
    """
    here, installed = _built_in(name.partition("-")[0]).get(name), entry_points(group=ENTRY_POINTS, name=name)
    if here is None and not installed:
        raise InputError(f"unknown task {name!r}: choose one of {', '.join(task_names())}")
    if len(installed) + (here is not None) > 1:
        claims = " and ".join(["Sapflow"] * (here is not None) + sorted(map(_said, installed)))
        raise InputError(f"task {name!r} is claimed by {claims}: one of them needs another name")
    found = here or _loaded(next(iter(installed)))
    if isinstance(found, FileTask):
        if not data_dir:
            raise InputError(f"task {name} reads files: say --data DIR, with {found.files}")
        if not Path(data_dir).is_dir():
            raise InputError(f"--data {data_dir}: there is no such directory; task {name} needs {found.files}")
        return replace(found.over(Path(data_dir)), name=name)
    if data_dir:
        raise InputError(f"--data {data_dir}: task {name} brings its own data; leave --data out")
    return replace(found, name=name)


def task_names() -> list[str]:
    """Of all tasks that `task_named` knows: those here, then those of installed packages."""
    here = [name for module in _modules() for name in _built_in(module)]
    return here + sorted(set(entry_points(group=ENTRY_POINTS).names) - set(here))


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _built_in(module: str) -> dict[str, Task | FileTask]:
    """The tasks of one file here, by name; none if there is no such file, or no task in it."""
    if module not in _modules():
        return {}
    tasks = getattr(import_module(f"{__name__}.{module}"), "TASKS", ())
    return {task.name: task for task in tasks}


def _loaded(point: EntryPoint) -> Task | FileTask:
    try:
        task = point.load()
    except Exception as error:  # a stranger's module may fail in any way
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"task {point.name!r} of {_said(point)} cannot be loaded: {what}") from error
    if not isinstance(task, Task | FileTask):
        raise InputError(f"task {point.name!r} of {_said(point)} is a {type(task).__name__}, and no Task or FileTask")
    return task


def _said(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.value} ({point.dist.name})"
