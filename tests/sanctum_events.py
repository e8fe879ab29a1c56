"""A run as Sanctum might read it: four envs of three slots, with seeds that are well and seeds that are not."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from sapflow.sanctum.schema import SanctumSnapshot, Seeds, SeedState, facts_of
from sapflow.telemetry.events import (
    ActionTaken,
    Alert,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    EpochCompleted,
    GradientHealth,
    GradientSampled,
    Payload,
    RequestAnswered,
    RunCompleted,
    RunStarted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunState, RunStatus
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity

RUN_ID = "2026-11-22-1910-a3f"
START = 1_795_374_600.0
SLOTS = ("early", "mid", "late")
EPOCHS = 40
ENVS = 4


class Recorder:
    """A sink that keeps what it is given, on a clock of its own."""

    def __init__(self) -> None:
        self.events: list[TelemetryEvent] = []

    def emit(self, event: TelemetryEvent) -> None:
        time = START + 0.25 * len(self.events)
        self.events.append(
            TelemetryEvent(
                run_id=event.run_id, env_id=event.env_id, sequence=event.sequence, time=time, payload=event.payload
            )
        )


class FakeSource:
    """What a Source does, from a list: `events` is what is still to be read."""

    def __init__(self, events: list[TelemetryEvent], status: RunStatus | None = None) -> None:
        self.events = list(events)
        self.error: Exception | None = None
        self.run_dir = Path("there is none")
        last = events[-1].time if events else None
        self.now = replace(status or RunStatus(state=RunState.LIVE, last_event_time=last), takes_requests=True)

    def stream(self, limit: int = 5_000) -> Iterator[TelemetryEvent]:
        for _ in range(limit):
            if self.error is not None:
                raise self.error
            if not self.events:
                return
            yield self.events.pop(0)

    def status(self) -> RunStatus:
        return self.now


def event(payload: Payload, env_id: int | None, sequence: int | None, time: float = START) -> TelemetryEvent:
    return TelemetryEvent(run_id=RUN_ID, env_id=env_id, sequence=sequence, time=time, payload=payload)


def slots_of(*states: SeedState) -> Seeds:
    """Slots that are just as given."""
    return Seeds({s.slot_id: facts_of(s, s, s.ratio_history, s.newest_sample) for s in states})


def seed(slot_id: str, ratio: float = 0.0, **fields: object) -> SeedTelemetry:
    """A seed with a measured `ratio`, unless `fields` say otherwise."""
    defaults: dict[str, object] = {
        "seed_id": f"{slot_id}-1",
        "blueprint_id": "conv",
        "stage": SeedStage.TRAINING,
        "epochs_in_stage": 3,
        "seed_params": 18_400,
        "measurement": Measurement.MEASURED,
        "passes": 64,
        "grad_ratio": ratio,
        "has_vanishing": ratio < 0.5,
        "has_exploding": ratio > 2.0,
        "entering_norm": 0.031,
        "leaving_norm": 0.031 * ratio,
        "min_ratio": ratio * 0.8,
        "max_ratio": ratio * 1.2,
        "last_ratio": ratio,
        "evidence": f"ratio {ratio:.2f} over 64 passes",
    }
    return SeedTelemetry(slot_id=slot_id, **(defaults | fields))


def unmeasured(slot_id: str, measurement: Measurement, reason: str = "", **fields: object) -> SeedTelemetry:
    return seed(
        slot_id,
        measurement=measurement,
        measurement_reason=reason,
        passes=0,
        has_vanishing=False,
        evidence="",
        **fields,
    )


def epoch(number: int, *seeds: SeedTelemetry, **fields: object) -> EpochCompleted:
    values: dict[str, object] = {
        "epochs": EPOCHS,
        "accuracy": 94 - 84 * math.exp(-number / 4),
        "train_loss": 2.3 * math.exp(-number / 6),
        "validation_loss": 2.3 * math.exp(-number / 6) + 0.08,
        "total_passes": 64 * number,
    }
    return EpochCompleted(epoch=number, seeds=seeds, **(values | fields))


def explosion(since: int) -> Alert:
    return Alert(
        rule="exploding seed",
        severity=Severity.CRITICAL,
        slot_id="early",
        seed_id="early-1",
        blueprint_id="exploder",
        since_epoch=since,
        value=7.31,
        evidence="ratio 7.31 for 3 epochs",
        actions=("prune",),
    )


def seeds_of(env_id: int, number: int) -> tuple[SeedTelemetry, ...]:
    """The slots of an env at the end of an epoch."""
    wobble = 1 + 0.3 * math.sin(number + env_id)
    grown = min(2.0 ** (number / 3), 7.31)
    faded = max(0.9 ** (number * 2), 0.12)
    blending = seed("early", wobble, stage=SeedStage.BLENDING, alpha=min(0.1 * number, 1.0), accuracy_delta=0.42)
    holding = seed("late", 0.93, stage=SeedStage.HOLDING, alpha=1.0, blueprint_id="attention", accuracy_delta=-0.11)
    match env_id:
        case 0:
            fossil = seed("early", 1.02, stage=SeedStage.FOSSILIZED, alpha=1.0, accuracy_delta=1.3)
            return fossil, SeedTelemetry(slot_id="mid"), holding
        case 1:
            vanishing = seed("mid", faded, blueprint_id="sigmoid", epochs_in_stage=number, seed_params=322)
            embargoed = SeedTelemetry(slot_id="late", stage=SeedStage.EMBARGOED, epochs_in_stage=3)
            return blending, vanishing, embargoed
        case 2:
            waiting = unmeasured("late", Measurement.INPUT_DETACHED, "the input needs no gradient", blueprint_id="lora")
            return seed("early", 0.88, blueprint_id="norm"), unmeasured("mid", Measurement.UNMEASURED), waiting
        case _:
            exploding = seed("early", grown, blueprint_id="exploder", non_finite_passes=2)
            return exploding, seed("mid", wobble, blueprint_id="norm"), SeedTelemetry(slot_id="late")


def env_payloads(env_id: int, epochs: int) -> Iterator[Payload]:
    """An env's own story."""
    yield EnvStarted(host=f"digits-cnn-{env_id}", host_params=21_322, slot_ids=SLOTS, epochs=EPOCHS)
    yield SeedGerminated(
        epoch=1, slot_id="early", seed_id="early-1", blueprint_id="conv", seed_params=18_400, birth_gain=1.02
    )
    yield SeedStageChanged(
        epoch=1,
        slot_id="early",
        seed_id="early-1",
        blueprint_id="conv",
        from_stage=SeedStage.GERMINATED,
        to_stage=SeedStage.TRAINING,
        reason="measured and healthy",
    )
    alert = explosion(since=max(epochs - 2, 1))
    for number in range(1, epochs + 1):
        yield sample(number, "early", 0, 1.0)
        open_alerts = (alert,) if env_id == 3 and number == epochs else ()
        yield epoch(number, *seeds_of(env_id, number), open_alerts=open_alerts)
    if env_id == 3:
        yield AlertRaised(epoch=epochs, alert=alert)
    if env_id == 1:
        yield SeedPruned(
            epoch=epochs,
            slot_id="late",
            seed_id="late-1",
            blueprint_id="vanisher",
            stage=SeedStage.TRAINING,
            rule="vanishing seed",
            grad_ratio=0.03,
            evidence="ratio 0.03 for 3 epochs",
        )


