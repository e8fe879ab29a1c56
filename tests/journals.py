"""What the tests of the journal and its readers share: events, a killed run, a log to wait for, a plain user."""

import contextlib
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sapflow.telemetry import codec
from sapflow.telemetry.events import (
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    Payload,
    RunCompleted,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.journal_layout import INSERT_EVENT
from sapflow.telemetry.run_directory import JOURNAL_NAME

PATIENCE = 60.0  # how long a test waits for what must come; never what it asserts
NOBODY = 65_534


def event(payload: Payload, env: int | None = 0, sequence: int | None = 0) -> TelemetryEvent:
    return TelemetryEvent(run_id="run", env_id=env, sequence=sequence, time=1_700_000_000.5, payload=payload)


def epoch_completed(epoch: int = 1, env: int = 0, ratio: float = 0.85, text: str = "") -> TelemetryEvent:
    seed = SeedTelemetry(slot_id="stem", grad_ratio=ratio, evidence=text)
    payload = EpochCompleted(epoch=epoch, epochs=99, accuracy=50.0, train_loss=1.0, validation_loss=2.0, seeds=(seed,))
    return event(payload, env, sequence=epoch)


def gradient_sampled(epoch: int = 1) -> TelemetryEvent:
    payload = GradientSampled(
        epoch=epoch, slot_id="stem", pass_index=(0,), entering=(1.0,), leaving=(0.85,), health=GradientHealth()
    )
    return event(payload, sequence=None)


def run_completed() -> TelemetryEvent:
    return event(RunCompleted(completed_envs=1), env=None)


def finished_run(run_dir: Path, *events: TelemetryEvent) -> Path:
    """A run directory whose journal holds `events` and was closed as it should be."""
    run_dir.mkdir(exist_ok=True)
    journal = Journal(run_dir)
    for each in events:
        journal.emit(each)
    assert journal.close(PATIENCE).acknowledged == len(events)
    return run_dir


def add_rows(run_dir: Path, *events: TelemetryEvent) -> None:
    """More events for a journal, as if its trainer had gone on."""
    with contextlib.closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        for each in events:
            row = (each.env_id, each.sequence, each.epoch, each.type.value, each.time, codec.encode(each))
            connection.execute(INSERT_EVENT, row)


@contextlib.contextmanager
def python(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs `script`; killed in the end if it is still there."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


TRAINER = """
import itertools, sys
from pathlib import Path
from journals import PATIENCE, epoch_completed
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.journal_layout import INSERT_EVENT
from sapflow.telemetry.run_directory import TrainerLock

run_dir, acknowledged = Path(sys.argv[1]), int(sys.argv[2])
with TrainerLock(run_dir):
    journal = Journal(run_dir)
    for epoch in itertools.count(1):
        journal.emit(epoch_completed(epoch))
        if epoch == acknowledged and journal.flush(PATIENCE):
            print("acknowledged", epoch, flush=True)
"""


def killed_run(run_dir: Path, acknowledged: int = 100) -> Path:
    """A run whose trainer was killed while it wrote, after `acknowledged` events were."""
    run_dir.mkdir()
    with python(TRAINER, run_dir, acknowledged) as trainer:
        assert trainer.stdout.readline() == f"acknowledged {acknowledged}\n"
        trainer.send_signal(signal.SIGKILL)
        assert trainer.wait(PATIENCE) == -signal.SIGKILL
    return run_dir


@contextlib.contextmanager
def locked(run_dir: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    """Nobody else can write the journal (or, EXCLUSIVE, even read a finished one)."""
    with contextlib.closing(sqlite3.connect(run_dir / JOURNAL_NAME, isolation_level=None)) as connection:
        connection.execute(f"BEGIN {how}")
        yield
        connection.execute("ROLLBACK")


class Log(logging.Handler):
    """The journal's log lines, to count and to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.changed:
            self.lines.append(record.getMessage())
            self.changed.notify_all()

    def count(self, part: str) -> int:
        return sum(part in line for line in self.lines)

    def wait_for(self, part: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(part), PATIENCE), f"never logged: {part}"


@contextlib.contextmanager
def journal_log() -> Iterator[Log]:
    log = Log()
    logger = logging.getLogger("sapflow.journal")
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as if the disk were full."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes_bytecode_not = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # half of it would be written, and found by all who import it after
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = writes_bytecode_not
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def plain_user() -> Iterator[None]:
    """Permissions mean nothing to root, so a test that is about them is run as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except PermissionError:
        pytest.skip("root here may not become another user, and no permission stops it")
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            for path in folder.rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)
