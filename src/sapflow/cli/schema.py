"""`sapflow schema`: what events look like, for programs."""

import msgspec

from sapflow.cli.console import say
from sapflow.telemetry.json_schema import event_schema


def schema() -> None:
    """Print the JSON Schema of all events."""
    say(msgspec.json.format(msgspec.json.encode(event_schema())).decode())
