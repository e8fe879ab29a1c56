"""Every screen in every state, at three sizes and in two themes, as somebody last found it good (tests/snapshots/)."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import snapshots
from sanctum_events import ENVS, EPOCHS, SLOTS, START, Recorder, epoch, sample, seed, unmeasured
from sanctum_screens import Sitting, sitting
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.telemetry.events import (
    ActionTaken,
    Alert,
    AlertCleared,
    AlertRaised,
    EnvFailed,
    EnvStarted,
    NonFiniteOrigin,
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
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage, Severity

SMALL, MIDDLE, LARGE = (80, 24), (100, 30), (200, 60)
DONE = 12
HISTOGRAM = (*[0] * 14, 3, 20, 32, 9, *[0] * 16)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The times of day are those of no machine."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def alert(slot_id: str, rule: str, value: float, since: int) -> Alert:
    return Alert(
        rule=rule, severity=Severity.CRITICAL, slot_id=slot_id, seed_id=f"{slot_id}-1", blueprint_id="conv",
        since_epoch=since, value=value, evidence=f"ratio {value} for 2 epochs", actions=("prune",),
    )  # fmt: skip


def well(number: int) -> tuple[SeedTelemetry, ...]:
    """The slots of an env in which all is well."""
    ratio = 1 + 0.3 * math.sin(number)
    more = {"ratio_histogram": HISTOGRAM, "output_input_rms": 0.97, "parameter_liveness": 1.0}
    return (
        seed("early", ratio, stage=SeedStage.FOSSILIZED, alpha=1.0, accuracy_delta=1.3, **more),
        seed("mid", 0.8, stage=SeedStage.BLENDING, alpha=0.4, accuracy_delta=0.42, paused=True, **more),
        seed("late", 1.1, **more),
    )


def ill(env_id: int, number: int) -> tuple[SeedTelemetry, ...]:
    """The slots of envs with everything that can be wrong."""
    waiting = SeedTelemetry(slot_id="late")
    if env_id == 0:
        grown = min(2.0 ** (number / 3), 9.0)
        torn = seed("early", grown, non_finite_passes=3, fault=Fault.DIVERGED, ratio_histogram=HISTOGRAM)
        faded = seed("mid", max(0.8**number, 0.03), fault=Fault.COLLAPSED, masked_values=17)
        return torn, faded, unmeasured("late", Measurement.NON_FINITE, "", has_exploding=True, fault=Fault.NON_FINITE)
    if env_id == 1:
        detached = unmeasured("early", Measurement.INPUT_DETACHED, "its input needs no gradient")
        lost = unmeasured("mid", Measurement.PROBE_LOST, "")
        return detached, lost, unmeasured("late", Measurement.NO_GRADIENT, "")
    dead = seed("early", 0.0, fault=Fault.DEAD, parameter_liveness=0.0)
    if env_id == 2:
        return dead, SeedTelemetry(slot_id="mid", stage=SeedStage.EMBARGOED, epochs_in_stage=2), waiting
    return unmeasured("early", Measurement.UNMEASURED), SeedTelemetry(slot_id="mid", stage=SeedStage.PRUNED), waiting


def story(env_id: int, sick: bool) -> Iterator[Payload]:
    """An env up to epoch DONE, and two passes of the next."""
    yield EnvStarted(host="ConvHost", host_params=21_322, slot_ids=SLOTS, epochs=EPOCHS)
    born = {"seed_id": "early-1", "blueprint_id": "conv", "slot_id": "early"}
    yield SeedGerminated(epoch=1, seed_params=18_400, birth_gain=1.02, **born)
    changed = SeedStageChanged(
        epoch=1, from_stage=SeedStage.GERMINATED, to_stage=SeedStage.TRAINING, reason="it fits its slot", **born
    )
    yield changed
    wrong = alert("early", "exploding seed", 4.0, 5)
    for number in range(1, DONE + 1):
        seeds = ill(env_id, number) if sick else well(number)
        for first in (0, 2, 4):
            yield sample(number, "early", first, max(seeds[0].grad_ratio * (1 + first / 20), 1e-3))
        if number == 5:
            yield replace(changed, epoch=5, from_stage=SeedStage.TRAINING, to_stage=SeedStage.BLENDING)
        if sick and number == 6:
            yield AlertRaised(epoch=6, alert=wrong)
            yield ActionTaken(epoch=6, alert=wrong, action="hold", done=True, outcome="held in BLENDING")
            yield ActionTaken(epoch=6, alert=wrong, action="notify", done=False, outcome="nobody answered")
        if sick and number == 9 and env_id == 1:
            yield AlertCleared(epoch=9, alert=wrong, reason="back to normal")
        yield epoch(number, *seeds, open_alerts=(wrong,) if sick and number >= 6 and env_id == 0 else ())
    if sick and env_id == 0:
        yield NonFiniteOrigin(epoch=DONE, slot_id="late", pass_index=3, passes=99, text="born in late in pass 3")
    if sick and env_id == 3:
        cut = {"slot_id": "mid", "seed_id": "mid-1", "blueprint_id": "sigmoid"}
        yield SeedPruned(epoch=DONE, stage=SeedStage.TRAINING, rule="dying seed", grad_ratio=0.003, evidence="e", **cut)
        yield RequestAnswered(
            epoch=DONE, request_id="x", action="prune", done=False, outcome="the seed is gone", by="ann", **cut
        )
    if sick and env_id == 2:
        yield EnvFailed(epoch=DONE, error="CUDA out of memory")
    if not sick:
        yield SeedFossilized(epoch=DONE, seed_params=18_400, accuracy_delta=1.3, **born)
    yield sample(DONE + 1, "early", 0, 1.25)


def run_of(sick: bool, completed: bool = False) -> list[TelemetryEvent]:
    recorder = Recorder()
    run = EventStream(recorder, "2026-11-22-1910-a3f")
    run.emit(RunStarted(task="digits-cnn", envs=ENVS, epochs=EPOCHS, rng_seed=7))
    for env_id in range(ENVS):
        stream = EventStream(recorder, "2026-11-22-1910-a3f", env_id)
        for payload in story(env_id, sick):
            stream.emit(payload)
    if completed:
        run.emit(RunCompleted(completed_envs=ENVS))
    return recorder.events


async def shots(now: Sitting) -> dict[str, str]:
    """Every screen, each from where a person comes to it."""
    taken = {"overview": snapshots.drawn(now.app)}
    envs = sorted(now.app.shown.envs)
    for env_id in envs[:2]:
        await now.app.open(EnvDetailScreen(env_id))
        for name, *keys in (("env",), ("seed", "enter"), ("norms", "n")):
            await now.press(*keys)
            taken[f"{name} {env_id}"] = snapshots.drawn(now.app)
        await now.press("escape", "escape")
    for name, *keys in (("events", "e"), ("alerts", "a"), ("compare", "c")):
        await now.press(*keys)
        taken[name] = snapshots.drawn(now.app)
        await now.press("escape")
    await now.press("t")
    taken["time bar"] = snapshots.drawn(now.app)
    await now.press("t")
    if envs and now.app.moment is None:
        await now.app.open(EnvDetailScreen(0))
        await now.press("x")
        taken["hand"] = snapshots.drawn(now.app)
    return taken


STATES = ("empty", "well", "ill", "lagging", "gone", "replay")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", [SMALL, MIDDLE, LARGE])
@pytest.mark.parametrize("state", STATES)
async def test_the_screens_look_as_they_did(tmp_path: Path, state: str, size: tuple[int, int], theme: str) -> None:
    events = [] if state == "empty" else run_of(sick=state != "well", completed=state == "replay")
    late = 90.0 if state == "lagging" else 2.0
    now = (events[-1].time if events else START) + late
    async with sitting(
        tmp_path, events, size, live=state not in ("gone", "replay"), clock=lambda: now, theme=theme
    ) as here:
        if state == "replay":
            await here.press("t", "left", "left", "left", "t")
        taken = await shots(here)
    snapshots.check(f"{state}-{size[0]}x{size[1]}-{theme}", taken)
