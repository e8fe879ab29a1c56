"""The trainer as a process of its own, so that a viewer can have the terminal and neither can take the other down."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from sapflow.errors import SapflowError
from sapflow.telemetry import run_directory
from sapflow.training.recording import plan_of, record, stop_on_signals

JOURNAL_POLL_SECONDS = 0.05
EXIT_STOPPED = 130


def start(run_dir: Path, *, resume: bool = False) -> subprocess.Popen[bytes]:
    """Start a trainer that records into a directory that `prepare` has made, logs there, and outlives this process.

    With `resume` it goes on with the run that ended there. Returns once there is a journal to follow.

    Raises:
        RunDirectoryError: the run is rolled and its journal removed.
        SapflowError: the trainer ended before it had begun.
    """
    run_directory.refuse_rolled(run_dir)
    log_path = run_dir / run_directory.LOG_NAME
    # The plan lies in the directory: arguments and logs are read by others, and addresses in its rules may be secrets.
    arguments = [sys.executable, "-m", "sapflow.training.launcher", str(run_dir)]
    if resume:
        arguments.append("resume")
    with log_path.open("ab") as log:
        trainer = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        while not (run_dir / run_directory.JOURNAL_NAME).exists():
            if trainer.poll() is not None:
                raise SapflowError(f"the trainer ended with code {trainer.returncode} before it began: see {log_path}")
            time.sleep(JOURNAL_POLL_SECONDS)
    except KeyboardInterrupt:  # nobody has seen the run yet, so nobody would stop it
        trainer.terminate()
        raise
    return trainer


def main() -> None:
    """Be the trainer; the arguments are those that `start` passes on."""
    run_dir = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = logging.getLogger("sapflow.training")
    stop_on_signals()
    plan = plan_of(run_dir)
    said = msgspec.structs.replace(plan, rules="…" if plan.rules else "")
    log.info("process %d trains %s", os.getpid(), said)
    try:
        outcome = record(plan, run_dir, resume=sys.argv[2:] == ["resume"])
    except KeyboardInterrupt:
        log.warning("stopped by a signal")
        sys.exit(EXIT_STOPPED)
    log.info("completed %d of %d envs; journal: %s", len(outcome.completed), plan.envs, outcome.journal)
    sys.exit(0 if len(outcome.completed) == plan.envs else 1)


if __name__ == "__main__":
    main()
