"""The command line: one file a command, each imported when it is called."""

import signal
import sys

from sapflow.errors import InputError, MissingExtraError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run `sapflow`: bad input is one line on stderr and exit code 2, Ctrl-C is no traceback."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Carry out a command and return its exit code."""
    try:
        try:
            from sapflow.cli.commands import call
        except ModuleNotFoundError as error:
            raise MissingExtraError("the command line", "cli") from error
        return call(arguments)
    except InputError as error:
        print(f"sapflow: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("sapflow: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: `sapflow records | head`
        sys.stdout = None
        return 0
