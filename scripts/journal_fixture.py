"""Keeps a journal as this version writes it, for all later ones to read: tests/fixtures/journals/VERSION."""

import json
import shutil
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

import sapflow
from sapflow.telemetry.events import (
    PAYLOADS,
    SCHEMA_VERSION,
    GradientHealth,
    GradientSampled,
    Payload,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.vocabulary import Measurement, SeedStage

JOURNALS = Path(__file__).parents[1] / "tests" / "fixtures" / "journals"
RUN = "fixture"
ENV = 3
START = 1_700_000_000.5
PASSES = ((0, 1.0, 0.5), (1, float("nan"), 1.0), (2, 1.0, float("inf")), (3, 2.0, 5.0))


def whole(kind: type[Any], **fields: Any) -> Any:
    """A struct of which every field is given, and none is what it is by default."""
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name]) for name in kind.__struct_fields__} | fields)


def _value(name: str, kind: Any) -> Any:
    """Something of that type that is neither empty nor zero."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    match kind:
        case type() if issubclass(kind, msgspec.Struct):
            return whole(kind)
        case type() if issubclass(kind, str) and kind is not str:  # an enum
            return list(kind)[-1]
    if get_origin(kind) is tuple:
        return (_value(name, get_args(kind)[0]),) * 2
    if get_origin(kind) is dict:
        return {name: name}
    return {bool: True, int: 7, float: 0.25, str: name}[kind]


def payloads() -> list[Payload]:
    """One of each type, and samples and seeds as they are in life."""
    passes, entering, leaving = zip(*PASSES, strict=True)
    health = whole(GradientHealth, measurement=Measurement.MEASURED)
    seed = whole(SeedTelemetry, slot_id="slot_id", seed_id="seed_id", stage=SeedStage.BLENDING)
    special = {
        GradientSampled: {"pass_index": passes, "entering": entering, "leaving": leaving, "health": health},
        PAYLOADS["EPOCH_COMPLETED"]: {"seeds": (seed, SeedTelemetry(slot_id="empty"))},
    }
    return [whole(payload, **special.get(payload, {})) for payload in PAYLOADS.values()]


def events() -> list[TelemetryEvent]:
    """They, in the order in which events are written."""
    found = []
    for sequence, payload in enumerate(payloads()):
        of_run = payload.type.value.startswith("RUN_")
        number = None if isinstance(payload, GradientSampled) else sequence
        found.append(
            TelemetryEvent(
                run_id=RUN, env_id=None if of_run else ENV, sequence=number, time=START + sequence, payload=payload
            )
        )
    return found


def as_json(event: TelemetryEvent) -> dict[str, Any]:
    """What the event has to say, NaN and infinities in the way of Python's json."""
    place = {"env_id": event.env_id, "sequence": event.sequence, "time": event.time, "type": event.type.value}
    return {**place, "payload": msgspec.to_builtins(event.payload)}


def write(folder: Path) -> None:
    """The journal, and beside it what is in it."""
    folder.mkdir(parents=True)
    journal = Journal(folder)
    for event in events():
        journal.emit(event)
    assert journal.close().acknowledged == len(events())
    lines = [json.dumps(as_json(event), sort_keys=True) for event in events()]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    place = JOURNALS / f"{sapflow.__version__}-schema-{SCHEMA_VERSION}"
    if place.exists() and "--unreleased" not in sys.argv[1:]:
        sys.exit(f"{place} is kept as it was released; if {sapflow.__version__} is not released yet: --unreleased")
    shutil.rmtree(place, ignore_errors=True)
    write(place)
