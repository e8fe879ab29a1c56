"""The command line: one file a command, each imported when it is called."""

import io
import signal
import sys
from collections.abc import Callable

from sapflow.cli.extras import needs
from sapflow.errors import InputError, SapflowError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Be `sapflow`: what goes wrong is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does it: no character is worth a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which lets what was made aside be cleared away
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Carry out a command and return its exit code.

    0 is done, 1 failed (an env, a wire, the system), 2 bad input, 130 stopped by SIGINT or SIGTERM.
    """
    return guarded(lambda: _call(arguments))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of `command`; what goes wrong in it is one line on stderr."""
    try:
        return command()
    except InputError as error:
        complain(str(error))
        return EXIT_BAD_INPUT
    except (SapflowError, OSError) as error:
        complain(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED


def _call(arguments: list[str]) -> int:
    with needs("the command line", "cli"):
        from sapflow.cli.commands import call
    return call(arguments)


def complain(message: str) -> None:
    """One line on stderr, whatever a path in the message holds."""
    print("sapflow:", *message.splitlines(), file=sys.stderr)
