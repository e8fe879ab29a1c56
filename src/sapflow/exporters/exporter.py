"""The seam: what an exporter is, what it is told when it is opened, and the key by which a receiver knows an event."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from sapflow.errors import InputError
from sapflow.exporters.run_identity import RunIdentity
from sapflow.telemetry.events import GradientSampled, TelemetryEvent

Options = TypeVar("Options", bound=msgspec.Struct)


class Exporter(Protocol):
    """Brings events to one backend; used from one thread, in a process of its own.

    Events come in the order of the journal and at least once: after a crash, or when a batch was taken only in part,
    the last ones come again. `Setting.key_of` lets the receiver drop what it has.
    """

    def export(self, events: Sequence[TelemetryEvent]) -> Mapping[str, int] | None:
        """Hand the events over; when this returns they are the backend's, or on a disk from which they will get there.

        Returns:
            How much of it the backend has refused for good, by what it was; nothing where it took all.

        Raises:
            BackendAwayError: the same events are to be brought again, later.
            ExporterRefusedError: there is no point before a person has changed something.
            Exception: of any other kind: these events are at fault. The batch is halved until the ones that are have
                been found; those are counted and passed over.
        """

    def close(self) -> None:
        """Hand over what is still on its way. It may take its time; the process ends after CLOSING_SECONDS anyway."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an exporter is told when it is opened.

    Attributes:
        name: under which it was asked for.
        run_dir: of the run that it is to follow.
        run: which one it is.
        read_from: where its journal is, if that is not the run directory: of a rolled run it is made again, aside.
        cursor: behind which the events begin: 0 for all (see `Source.start_after`).
        resumed: an exporter of this name has been open for this run before.
        options: the table [exporters.NAME] of the configuration.
    """

    name: str
    run_dir: Path
    run: RunIdentity
    read_from: Path | None = None
    cursor: int = 0
    resumed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def key_of(self, event: TelemetryEvent) -> str:
        """What tells an event of the run from all others of all runs (see `event_key`)."""
        return event_key(event, self.run.key)

    def options_as(self, kind: type[Options]) -> Options:
        """The options, checked.

        Raises:
            InputError: one is unknown, or not of its type.
        """
        return read_options(self.name, self.options, kind)


Open = Callable[[Setting], Exporter]
"""Opens an exporter, and raises InputError where a person has to change something first."""


def read_options(name: str, options: Mapping[str, Any], kind: type[Options]) -> Options:
    """The table [exporters.`name`] as the struct that describes it.

    Raises:
        InputError: an option is unknown, or not of its type.
    """
    known = msgspec.structs.fields(kind)
    for key in options:
        if key not in {field.name for field in known}:
            choice = ", ".join(field.name for field in known) or "none"
            raise InputError(f"exporter {name} has no option {key!r}: there are {choice}")
    for key, value in options.items():
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"the option {key} of exporter {name} has a zero byte in it, which no name or path has")
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise InputError(f"the options of exporter {name} cannot be used: {error}") from error


def event_key(event: TelemetryEvent, run: str) -> str:
    """What tells an event from all others of all runs, and is the same whenever the event comes again.

    Of the run with the key `run` (see `RunIdentity`): run/env/sequence for an event of the run's own course,
    run/env/slot/epoch/first pass for a sample, and run/env/type/time for what the course does not determine; "-"
    stands for the run itself.
    """
    env = "-" if event.env_id is None else str(event.env_id)
    payload = event.payload
    if event.sequence is not None:
        parts: tuple[object, ...] = (event.sequence,)
    elif isinstance(payload, GradientSampled):
        parts = (payload.slot_id, payload.epoch, payload.pass_index[0] if payload.pass_index else "-")
    else:
        parts = (event.type.value, repr(event.time))
    return "/".join((run, env, *map(str, parts)))
