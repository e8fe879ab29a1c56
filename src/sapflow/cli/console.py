"""Where the commands write: one console, whose reader may leave at any time."""

import os
import sys

from rich.console import Console


class PatientConsole(Console):
    """Falls silent when its reader is gone (`sapflow train | head -1`), and lets the command go on."""

    def on_broken_pipe(self) -> None:
        """Called by Rich; what is left in the stream's buffer goes nowhere, or the interpreter would complain."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = PatientConsole(highlight=False)


def say(line: str) -> None:
    """Print a line as it is, unwrapped: paths and commands are there to be copied."""
    console.out(line, highlight=False)
