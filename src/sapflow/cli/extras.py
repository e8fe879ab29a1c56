"""What a command needs beyond the core, and how to get it where it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from sapflow.errors import MissingExtraError


@contextmanager
def needs(part: str, extra: str) -> Iterator[None]:
    """Around imports that only `extra` brings, for `part` of Sapflow.

    Raises:
        MissingExtraError: a module of somebody else's is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sapflow":  # a fault of ours; no installation helps
            raise
        raise MissingExtraError(part, extra) from error
