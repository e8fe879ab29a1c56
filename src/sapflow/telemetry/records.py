"""The telemetry records as data: what every field of SeedTelemetry means, where it comes from, and where it is shown.

What differs from record to record is written in `records.toml`; what is the same for all (classes, files, the stages of
the transport, the path in the snapshot) is derived here. Whether a record is *Tested* is written nowhere:
`sapflow.verification` computes it.
"""

from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path

import msgspec

from sapflow.errors import InputError
from sapflow.telemetry.events import GradientHealth, SeedTelemetry
from sapflow.telemetry.record_sections import (
    Change,
    Check,
    Data,
    Dependency,
    Display,
    Identity,
    Purpose,
    Section,
    Source,
    Stage,
    Status,
)

FIELDS: tuple[str, ...] = SeedTelemetry.__struct_fields__
# SeedState keeps the gradient flow as one GradientHealth, its `health`; these three it also has in its own name.
_STATE_HAS_ITSELF = ("grad_ratio", "has_vanishing", "has_exploding")

STATE_FILE = "growth/slot.py"
TELEMETRY_FILE = "telemetry/events.py"
SCHEMA_FILE = "sanctum/schema.py"
CARD_FILE = "sanctum/widgets/env_detail_screen.py"
TEXT_FILE = "sanctum/formatting.py"

FIRST_ENTRY = Change(date(2026, 11, 23), "Sapflow", "Initial creation, beside TELE-557")


class Record(Section, frozen=True):
    """One telemetry record: a field of SeedTelemetry and everything that is promised of it."""

    field: str
    identity: Identity
    purpose: Purpose
    data: Data
    source: Source
    upstream: tuple[Dependency, ...]
    downstream: tuple[Dependency, ...]
    notes: str
    display: Display
    status: Status = Status()
    history: tuple[Change, ...] = (FIRST_ENTRY,)

    @property
    def id(self) -> str:
        """The record's id, such as TELE-557."""
        return self.identity.id

    @property
    def path(self) -> str:
        """Where the value stands in a SanctumSnapshot."""
        return f"snapshot.envs[env_id].seeds[slot_id].{self.field}"

    @property
    def in_health(self) -> bool:
        """Whether SeedState has the field only in its `health`, a GradientHealth."""
        return self.field in GradientHealth.__struct_fields__ and self.field not in _STATE_HAS_ITSELF

    @property
    def state_field(self) -> str:
        """Where the value stands in growth's SeedState, such as `grad_ratio` or `health.passes`."""
        return f"health.{self.field}" if self.in_health else self.field

    @property
    def transport(self) -> tuple[Stage, ...]:
        """The stages from where the value is computed to where it is shown."""
        return (
            Stage("Computation", self.source.computation, self.source.file),
            Stage("Storage", f"SeedState.{self.state_field} updated", STATE_FILE),
            Stage("Telemetry", f"SeedTelemetry.{self.field} field", TELEMETRY_FILE),
            Stage("Schema", f"SeedState.{self.field} in Sanctum", SCHEMA_FILE),
            Stage("Display", "EnvDetailScreen SeedCard", CARD_FILE),
        )

    @property
    def declaration(self) -> str:
        """The field as a dataclass declares it, such as `grad_ratio: float = 0.0`."""
        return f"{self.field}: {self.data.type}" + ("" if self.data.required else f" = {self.default_literal}")

    @property
    def default_literal(self) -> str:
        """The default as it stands in Python, such as `0.0` or `SeedStage.DORMANT`."""
        if self.data.required:
            return "required"
        default = self.data.default
        if not isinstance(default, str):
            return repr(default)
        return f'"{default}"' if self.data.type == "str" else f"{self.data.type}.{default}"

    @property
    def wiring(self) -> tuple[Check, ...]:
        """The six boxes of the wiring checklist."""
        looks = f'Format: "{self.display.text}"' + (f" {self.display.looks}" if self.display.looks else "")
        return (
            Check("Emitter exists", self.source.checked),
            Check("Transport works", f"SeedState.{self.state_field} updated; telemetry carries value"),
            Check("Schema field exists", f"`SeedState.{self.declaration}`"),
            Check("Default is correct", f"`{self.default_literal}` is correct for {self.data.default_means}"),
            Check("Consumer reads it", f"SeedCard displays `seed.{self.field}`"),
            Check("Display is correct", looks),
        )


class _File(Section, frozen=True):
    """What stands in `records.toml`."""

    records: tuple[Record, ...]


@cache
def all_records() -> tuple[Record, ...]:
    """Every record, in the order of the ids; read once, when first asked for."""
    import tomllib  # here, since who only imports the contract needs no parser

    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), _File).records


def record(record_id: str) -> Record:
    """The record with this id; "tele-557" and "557" will do for TELE-557.

    Raises:
        InputError: there is none.
    """
    record_id = record_id.strip().upper()
    if record_id.isdecimal():
        record_id = f"TELE-{record_id}"
    return _find("telemetry record", record_id, {known.id: known for known in all_records()})


def record_of(field: str) -> Record:
    """The record of a field of SeedTelemetry.

    Raises:
        InputError: SeedTelemetry has no such field.
    """
    return _find("telemetry field", field, {known.field: known for known in all_records()})


def _find(kind: str, key: str, known: Mapping[str, Record]) -> Record:
    if key in known:
        return known[key]
    from difflib import get_close_matches  # here, since only a wrong name needs it

    near = get_close_matches(key, known, cutoff=0.8)
    hint = f", did you mean {' or '.join(near)}?" if near else ":"
    raise InputError(f"there is no {kind} {key!r}{hint} `sapflow records` lists all")
