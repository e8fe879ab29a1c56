"""A file that is written whole before it bears its name, and takes no other's place."""

from pathlib import Path


def place(written: Path, path: Path) -> None:
    """Give the file that name, and never replace what came meanwhile, as a rename would.

    Raises:
        FileExistsError: something bears the name.
        OSError: it cannot be given.
    """
    try:
        path.hardlink_to(written)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links, such as exFAT
        path.touch(exist_ok=False)
        written.replace(path)
