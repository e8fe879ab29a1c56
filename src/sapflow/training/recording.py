"""A run that is kept: its directory, the lock that says a trainer lives, and the journal around the training."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sapflow.telemetry import run_directory
from sapflow.telemetry.journal import Journal, JournalReport
from sapflow.training.env import Env
from sapflow.training.trainer import RunPlan, run

RUNS = Path("runs")


@dataclass(frozen=True)
class RecordedRun:
    """What came of a run: the envs that came to their end, all envs it had, and how its journal fared."""

    completed: dict[int, Env]
    journal: JournalReport


def new_run_id(task: str) -> str:
    """A name for a run that says when and of what, and that no other has."""
    return f"{task}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def prepare(plan: RunPlan, run_dir: Path) -> None:
    """Make sure that `plan` can be carried out, and make the directory for it.

    Raises:
        InputError: it cannot, or the directory is taken; nothing was made or overwritten.
    """
    plan.check()
    run_directory.create(run_dir)


def record(plan: RunPlan, run_dir: Path, on_epoch: Callable[[Env], None] = lambda _env: None) -> RecordedRun:
    """Carry out `plan` and keep its telemetry in the directory that `prepare` made, whatever ends the run.

    Raises:
        InputError: another trainer is at work there, or was.
    """
    with run_directory.TrainerLock(run_dir):
        journal = Journal(run_dir)
        try:
            completed = run(plan, run_dir.name, journal, on_epoch)
        finally:
            report = journal.close()
    return RecordedRun(completed, report)
