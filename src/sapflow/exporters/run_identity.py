"""Which run it is that a directory holds, also before its first event."""

import os
from contextlib import suppress
from pathlib import Path

from sapflow.errors import JournalError
from sapflow.telemetry.source import Source


def run_id_of(run_dir: Path) -> str:
    """What the first event says; before there is one, the name that the run will have: that of its directory."""
    with suppress(JournalError), Source(run_dir) as source:
        for event in source.read(1):
            return event.run_id
    return os.fsencode(run_dir.resolve().name).decode(errors="replace")
