"""What grows where: the lives of a run with their epochs, and how they are shared out over panels."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import Measurement, SeedStage

Row = dict[str, Any]
T = TypeVar("T")

SERIES_A_PANEL = 6  # as many as there are looks
MOST_PANELS = 24
LARGEST_DRAWN = 1e100


@dataclass(frozen=True)
class Life:
    """One seed in its slot, with a row for each epoch in which it stood there."""

    env: int
    slot: str
    seed: str
    blueprint: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Panel:
    """What is drawn together: some slots of one env."""

    env: int
    slots: tuple[str, ...]
    title: str


KEYS = ("env", "slot", "seed", "blueprint", "stage", "epoch")


def lives_of(
    run: Run, columns: Sequence[str], envs: Collection[int] | None = None, slots: Collection[str] | None = None
) -> list[Life]:
    """The lives in these envs and slots (None: in all), with KEYS and `columns` of `run.epochs()`."""
    table = run.epochs(columns=list(dict.fromkeys((*KEYS, *columns))), env=the_only(envs), slot=the_only(slots))
    rows = [
        row
        for row in table.to_pylist()
        if SeedStage(row["stage"]).alive
        and (envs is None or row["env"] in envs)
        and (slots is None or row["slot"] in slots)
    ]
    order = {place: number for number, place in enumerate(dict.fromkeys((row["env"], row["slot"]) for row in rows))}
    rows.sort(key=lambda row: (row["env"], order[row["env"], row["slot"]], row["epoch"]))
    return [
        Life(env, slot, seed, group[0]["blueprint"], tuple(group))
        for (env, slot, seed), rows_of in groupby(rows, key=lambda row: (row["env"], row["slot"], row["seed"]))
        if (group := list(rows_of))
    ]


def the_only(wanted: Collection[T] | None) -> T | None:
    """What tables can be asked for: one env or slot, or all."""
    return next(iter(wanted)) if wanted is not None and len(wanted) == 1 else None


def panels_of(lives: Iterable[Life]) -> list[Panel]:
    """Panels for these lives: one an env, more where it has many slots."""
    panels = []
    for env, group in groupby(lives, key=lambda life: life.env):
        slots = list(dict.fromkeys(life.slot for life in group))
        chunks = [tuple(slots[start : start + SERIES_A_PANEL]) for start in range(0, len(slots), SERIES_A_PANEL)]
        for number, chunk in enumerate(chunks, 1):
            part = f", {number} of {len(chunks)}" if len(chunks) > 1 else ""
            panels.append(Panel(env, chunk, f"env {env}{part}"))
    return panels


def trouble(life: Life) -> int:
    """Epochs of a life that a person would want to see; needs status, vanishing, exploding and non_finite."""
    return sum(row["vanishing"] or row["exploding"] or row["non_finite"] > 0 or not_measured(row) for row in life.rows)


def most_telling(panels: Sequence[Panel], lives: Iterable[Life], most: int = MOST_PANELS) -> list[Panel]:
    """At most so many panels, those with the most trouble, in their own order."""
    if len(panels) <= most:
        return list(panels)
    troubles: dict[tuple[int, str], int] = {}
    for life in lives:
        place = life.env, life.slot
        troubles[place] = troubles.get(place, 0) + trouble(life)
    kept = sorted(panels, key=lambda panel: -sum(troubles[panel.env, slot] for slot in panel.slots))[:most]
    return [panel for panel in panels if panel in kept]


def as_drawn(value: float) -> float:
    """The value; infinity, which has no place in a picture, where Matplotlib's own products of it would overflow."""
    return math.copysign(math.inf, value) if abs(value) > LARGEST_DRAWN else value


def not_measured(row: Row) -> bool:
    """Whether a backward pass was expected and its ratio is not known (a GERMINATED seed is still to be trained)."""
    return row["status"] != Measurement.MEASURED and SeedStage(row["stage"]).trained