def sample(number: int, slot_id: str, first_pass: int, ratio: float, **fields: object) -> GradientSampled:
    """Two passes of an epoch that is still going on."""
    health = GradientHealth(
        grad_ratio=ratio,
        measurement=Measurement.MEASURED,
        passes=first_pass + 2,
        has_vanishing=ratio < 0.5,
        has_exploding=ratio > 2,
        entering_norm=1.0,
        leaving_norm=ratio,
        min_ratio=ratio,
        max_ratio=ratio,
        last_ratio=ratio,
    )
    return GradientSampled(
        epoch=number,
        slot_id=slot_id,
        seed_id=str(fields.get("seed_id", f"{slot_id}-1")),
        pass_index=(first_pass, first_pass + 1),
        entering=(1.0, 1.0),
        leaving=(ratio, ratio),
        health=health,
    )


def demo_run(epochs: int = 14, completed: bool = False) -> list[TelemetryEvent]:
    """The whole run, its envs interleaved epoch by epoch."""
    recorder = Recorder()
    run = EventStream(recorder, RUN_ID)
    run.emit(RunStarted(task="digits-cnn", envs=ENVS, epochs=EPOCHS, rng_seed=7))
    streams = [EventStream(recorder, RUN_ID, env_id) for env_id in range(ENVS)]
    stories = [list(env_payloads(env_id, epochs)) for env_id in range(ENVS)]
    for step in range(max(map(len, stories))):
        for stream, story in zip(streams, stories, strict=True):
            if step < len(story):
                stream.emit(story[step])
    if completed:
        run.emit(RunCompleted(completed_envs=ENVS))
    return recorder.events


