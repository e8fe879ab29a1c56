"""Which runs belong together: by what the command line says, or by where and how their directories are named."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sapflow.errors import InputError

NUMBER_BEHIND = re.compile(r"[-_.]?\d+$")


def groups_of(runs: Sequence[Path], named: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Groups by name: `named` are NAME=RUN,RUN…; of `runs`, those in one directory whose names differ in a number.

    Raises:
        InputError: a group is not of that form, or a run is named twice.
    """
    groups: dict[str, list[Path]] = {}
    for text in named:
        name, equals, paths = text.partition("=")
        if not (name and equals and all(paths.split(","))):
            raise InputError(f"--group {text!r}: write NAME=RUN,RUN…, as in --group new=runs/new-1,runs/new-2")
        groups.setdefault(name, []).extend(map(Path, paths.split(",")))
    for name, members in _by_name(runs).items():
        groups.setdefault(name, []).extend(members)
    seen = Counter(path.resolve() for paths in groups.values() for path in paths)
    if twice := [path for path, times in seen.items() if times > 1]:
        raise InputError(f"{twice[0]} is named more than once: a run counts once")
    return groups


def _by_name(runs: Sequence[Path]) -> dict[str, list[Path]]:
    families: dict[Path, list[Path]] = {}
    for run in runs:
        place = run.resolve()
        stem = NUMBER_BEHIND.sub("", place.name)
        families.setdefault(place.parent / stem if stem else place.parent, []).append(run)
    named: dict[Path, list[Path]] = {}
    for family, members in families.items():  # a run beside which others were made has the name of their family
        named.setdefault(family if len(members) > 1 else members[0].resolve(), []).extend(members)
    return {_short(family, named): members for family, members in named.items()}


def _short(path: Path, others: Iterable[Path]) -> str:
    """As much of the end of a path as no other ends in."""
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if sum(other.parts[-length:] == end for other in others) == 1:
            return "/".join(end)
    return str(path)
