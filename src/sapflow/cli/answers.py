"""Where rows go that a command has found: to the terminal, to the next program, or into a file."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sapflow.cli.console import say
from sapflow.errors import InputError
from sapflow.history.text import counted, size

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "parquet", "arrow"]
Output = Annotated[Path | None, Parameter(name=("--output", "-o"))]


def check(output: Path | None, how: Format | None, *, force: bool) -> Format:
    """The format that is meant, after a look at where it is to go: what is wrong there is said before any work.

    Raises:
        InputError: it cannot go there.
    """
    from sapflow.history.output import BINARY, check_writable, format_of

    if output is None:
        if how in BINARY:
            raise InputError(f"{how} is nothing to look at: name a file with -o")
        return how or "table"
    check_writable(output, force=force)
    return how or format_of(output)


def put(reader: "pa.RecordBatchReader", output: Path | None, how: Format, *, force: bool) -> None:
    """Hand on all rows; a reader that leaves early (`| head`) is no error.

    Raises:
        InputError: the file cannot be written.
    """
    from sapflow.history.output import Harmless, write, write_file

    if output is not None:
        rows = write_file(reader, output, how, force=force)
        say(f"{output}: {counted(rows, 'row')}, {size(output.stat().st_size)}")
        return
    try:
        write(reader, Harmless(sys.stdout.buffer) if sys.stdout.isatty() else sys.stdout.buffer, how)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _leave()
    except KeyboardInterrupt:
        _leave()
        raise


def _leave() -> None:
    """What is left in the buffer goes nowhere: the interpreter would wait for a reader, or complain that it is gone."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