def random_run(number: int, epochs: int = 12, envs: int = 3) -> list[TelemetryEvent]:
    """A run in which everything happens that can, as a trainer would say it; determined by `number`."""
    chance = random.Random(number)
    recorder = Recorder()
    EventStream(recorder, RUN_ID).emit(RunStarted(task="digits-cnn", envs=envs, epochs=epochs, rng_seed=7))
    streams = {env_id: EventStream(recorder, RUN_ID, env_id) for env_id in range(envs)}
    growing = {(env_id, slot): 1 for env_id in range(envs) for slot in SLOTS}
    for env_id, stream in streams.items():
        stream.emit(EnvStarted(host=f"cnn-{env_id}", host_params=9, slot_ids=SLOTS, epochs=epochs))
    for epoch_number in range(1, epochs + 1):
        for env_id, stream in list(streams.items()):
            _random_epoch(chance, epoch_number, env_id, stream, growing)
            if chance.random() < 0.02:
                stream.emit(EnvFailed(epoch=epoch_number + 1, error="out of memory"))
                del streams[env_id]
    for env_id, stream in streams.items():
        if chance.random() < 0.5:
            stream.emit(EnvCompleted(epoch=epochs, accuracy=91.0))
        else:
            stream.emit(sample(epochs + 1, "early", 0, 9.0, seed_id=f"early-{growing[env_id, 'early']}"))
    return recorder.events


def _random_epoch(
    chance: random.Random, number: int, env_id: int, stream: EventStream, growing: dict[tuple[int, str], int]
) -> None:
    def about(slot: str) -> dict[str, object]:
        return {"epoch": number, "slot_id": slot, "seed_id": f"{slot}-{growing[env_id, slot]}"}

    for first in range(chance.randrange(3)):
        slot = chance.choice(SLOTS)
        stream.emit(sample(number, slot, 2 * first, chance.choice([0.1, 1.0, 9.0]), seed_id=about(slot)["seed_id"]))
    alert = replace(explosion(number), slot_id=chance.choice(SLOTS))
    raised = chance.random() < 0.3
    if raised:
        stream.emit(AlertRaised(epoch=number, alert=alert))
        stream.emit(ActionTaken(epoch=number, alert=alert, action="hold", done=True))
        stream.emit_aside(ActionTaken(epoch=number, alert=alert, action="notify", done=False, outcome="no answer"))
    seeds = [
        seed(slot, chance.choice([0.01, 0.9, 1.1, 7.0]), seed_id=about(slot)["seed_id"])
        if chance.random() < 0.8
        else unmeasured(slot, Measurement.NON_FINITE, seed_id=about(slot)["seed_id"])
        for slot in SLOTS
    ]
    stream.emit(epoch(number, *seeds, open_alerts=(alert,) if raised else ()))
    for slot in SLOTS:
        match chance.randrange(8):
            case 0:
                pruned = {"stage": SeedStage.TRAINING, "rule": "r", "grad_ratio": 9.0}
                stream.emit(SeedStageChanged(from_stage=SeedStage.TRAINING, to_stage=SeedStage.PRUNED, **about(slot)))
                stream.emit(SeedPruned(**pruned, **about(slot)))
                growing[env_id, slot] += 1
                stream.emit(SeedGerminated(seed_params=3, birth_gain=1.0, blueprint_id="norm", **about(slot)))
            case 1:
                stream.emit(SeedFossilized(seed_params=5, accuracy_delta=0.5, **about(slot)))
            case 2 if raised:
                stream.emit(AlertCleared(epoch=number, alert=alert, reason="well"))
            case 3:
                stream.emit(RequestAnswered(request_id=f"{number}", action="hold", done=True, **about(slot)))


def comparable(snapshot: SanctumSnapshot) -> str:
    """Everything that a snapshot says, to be compared where NaN is equal to NaN."""
    return repr(replace(snapshot, envs=dict(snapshot.envs)))
