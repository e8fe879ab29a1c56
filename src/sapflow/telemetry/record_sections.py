"""What a telemetry record is made of: its sections, and the rows of their tables, as they stand in `records.toml`."""

from datetime import date
from typing import Literal

from msgspec import Struct

Reader = Literal["operator", "developer", "researcher", "automation"]
Timing = Literal["real-time", "periodic", "on-demand", "post-hoc"]
Default = str | bool | int | float | tuple[int, ...] | None


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """The base of all sections: immutable, and strict about what it is read from."""


class Row(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The base of what is a row of a table, written as an array."""


class Status(Section, frozen=True):
    """The boxes that a person ticks; *Tested* is not one of them.

    Wired: a value travels from its emitter to the snapshot. Verified: a person has compared the record with the code.
    """

    planned: bool = True
    wired: bool = True
    verified: bool = True


class Identity(Section, frozen=True):
    """Section 1: what the record is called, and how much hangs on it."""

    id: str
    name: str
    priority: Literal["P0-critical", "P1-important", "P2-useful"]
    category: str = "seed"


class Purpose(Section, frozen=True):
    """Section 2: the question that the field answers, for whom, and when."""

    question: str
    readers: tuple[Reader, ...]
    timings: tuple[Timing, ...]


class Range(Section, frozen=True):
    """An interval of numbers; an infinite end is never included."""

    lower: int | float
    upper: int | float
    lower_inclusive: bool = True
    upper_inclusive: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.lower if self.lower_inclusive else value > self.lower
        below = value <= self.upper if self.upper_inclusive else value < self.upper
        return above and below


class Band(Section, frozen=True):
    """The values that are healthy, both ends included."""

    lower: float
    upper: float


class Threshold(Row, frozen=True):
    """A condition on the value, where it applies, and what it means."""

    context: str
    condition: str
    meaning: str


class Data(Section, frozen=True):
    """Section 3: type, units, range and meaning.

    `range` is None where the value is no number, `allowed` says in words what is then possible; `precision` counts the
    decimals on display and is None where the value is shown as it is; `required` fields have no default; `meaning` is
    Markdown.
    """

    type: str
    units: str
    default_means: str
    meaning: str
    range: Range | None = None
    allowed: str = ""
    precision: int | None = None
    precision_note: str = ""
    default: Default = None
    required: bool = False
    thresholds: tuple[Threshold, ...] = ()
    band: Band | None = None


class Stage(Row, frozen=True):
    """One stage of the transport, from the backward pass to the screen."""

    name: str
    mechanism: str
    file: str


class Source(Section, frozen=True):
    """Where the value comes into being; `beside` names the fields of the same state that are read together with it."""

    origin: str
    emitter: str
    computation: str
    file: str
    checked: str
    beside: tuple[str, ...] = ()


class Rule(Row, frozen=True):
    """A text and its style, for when `condition` on `seed` holds; `text.format(seed=seed)` fills in the value."""

    condition: str
    text: str
    style: str


class Display(Section, frozen=True):
    """How the SeedCard shows the value: an example of the text, when it stands there, and how else it looks.

    `rules` are tried in order, the first whose condition holds decides; `label` stands before their text.
    """

    text: str
    when: str = ""
    looks: str = ""
    label: str = ""
    rules: tuple[Rule, ...] = ()


class Check(Row, frozen=True):
    """A box of the wiring checklist, ticked: what is not wired has no record."""

    name: str
    note: str


class Dependency(Row, frozen=True):
    """What the record depends on, or what depends on it."""

    name: str
    type: str
    notes: str


class Change(Row, frozen=True):
    """An entry of the record's history."""

    date: date
    author: str
    change: str
