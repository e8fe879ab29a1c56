"""To TensorBoard: scalars, histograms of the passes' gains, and alerts as text, an epoch a step, an env a run."""

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from sapflow.errors import BackendAwayError, ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.ledger import FOLDER
from sapflow.exporters.run_view import events_before
from sapflow.exporters.series import ENV_GAUGES, SEED_SERIES
from sapflow.telemetry.events import (
    HISTOGRAM_LOWEST_OCTAVE,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    EpochCompleted,
    GradientSampled,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.wording import describe

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

HISTOGRAM_TEXT = "log2 of the gain of single passes: 0 is a gain of 1, the band is from -1 to 1"
TEXT_LIMIT = 2_000
OWN = re.compile(r"env-\d+")
FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.(\d{9})\.")


class Options(msgspec.Struct, frozen=True):
    """`logdir` for RUN_ID/env-N; by default run_dir/exporters/tensorboard, without the RUN_ID."""

    logdir: str = ""


class _EventFile:
    """An event file of one env, written in step, so that what went wrong is known where it did."""

    def __init__(self, folder: Path, first_step: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = (folder / _next_name(folder)).open("xb")
        self._records = RecordWriter(self._file)
        self._described: set[str] = set()
        self.write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if first_step is not None:
            # TensorBoard drops what older files have from this step on: what comes a second time.
            start = SessionLog(status=SessionLog.START)
            self.write(Event(wall_time=time.time(), step=first_step, session_log=start))

    def describe(self, value: "Summary.Value", meaning: "SummaryMetadata") -> None:
        """Say what a tag is with its first value alone, as every reader remembers it."""
        if value.tag not in self._described:
            self._described.add(value.tag)
            value.metadata.CopyFrom(meaning)

    def write(self, event: "Event") -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _next_name(folder: Path) -> str:
    """TensorBoard reads files in the order of their names, and a clock may have been set back since the last one."""
    older = [int(found[1] + found[2]) for path in folder.iterdir() if (found := FILE.match(path.name))]
    seconds, rest = divmod(max(time.time_ns(), *(one + 1 for one in older), 0), 10**9)
    return f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}"


class TensorBoard:
    """Writes event files with TensorBoard's own records and messages; needs neither TensorFlow nor torch.

    A new file takes the place of all that older ones have from its first step on. So it begins with the last epoch that
    was written before, whose events are kept for that of each env; one that has ended long ago takes the place of none.
    """

    def __init__(self, logdir: Path, written: Iterable[TelemetryEvent]) -> None:
        self._logdir = logdir
        self._files: dict[int, _EventFile] = {}
        self._ended: set[int] = set()
        self._last_epochs: dict[int, list[TelemetryEvent]] = {}
        for event in written:
            self._keep([event])
            self._let_go([event])

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        try:
            for event in events:
                self._write(event)
            for file in self._files.values():
                file.flush()
            self._keep(events)
            self._let_go(events)
        except OSError as error:
            self._give_up_files()
            raise BackendAwayError(f"{self._logdir} cannot be written ({error.strerror})") from error
        except Exception:  # an event is at fault: the others of the batch come again
            self._give_up_files()
            raise

    def close(self) -> None:
        """See `Exporter.close`."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, event: TelemetryEvent) -> None:
        env_id, epoch = event.env_id, event.epoch
        if env_id is None or epoch is None or isinstance(event.payload, GradientSampled):
            return
        if env_id not in self._files:
            kept = self._last_epochs.get(env_id, [])
            first = kept[0].epoch if kept else None if env_id in self._ended else epoch
            file = self._files[env_id] = _EventFile(self._logdir / f"env-{env_id}", first)
            for one in kept:
                _write(file, one)
        _write(self._files[env_id], event)

    def _keep(self, events: Iterable[TelemetryEvent]) -> None:
        """Those of the last epoch of each env; called when they are written for good."""
        for event in events:
            env_id, epoch = event.env_id, event.epoch
            if env_id is None or epoch is None or isinstance(event.payload, GradientSampled):
                continue
            if env_id in self._ended and env_id not in self._last_epochs:
                continue
            kept = self._last_epochs.setdefault(env_id, [])
            if kept and (kept[0].epoch or 0) < epoch:
                kept.clear()
            if not kept or kept[0].epoch == epoch:
                kept.append(event)

    def _let_go(self, events: Iterable[TelemetryEvent]) -> None:
        """Of the files of envs that have ended; and, once another begins, of what was kept of them."""
        for event in events:
            match event.payload:
                case EnvCompleted() | EnvFailed() if event.env_id is not None:
                    self._ended.add(event.env_id)
                case EnvStarted():
                    for env_id in [one for one in self._last_epochs if one in self._ended]:
                        del self._last_epochs[env_id]
        for env_id in [one for one in self._files if one in self._ended]:
            self._files.pop(env_id).close()

    def _give_up_files(self) -> None:
        """Their ends may be torn; the next try begins new ones, and TensorBoard drops what those repeat."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                continue
        self._files.clear()


def _write(file: _EventFile, event: TelemetryEvent) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    payload = event.payload
    said = Event(wall_time=event.time, step=event.epoch)
    add = said.summary.value.add
    if isinstance(payload, EpochCompleted):
        for tag, number, help_ in _numbers(payload):
            # Not as simple_value, which is shorter: of that the interface shows no description.
            file.describe(add(tag=tag, tensor=TensorProto(dtype=DT_FLOAT, float_val=(number,))), _scalar(help_))
        for seed in payload.seeds:
            if seed.stage.alive and any(seed.ratio_histogram):
                file.describe(add(tag=f"gradient.gain of passes/{seed.slot_id}", tensor=_buckets(seed)), _histogram())
    else:
        for summary in _words(event):
            for value in summary.value:
                file.describe(add(tag=value.tag, tensor=value.tensor), value.metadata)
    if said.summary.value:
        file.write(said)


def _numbers(done: EpochCompleted) -> Iterator[tuple[str, float, str]]:
    """Tags, numbers, and what they are."""
    for gauge in ENV_GAUGES:
        if (value := gauge.value(done)) is not None:
            yield f"env/{gauge.name}", value, gauge.help
    for seed in done.seeds:
        if seed.stage.alive:
            for series in SEED_SERIES:
                if (value := series.value(seed)) is not None:
                    yield f"{series.name}/{seed.slot_id}", value, series.help


@cache
def _scalar(text: str) -> "SummaryMetadata":
    from tensorboard.plugins.scalar.metadata import create_summary_metadata

    return create_summary_metadata(display_name=None, description=text)


@cache
def _histogram() -> "SummaryMetadata":
    from tensorboard.plugins.histogram.metadata import create_summary_metadata

    return create_summary_metadata(display_name=None, description=HISTOGRAM_TEXT)


def _buckets(seed: SeedTelemetry) -> "TensorProto":
    """The octaves from the first to the last with a pass, as buckets: left and right edge, and count.

    The lowest and the highest that there are stand for all beyond.
    """
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

    counts = seed.ratio_histogram
    passed = [place for place, count in enumerate(counts) if count]
    places = range(passed[0], passed[-1] + 1)
    lowest = HISTOGRAM_LOWEST_OCTAVE - 1
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in (len(places), 3)])
    edges = [number for place in places for number in (lowest + place, lowest + place + 1, counts[place])]
    return TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, double_val=edges)


