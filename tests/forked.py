"""Commands as real processes, without the seconds that their imports take; started by commands.py.

Reads lines of JSON and answers each with one. To start a command is to fork: the child has its own files and directory,
becomes the command, and ends. This process has imported everything and runs no thread.
"""

import atexit
import json
import os
import sys
import threading
import traceback
from typing import Any, NoReturn

# Read when torch is imported: its own C++ warnings go to stderr without passing Python's filters.
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import duckdb  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo  # which the first optimizer would import  # noqa: F401

import sapflow.cli.commands
import sapflow.cli.rules
import sapflow.cli.train
import sapflow.training.recording  # noqa: F401


def become(arguments: list[str], cwd: str, output: str | None, errors: str) -> None:
    """Take the files, the directory and the arguments of a command; without `output` it has no stdout at all."""
    os.chdir(cwd)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, output or os.devnull, os.O_WRONLY | os.O_CREAT),
        (2, errors, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    if output is None:
        os.close(1)
        sys.stdout = None
    sys.argv = ["sapflow", *arguments]


def end(code: object) -> NoReturn:
    """End as an interpreter does, but for taking torch to pieces, which takes longer than most commands."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def serve() -> dict[str, Any]:
    """Fork for each command, and wait where it is asked for; in a child, what is to be run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "asked" in request:
            ended, status = os.waitpid(request["asked"], 0 if request["wait"] else os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
            continue
        child = os.fork()
        if not child:
            become(**request["command"])
            return request
        print(child, flush=True)
    end(0)


if __name__ == "__main__":
    request = serve()
    try:
        exec(request["code"])
    except SystemExit as error:
        end(error.code)
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)
