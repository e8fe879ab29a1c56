"""The JSON Schema of all events, made from the types themselves: what `sapflow schema` prints and exporters keep to."""

from inspect import cleandoc
from typing import Any

import msgspec

from sapflow.telemetry.events import PAYLOADS, SCHEMA_VERSION

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def event_schema() -> dict[str, Any]:
    """JSON Schema of an event as JSON: the envelope, and by its `type` the payload.

    JSON has no NaN and no infinity: such a number is null, and `non_finite` says by JSON pointer which it was.
    """
    references, definitions = msgspec.json.schema_components(PAYLOADS.values(), ref_template="#/$defs/{name}")
    payloads = dict(zip(PAYLOADS, references, strict=True))
    return {
        "$schema": DIALECT,
        "title": f"An event of Sapflow, schema version {SCHEMA_VERSION}",
        "type": "object",
        "properties": {
            "key": {"type": "string", "description": "The same whenever the event comes again: drop what you have."},
            "schema": {"const": SCHEMA_VERSION, "description": "The version of this schema."},
            "run_id": {"type": "string"},
            "env_id": {"type": ["integer", "null"], "description": "null: the event is of the run itself."},
            "sequence": {
                "type": ["integer", "null"],
                "description": "Counts an env's events from 0; null for what the run does not determine.",
            },
            "time": {"type": "number", "description": "Unix seconds."},
            "type": {"enum": list(PAYLOADS)},
            "payload": {"type": "object"},
            "non_finite": {
                "description": "By JSON pointer, which nulls stand for numbers that are not finite.",
                "type": "object",
                "additionalProperties": {"enum": list(NOT_FINITE)},
            },
        },
        "required": ["schema", "run_id", "env_id", "sequence", "time", "type", "payload"],
        "allOf": [
            {"if": {"properties": {"type": {"const": name}}}, "then": {"properties": {"payload": payload}}}
            for name, payload in payloads.items()
        ],
        "$defs": {name: _as_json_has_it(definition) for name, definition in definitions.items()},
    }


def _as_json_has_it(schema: Any) -> Any:
    """Wherever there may be a number that is not finite, there may be null."""
    if isinstance(schema, dict):
        changed = {key: _as_json_has_it(value) for key, value in schema.items()}
        if isinstance(changed.get("description"), str):  # a docstring, with the indentation of its code
            changed["description"] = cleandoc(changed["description"])
        return changed | {"type": ["number", "null"]} if schema.get("type") == "number" else changed
    return [_as_json_has_it(item) for item in schema] if isinstance(schema, list) else schema
