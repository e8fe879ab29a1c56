"""A run of any size for benchmarks/history.py, said by the real Journal: what a training of many seeds would say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sapflow.telemetry.events import (
    HISTOGRAM_BINS,
    HISTOGRAM_LOWEST_OCTAVE,
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    RunCompleted,
    RunStarted,
    SeedGerminated,
    SeedStageChanged,
    SeedTelemetry,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import TrainerLock, create
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Measurement, SeedStage

ENVS = 16
SLOTS = ("early", "mid", "late", "head")
PASSES_A_EPOCH = 100
PASSES_A_SAMPLE = 10  # as many as a step of 40 ms gives at the pace of samples
WAITING = 20_000  # events after which the writer is waited for, so that none is dropped


def write(run_dir: Path, samples: int) -> int:
    """Make a run of about so many samples (rows of the table gradients), and say how many there are."""
    epochs = max(samples // (ENVS * len(SLOTS) * PASSES_A_EPOCH), 1)
    create(run_dir)
    with TrainerLock(run_dir):
        journal = Journal(run_dir)
        for said, _ in enumerate(_events(journal, run_dir.name, epochs), start=1):
            if said % WAITING == 0 and not journal.flush(60):
                raise RuntimeError(f"the disk keeps up with {journal.report()}")
        report = journal.close(60)
    if report.dropped_events or report.dropped_samples:
        raise RuntimeError(f"events were dropped: {report}")
    return epochs * ENVS * len(SLOTS) * PASSES_A_EPOCH


def _events(journal: Journal, run_id: str, epochs: int) -> Iterator[None]:
    """Say all of it, one event at a time."""
    random = np.random.default_rng(0)
    run = EventStream(journal, run_id)
    envs = [EventStream(journal, run_id, env) for env in range(ENVS)]
    yield run.emit(RunStarted(task="synthetic", envs=ENVS, epochs=epochs, rng_seed=0))
    for env in envs:
        yield env.emit(EnvStarted(host="Synthetic", host_params=1_000_000, slot_ids=SLOTS, epochs=epochs))
        for slot in SLOTS:
            who = {"epoch": 1, "slot_id": slot, "seed_id": f"{slot}-1", "blueprint_id": "conv"}
            yield env.emit(SeedGerminated(**who, seed_params=9_216, birth_gain=1.0))
            stages = {"from_stage": SeedStage.GERMINATED, "to_stage": SeedStage.TRAINING}
            yield env.emit(SeedStageChanged(**who, **stages, reason="its first pass was measured"))
    level = np.ones((ENVS, len(SLOTS)))
    for epoch in range(1, epochs + 1):
        level *= random.lognormal(0.0, 0.02, level.shape)
        shape = (ENVS, len(SLOTS), PASSES_A_EPOCH)
        entering = random.lognormal(-4.0, 0.5, shape)
        leaving = entering * level[..., None] * random.lognormal(0.0, 0.15, shape)
        for env, stream in enumerate(envs):
            for end in range(PASSES_A_SAMPLE, PASSES_A_EPOCH + 1, PASSES_A_SAMPLE):
                for index, slot in enumerate(SLOTS):
                    yield stream.emit(_sample(epoch, slot, entering[env, index, :end], leaving[env, index, :end]))
            seeds = tuple(
                SeedTelemetry(
                    slot_id=slot, seed_id=f"{slot}-1", blueprint_id="conv", stage=SeedStage.TRAINING,
                    epochs_in_stage=epoch, seed_params=9_216, **_health(entering[env, index], leaving[env, index]),
                )
                for index, slot in enumerate(SLOTS)
            )  # fmt: skip
            accuracy, loss = 100 - 90 / epoch, 2.3 / epoch
            yield stream.emit(
                EpochCompleted(
                    epoch=epoch, epochs=epochs, seeds=seeds, accuracy=accuracy, train_loss=loss, validation_loss=loss
                )
            )
    yield run.emit(RunCompleted(completed_envs=ENVS))


def _sample(epoch: int, slot: str, entering: np.ndarray, leaving: np.ndarray) -> GradientSampled:
    """The last passes of an epoch so far, and the health of all of it."""
    begin = len(entering) - PASSES_A_SAMPLE
    return GradientSampled(
        epoch=epoch,
        slot_id=slot,
        seed_id=f"{slot}-1",
        blueprint_id="conv",
        pass_index=tuple(range(begin, len(entering))),
        entering=tuple(entering[begin:].tolist()),
        leaving=tuple(leaving[begin:].tolist()),
        health=GradientHealth(**_health(entering, leaving)),
    )


def _health(entering: np.ndarray, leaving: np.ndarray) -> dict[str, object]:
    ratios = leaving / entering
    octaves = np.floor(np.log2(ratios)).astype(int) - HISTOGRAM_LOWEST_OCTAVE + 1
    entering_norm, leaving_norm = float(np.sqrt((entering**2).sum())), float(np.sqrt((leaving**2).sum()))
    ratio = leaving_norm / entering_norm
    return {
        "grad_ratio": ratio,
        "has_vanishing": ratio < 0.5,
        "has_exploding": ratio > 2.0,
        "measurement": Measurement.MEASURED,
        "passes": len(ratios),
        "entering_norm": entering_norm,
        "leaving_norm": leaving_norm,
        "min_ratio": float(ratios.min()),
        "max_ratio": float(ratios.max()),
        "last_ratio": float(ratios[-1]),
        "ratio_histogram": tuple(np.bincount(octaves, minlength=HISTOGRAM_BINS).tolist()),
        "evidence": f"ratio {ratio:.3g} within the band, {len(ratios)} passes",
        "output_input_rms": float(ratios.mean()),
        "parameter_liveness": 1.0,
    }
