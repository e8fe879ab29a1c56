"""Writes docs/events.md from the JSON Schema of the events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sapflow.telemetry.events import PAYLOADS, SCHEMA_VERSION
from sapflow.telemetry.json_schema import event_schema

PAGE = Path(__file__).parents[1] / "docs" / "events.md"

HEAD = f"""# Events

Written by `make events` from the types in `src/sapflow/telemetry/events.py`: schema version {SCHEMA_VERSION}, as
`sapflow schema` prints it for programs. In the journal an event is msgpack, where NaN and infinities are numbers; as
JSON (`sapflow follow --export jsonlines`, webhooks) they are null, and `non_finite` says by JSON pointer which nulls
those are.

A reader meets events of newer versions: it skips a type that it does not know, counts it, and passes over fields that
it does not know. Fields are only ever added, with a default; a default is left out of the payload.

## The envelope

| field | type | |
| --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    schema = event_schema()
    definitions: dict[str, Any] = schema["$defs"]
    payloads = {payload.__name__: name for name, payload in PAYLOADS.items()}
    shared = [name for name in definitions if name not in payloads]
    lines = [HEAD.rstrip("\n"), *_fields(schema)]
    lines += ["", "## Events by type"]
    for name, event_type in payloads.items():
        lines += ["", f"### {event_type}", *_described(definitions[name])]
    lines += ["", "## What they are made of"]
    for name in shared:
        lines += ["", f"### {name}", *_described(definitions[name])]
    return "\n".join(lines) + "\n"


def _described(definition: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield definition["description"]
    if "enum" in definition:
        yield ""
        yield ", ".join(f"`{value}`" for value in definition["enum"]) + "."
    if definition.get("properties"):
        yield ""
        yield "| field | type | default |"
        yield "| --- | --- | --- |"
        for name, field in definition["properties"].items():
            default = f"`{_shown(field['default'])}`" if "default" in field else "required"
            yield f"| `{name}` | {_type(field)} | {default} |"


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    for name, field in schema["properties"].items():
        yield f"| `{name}` | {_type(field)} | {field.get('description', '')} |"


def _shown(value: Any) -> str:
    return json.dumps(value)


def _type(field: dict[str, Any]) -> str:
    match field:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options}:
            return " or ".join(_type(option) for option in options)
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object", "additionalProperties": values}:
            return f"object of {_type(values)}"
        case {"enum": values}:
            return "one of " + ", ".join(f"`{value}`" for value in values)
        case {"const": value}:
            return f"`{value}`"
        case {"type": [*names]}:
            return " or ".join(names)
        case {"type": name}:
            return str(name)
    raise ValueError(field)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
