"""Makes journals of any size quickly: rows written in one transaction, bodies from templates; most are samples."""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sapflow.telemetry import codec
from sapflow.telemetry.events import (
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    Payload,
    RunStarted,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal_layout import CREATE, INSERT_EVENT
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.vocabulary import Measurement, SeedStage

START = 1_795_374_600.0
HISTOGRAM = (*(0,) * 12, 3, 21, 30, 10, *(0,) * 18)
SAMPLED_PASSES = 2

Row = tuple[int | None, int | None, int | None, str, float, bytes]


def seed(slot: int, epoch: int) -> SeedTelemetry:
    ratio = 0.9 + 0.05 * ((slot + epoch) % 7)
    return SeedTelemetry(
        slot_id=f"slot-{slot}", seed_id=f"slot-{slot}-1", blueprint_id="conv", stage=SeedStage.TRAINING,
        epochs_in_stage=epoch, seed_params=18_400, grad_ratio=ratio, measurement=Measurement.MEASURED, passes=64,
        entering_norm=0.03, leaving_norm=0.03 * ratio, min_ratio=0.8 * ratio, max_ratio=1.2 * ratio, last_ratio=ratio,
        ratio_histogram=HISTOGRAM,
    )  # fmt: skip


def epoch_completed(env_id: int, epoch: int, seeds: int, sequence: int, time: float = START) -> TelemetryEvent:
    payload = EpochCompleted(
        epoch=epoch, epochs=10_000, accuracy=70.0 + epoch % 23, train_loss=0.3, validation_loss=0.4,
        total_passes=64 * epoch, seeds=tuple(seed(slot, epoch) for slot in range(seeds)),
    )  # fmt: skip
    return event(payload, env_id, sequence, time)


def event(payload: Payload, env_id: int | None, sequence: int | None, time: float = START) -> TelemetryEvent:
    return TelemetryEvent(run_id="bench", env_id=env_id, sequence=sequence, time=time, payload=payload)


def sample(slot: int, epoch: int) -> GradientSampled:
    """Its numbers are put in later, into the bytes."""
    health = GradientHealth(
        grad_ratio=0.9, measurement=Measurement.MEASURED, passes=32, entering_norm=0.03, leaving_norm=0.027,
        min_ratio=0.7, max_ratio=1.1, last_ratio=0.9,
    )  # fmt: skip
    return GradientSampled(
        epoch=epoch, slot_id=f"slot-{slot}", seed_id=f"slot-{slot}-1", blueprint_id="conv",
        pass_index=tuple(range(SAMPLED_PASSES)), entering=(0.03,) * SAMPLED_PASSES, leaving=(0.027,) * SAMPLED_PASSES,
        health=health,
    )  # fmt: skip


def rows(events: int, envs: int, seeds: int, samples_an_epoch: int) -> Iterator[Row]:
    """A run of `events` events, its envs interleaved epoch by epoch, cut off in the middle of one."""

    yield _row(event(RunStarted(task="digits-cnn", envs=envs, epochs=10_000), None, 0))
    slot_ids = tuple(f"slot-{slot}" for slot in range(seeds))
    for env_id in range(envs):
        yield _row(event(EnvStarted(host="cnn", host_params=9, slot_ids=slot_ids, epochs=10_000), env_id, 0))
    written, epoch, sequence = envs + 1, 0, 0
    while True:
        epoch += 1
        time = START + epoch
        templates = [codec.encode(event(sample(slot, epoch), 0, None, time)) for slot in range(seeds)]
        completed = codec.encode(epoch_completed(0, epoch, seeds, 0, time))
        for env_id in range(envs):
            bodies = [of(template, env_id, None) for template in templates]
            for number in range(samples_an_epoch):
                yield (env_id, None, epoch, "GRADIENT_SAMPLED", time, bodies[number % seeds])
                written += 1
                if written == events:
                    return
            sequence = 2 * epoch - 1
            yield (env_id, sequence, epoch, "EPOCH_COMPLETED", time, of(completed, env_id, sequence))
            moved = SeedStageChanged(
                epoch=epoch, slot_id="slot-0", seed_id="slot-0-1", from_stage=SeedStage.TRAINING,
                to_stage=SeedStage.TRAINING, reason="one line an epoch",
            )  # fmt: skip
            yield _row(event(moved, env_id, sequence + 1, time))
            written += 2
            if written >= events:
                return


def of(body: bytes, env_id: int, sequence: int | None) -> bytes:
    """The same event of another env: the envelope anew, the payload as it is."""
    envelope = msgspec.msgpack.decode(body, type=codec.Envelope)
    return _encoder.encode(msgspec.structs.replace(envelope, env_id=env_id, sequence=sequence))


_encoder = msgspec.msgpack.Encoder()


def write(run_dir: Path, events: int, envs: int, seeds: int, samples_an_epoch: int) -> None:
    """The journal of a run of so many events, made in one go."""
    _write(run_dir, rows(events, envs, seeds, samples_an_epoch))


def write_events(run_dir: Path, events: Iterable[TelemetryEvent]) -> None:
    """The journal of these events."""
    _write(run_dir, map(_row, events))


def _row(one: TelemetryEvent) -> Row:
    return (one.env_id, one.sequence, one.epoch, one.type.value, one.time, codec.encode(one))


def _write(run_dir: Path, these: Iterable[Row]) -> None:
    run_dir.mkdir(parents=True)
    connection = sqlite3.connect(run_dir / JOURNAL_NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    index = next(statement for statement in CREATE if "CREATE INDEX" in statement)
    for statement in (*(one for one in CREATE if one is not index), "BEGIN"):
        connection.execute(statement)
    connection.executemany(INSERT_EVENT, these)
    connection.execute(index)  # at once is faster than row by row
    connection.execute("COMMIT")
    connection.close()
