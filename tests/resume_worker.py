"""Kills real trainers with SIGKILL at random moments and lets them be resumed; started by test_resume.py.

Trainers are forked from this process, which has imported everything and runs no thread: a start takes no time, so that
moments are spread over the training. They are moments of processor time, of which a training takes as much on a busy
machine. Prints a line of JSON a run.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from few_digits import few_digits
from sapflow.errors import InputError
from sapflow.training import recording
from sapflow.training.trainer import Plant, RunPlan

PLAN = RunPlan(task="digits-mlp", envs=1, epochs=8, plants=(Plant(0, "early", "sigmoid"),))


def trainer(run_dir, *, resume, plan=None):
    """The process id of a trainer at work in `run_dir`."""
    child = os.fork()
    if child:
        return child
    try:
        recording.record(recording.plan_of(run_dir) if resume else plan or PLAN, run_dir, resume=resume)
    except InputError:  # it was complete before the signal came
        os._exit(3)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(run_dir, *, resume, plan=None):
    """The processor time that it took, in seconds."""
    _, status, used = os.wait4(trainer(run_dir, resume=resume, plan=plan), 0)
    assert os.waitstatus_to_exitcode(status) in (0, 3), f"{run_dir}: {status}"
    return used.ru_utime + used.ru_stime


def kill_after(seconds, child):
    """SIGKILL once the child has used so much processor time, or has ended; gives its status."""
    clock = ~child << 3 | 2  # of a process, as clock_getcpuclockid(3) numbers it
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.clock_gettime(clock) >= seconds:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.001)


def main(scratch, trials):
    torch.set_num_threads(1)
    recording.prepare(PLAN, scratch / "whole")  # loads the data, and the library that has them
    finish(scratch / "whole", resume=False)
    recording.prepare(PLAN, scratch / "timed")
    seconds = finish(scratch / "timed", resume=False)
    moments = random.Random(0)
    for trial in range(trials):
        run_dir = scratch / f"killed-{trial}"
        recording.prepare(PLAN, run_dir)
        kills = 0
        for attempt in range(1 + trial % 3):  # killed up to three times in a row
            child = trainer(run_dir, resume=attempt > 0)
            kills += os.WIFSIGNALED(kill_after(moments.random() * seconds, child))
        finish(run_dir, resume=True)
        print(json.dumps({"run": run_dir.name, "kills": kills}), flush=True)


if __name__ == "__main__":
    with few_digits():
        main(Path(sys.argv[1]), int(sys.argv[2]))
