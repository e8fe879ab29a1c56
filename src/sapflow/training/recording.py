"""A run that is kept: its directory, the lock that says a trainer lives, and the journal around the training."""

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapflow.telemetry import run_directory
from sapflow.telemetry.journal import Journal, JournalReport
from sapflow.training.env import Env
from sapflow.training.trainer import RunPlan, run

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RecordedRun:
    """What came of a run: the envs that came to their end, by env_id, and how its journal fared."""

    completed: dict[int, Env]
    journal: JournalReport


def new_run_id(task: str) -> str:
    """A name for a run that says when and of what, and that no other has."""
    return f"{task}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def prepare(plan: RunPlan, run_dir: Path) -> None:
    """Make sure that `plan` can be carried out, and make the directory for it.

    Raises:
        InputError: it cannot, or the directory is taken; nothing was made or overwritten.
        ModuleNotFoundError: what the task's data come from is not installed; likewise.
    """
    plan.check().load()
    run_directory.create(run_dir)


def record(plan: RunPlan, run_dir: Path, on_epoch: Callable[[Env], None] = lambda _env: None) -> RecordedRun:
    """Carry out `plan` and keep its telemetry in the directory that `prepare` made, whatever ends the run.

    Raises:
        InputError: another trainer is at work there, or was.
    """
    with run_directory.TrainerLock(run_dir):
        journal = Journal(run_dir)
        try:
            completed = run(plan, _run_id(run_dir), journal, on_epoch)
        finally:
            with _undisturbed():
                report = journal.close()
    return RecordedRun(completed, report)


def stop_on_signals() -> None:
    """From now on the first SIGINT or SIGTERM ends this process as Ctrl-C does, and later ones change nothing.

    The end takes bounded time, so that nobody need insist. A signal that the process was born to ignore stays ignored.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(*_: object) -> None:
    _ignore_stop_signals()
    raise KeyboardInterrupt


def _ignore_stop_signals() -> dict[int, Any]:
    """Ignore them from now on; gives the handlers before."""
    sys.unraisablehook = _unraisable
    return {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}


def _unraisable(unraisable: Any) -> None:
    """Pass over what the interpreter says of a signal that came in the moment before it was to be ignored."""
    if "ignored due to race condition" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is about to end anyway is not cut short by a signal."""
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    handlers = _ignore_stop_signals()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_id(run_dir: Path) -> str:
    """The directory's own name as text: bytes that are none cannot travel in an event."""
    return os.fsencode(run_dir.resolve().name).decode(errors="replace")
