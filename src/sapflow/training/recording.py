"""A run that is kept: its directory, the lock that says a trainer lives, and the journal around the training."""

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

import msgspec

from sapflow.control.notify import NOTIFYING_SECONDS, Notifier
from sapflow.errors import InputError
from sapflow.telemetry import run_directory
from sapflow.telemetry.inbox import Inbox
from sapflow.telemetry.journal import Journal, JournalReport
from sapflow.telemetry.resuming import WhatIsNew
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.stream import Sink
from sapflow.training.checkpoint import Checkpoints
from sapflow.training.env import Env
from sapflow.training.trainer import RunPlan, run

MAX_PLAN_BYTES = 2**20

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
    if urls := plan.rule_file().notify:
        Notifier(urls).close(0.0)  # so that what is wrong with one is known before anything is made
    run_directory.create(run_dir)
    (run_dir / run_directory.PLAN_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(plan)))


def plan_of(run_dir: Path) -> RunPlan:
    """What the run in this directory was asked to do.

    Raises:
        InputError: there is no run that can be resumed, or it is complete, or rolled and its journal removed.
    """
    run_directory.refuse_rolled(run_dir)
    path = run_dir / run_directory.PLAN_NAME
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise InputError(f"{path} is no plan of a run: it is too large")
        plan = msgspec.json.decode(path.read_bytes(), type=RunPlan)
    except OSError as error:
        raise InputError(f"{run_dir} holds no run that can be resumed ({path.name}: {error.strerror})") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no plan of a run ({error}): restore it from a copy") from error
    _refuse_complete(run_dir)
    plan.check()
    return plan


def _refuse_complete(run_dir: Path) -> None:
    if run_directory.has_journal(run_dir):
        with Source(run_dir) as source:
            if source.status().state is RunState.COMPLETED:
                raise InputError(f"the run in {run_dir} is complete: there is nothing to resume")


def record(
    plan: RunPlan, run_dir: Path, on_epoch: Callable[[Env], None] = lambda _env: None, *, resume: bool = False
) -> RecordedRun:
    """Carry out `plan` and keep its telemetry in the directory that `prepare` made, whatever ends the run.

    Args:
        plan: what to do.
        run_dir: where.
        on_epoch: called with an env after each of its epochs.
        resume: go on with the run that ended there: its telemetry and weights become those of one that never did.

    Raises:
        InputError: another trainer is at work there, or was, or is done, or its journal cannot be read, or was rolled
            and removed.
    """
    run_directory.refuse_rolled(run_dir)
    with run_directory.TrainerLock(run_dir):
        if resume:  # asked again: another trainer may have held the lock until it was done
            _refuse_complete(run_dir)
        checkpoints = Checkpoints(run_dir, plan.checkpoint_every)
        going_on = resume and run_directory.has_journal(run_dir)
        known = WhatIsNew(run_dir) if going_on else None
        if resume and not going_on:
            (run_dir / run_directory.JOURNAL_NAME).unlink(missing_ok=True)  # an empty file, if any
        journal = Journal(run_dir, resume=going_on)
        sink: Sink = journal
        run_id = run_directory.run_id_of(run_dir)
        if known is not None:
            sink, run_id = known.before(journal), known.run_id or run_id
        kept = (known.last_sequence if known is not None else {}) if resume else None
        urls = plan.rule_file().notify
        notifier = None
        try:
            notifier = Notifier(urls, known) if urls else None
            inbox = Inbox(run_dir, journal.flush, known)
            completed = run(
                plan, run_id, sink, on_epoch, token=run_directory.token_of(run_dir), checkpoints=checkpoints,
                notifier=notifier, inbox=inbox, resumed=kept,
            )  # fmt: skip
        finally:
            with _undisturbed():
                if notifier is not None:
                    notifier.close(NOTIFYING_SECONDS)  # before the journal, which is told what came of it
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
