"""Asks real trainers to prune and kills them with SIGKILL around the answer; started by test_requests.py.

Trainers are forked, as in resume_worker.py. Prints a line of JSON a run.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from few_digits import few_digits
from resume_worker import finish, trainer
from sapflow.errors import InputError
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.run_directory import TrainerLock
from sapflow.training import recording
from sapflow.training.trainer import RunPlan

TRIALS = 3
PLAN = RunPlan(task="digits-mlp", envs=1, epochs=8, checkpoint_every=3)
PRUNE = Request(request_id="prune", env_id=0, action="prune", slot_id="early", seed_id="early-1", asked_at=1.0, by="a")


def ask_after(run_dir, epoch, *, lock=False):
    """What a trainer is to be given, so that somebody asks between two epochs; or, with `lock`, while nobody trains."""

    def ask(env):
        if env is None or env.epoch == epoch:
            with TrainerLock(run_dir) if lock else contextlib.nullcontext():
                mailbox = Mailbox(run_dir)
                mailbox.open()
                mailbox.post(PRUNE)

    return ask


def main(scratch):
    torch.set_num_threads(1)
    recording.prepare(PLAN, scratch / "timed")
    seconds = finish(scratch / "timed", resume=False, plan=PLAN)
    moments = random.Random(1)
    for trial in range(TRIALS):
        run_dir = scratch / f"killed-{trial}"
        recording.prepare(PLAN, run_dir)
        child, kills, asked = trainer(run_dir, resume=False, plan=PLAN), 0, False
        for attempt in range(2):
            if attempt:
                child = trainer(run_dir, resume=True)
            time.sleep(moments.uniform(0.1, 0.6) * seconds)
            if not asked:
                with contextlib.suppress(InputError):  # it has ended, or has not begun
                    Mailbox(run_dir).post(PRUNE)
                    asked = True
            time.sleep(moments.uniform(0.0, 0.2) * seconds)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
        if asked:
            finish(run_dir, resume=True)
            print(json.dumps({"run": run_dir.name, "kills": kills}), flush=True)


if __name__ == "__main__":
    with few_digits():
        main(Path(sys.argv[1]))
