"""`sapflow sanctum`: look at a run, live or finished."""

import signal
import sys
from pathlib import Path

from sapflow.cli.extras import needs
from sapflow.errors import InputError
from sapflow.history.restoring import with_journal
from sapflow.telemetry import run_directory
from sapflow.telemetry.source import Source


def sanctum(run_dir: Path | None = None, /) -> None:
    """Show a run in the terminal: whether gradient flows through what grows there.

    Parameters
    ----------
    run_dir:
        A run directory, or the journal in it; by default the newest run under runs/.
    """
    run_dir = run_directory.newest(run_directory.RUNS) if run_dir is None else run_dir
    with with_journal(run_dir) as journal:
        Source(journal).close()  # first what is wrong with the run, then what is wrong here
        check_terminal()
        show(journal)


def check_terminal() -> None:
    """Make sure that Sanctum can be shown here.

    Raises:
        InputError: there is no terminal to draw on and to read keys from.
        MissingExtraError: what draws it is not installed.
    """
    with needs("Sanctum", "tui"):
        import sapflow.sanctum.app  # noqa: F401
    # Textual reads stdin, asks stdout for its size, and draws on stderr; a stream that was closed is None.
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise InputError("Sanctum needs a terminal: run it in one, with nothing redirected")


def show(run_dir: Path) -> None:
    """Show the run until the person quits; SIGTERM quits too, and leaves the terminal as it was."""
    from sapflow.sanctum.app import run

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which the event loop ends by
    run(run_dir)