def _words(event: TelemetryEvent) -> Iterator["Summary"]:
    """The event's line in the log, under its slot or its env; none for an event that has no line."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    parts = [part for part in describe(event.payload) if part]
    if parts:
        payload = event.payload
        slot = getattr(payload, "slot_id", "") or getattr(getattr(payload, "alert", None), "slot_id", "")
        line = " · ".join(parts)[:TEXT_LIMIT]
        yield text_pb(f"events/{slot or 'env'}", f"**{event.type}** {_plain(line)}")


def _plain(text: str) -> str:
    """TensorBoard renders Markdown, and names are a stranger's."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]()<>#+-.!|" else character for character in text)


def open_exporter(setting: Setting) -> TensorBoard:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    own = setting.run_dir / FOLDER / "tensorboard"
    logdir = Path(options.logdir) / re.sub(r"[/\0]", "_", setting.run.run_id) if options.logdir else own
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if any(not (setting.resumed and OWN.fullmatch(path.name)) for path in logdir.iterdir()):
            raise ExporterRefusedError(f"{logdir} is not empty, and not from this run: choose another logdir")
    except OSError as error:
        raise ExporterRefusedError(f"{logdir} cannot be written ({error.strerror}): choose another logdir") from error
    return TensorBoard(logdir, events_before(setting))
