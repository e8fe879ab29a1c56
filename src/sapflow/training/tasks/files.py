"""Reading a person's data files: a bounded number of bytes, and one clear line where something is wrong."""

import gzip
import zlib
from pathlib import Path

from sapflow.errors import InputError


def find(directory: Path, name: str) -> Path:
    """The file of this name in the directory, as it is or packed as .gz.

    Raises:
        InputError: neither is there.
    """
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{directory / name}: there is no such file, nor {name}.gz")


def read_at_most(path: Path, most: int) -> bytes:
    """The content of a file, unpacked if its name ends in .gz.

    Raises:
        InputError: it cannot be read, or is larger than `most` bytes; no more than these are held at any time.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(content) > most:
        raise InputError(f"{path}: is larger than the {most:,} bytes that it may have")
    return content
