"""`sapflow sanctum`: look at a run, live or finished, in the terminal or in a browser."""

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from sapflow.cli.extras import needs
from sapflow.errors import InputError
from sapflow.history.restoring import with_journal
from sapflow.telemetry import run_directory
from sapflow.telemetry.source import Source

HANG_UP_SECONDS = 2

ThemeName = Literal["dark", "light", "colour-blind"]


def sanctum(
    run_dir: Path | None = None,
    other: Path | None = None,
    /,
    *,
    theme: ThemeName = "dark",
    read_only: bool = False,
    serve: bool = False,
    host: str = "localhost",
    port: int = 8000,
) -> None:
    """Show a run in the terminal: whether gradient flows through what grows there.

    Parameters
    ----------
    run_dir:
        A run directory, or the journal in it; by default the newest run under runs/.
    other:
        A second run to compare with the first: accuracy, loss and ratios on one axis.
    theme:
        The colours; T changes them.
    read_only:
        Look only: nothing can be asked of the trainer.
    serve:
        Show it in a browser of this machine instead of the terminal.
    host:
        With --serve: this machine's own address; others are refused.
    port:
        With --serve: the port of that address.
    """
    run_dir = run_directory.newest(run_directory.RUNS) if run_dir is None else run_dir
    with ExitStack() as stack:
        journal, *beside = (stack.enter_context(with_journal(run)) for run in (run_dir, other) if run is not None)
        for each in (journal, *beside):
            Source(each).close()  # first what is wrong with the runs, then what is wrong here
        if not serve:
            check_terminal()
            show(journal, *beside, read_only=read_only, theme=theme)
            return
    with needs("Sanctum in a browser", "serve"):
        from sapflow.sanctum.serve import serve as serve_command
    options = ["--theme", theme, *(["--read-only"] if read_only else [])]
    runs = [str(run.resolve()) for run in (run_dir, other) if run is not None]
    serve_command([sys.executable, "-m", "sapflow", "sanctum", *runs, *options], host, port)


def check_terminal() -> None:
    """Make sure that Sanctum can be shown here.

    Raises:
        InputError: there is no terminal to draw on and to read keys from.
        MissingExtraError: what draws it is not installed.
    """
    with needs("Sanctum", "tui"):
        import sapflow.sanctum.app  # noqa: F401
    if "TEXTUAL_DRIVER" in os.environ:  # a page draws it and sends the keys
        return
    # Textual reads stdin, asks stdout for its size, and draws on stderr; a stream that was closed is None.
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise InputError("Sanctum needs a terminal: run it in one, with nothing redirected")


def show(run_dir: Path, other: Path | None = None, /, *, read_only: bool = False, theme: str = "dark") -> None:
    """Show the run, or two, until the person quits; SIGTERM and a lost terminal quit too, and leave it as it was."""
    from sapflow.sanctum.app import run

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which the event loop ends by
    signal.signal(signal.SIGHUP, _hang_up)
    run(run_dir, read_only=read_only, theme=theme, other=other)


def _hang_up(*_: object) -> None:
    """Ends as SIGTERM does, or else without a word: what is still to be drawn waits for ever where nobody reads it."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + signal.SIGHUP))
    signal.alarm(HANG_UP_SECONDS)
    signal.raise_signal(signal.SIGINT)
