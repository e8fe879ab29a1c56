"""What the tests of plots and reports share: a run that was really trained, and ones that are made to be difficult."""

import random
from pathlib import Path

import pytest

from commands import finish_forked
from journals import event, finished_run
from sapflow.telemetry.events import (
    Alert,
    AlertRaised,
    EnvFailed,
    EnvStarted,
    EpochCompleted,
    Payload,
    RunCompleted,
    RunStarted,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
)
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity

# Markup, a formula, a text that turns around, one that never ends, and one that Matplotlib would hide.
HOSTILE = (
    "<script>alert(1)</script>", "$\\frac{a}{b}$", "a\u202egnirts\u202c\u0000\x1b[31m", "n" * 10_000,
    "_orig_mod.x", "'\"><img src=x onerror=alert(1)>&amp;", "層.二",
)  # fmt: skip


def train(run_dir: Path, *options: str) -> Path:
    """A run of `sapflow train` on the digits: two envs, in which a seed vanishes and another explodes."""
    plants = ("--plant", "0:mid:sigmoid", "--plant", "1:mid:explosive")
    plan = ("--task", "digits-mlp", "--envs", "2", "--epochs", "9", "--checkpoint-every", "0", *plants, *options)
    done = finish_forked(["train", *plan, "--run-dir", str(run_dir)], run_dir.parent)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "trained")


def seed(slot: str, ratio: float = 1.0, **fields: object) -> SeedTelemetry:
    defaults: dict[str, object] = {
        "slot_id": slot, "seed_id": f"{slot}-1", "blueprint_id": "conv", "stage": SeedStage.TRAINING, "seed_params": 10,
        "measurement": Measurement.MEASURED, "passes": 8, "grad_ratio": ratio, "entering_norm": 0.5,
        "leaving_norm": 0.5 * ratio, "min_ratio": ratio, "max_ratio": ratio, "last_ratio": ratio,
        "has_vanishing": ratio < 0.5, "has_exploding": ratio > 2,
    }  # fmt: skip
    return SeedTelemetry(**(defaults | fields))


def run_of(run_dir: Path, *payloads: tuple[int | None, Payload], start: bool = True) -> Path:
    """A journal with these payloads, each with its env, in that order."""
    started = [(None, RunStarted(task="digits-mlp", envs=1, epochs=9, versions={"sapflow": "0.1.0"}))] if start else []
    return finished_run(
        run_dir, *(event(payload, env, number) for number, (env, payload) in enumerate([*started, *payloads]))
    )


def epoch(number: int, *seeds: SeedTelemetry, accuracy: float | None = 50.0) -> tuple[int, EpochCompleted]:
    return 0, EpochCompleted(epoch=number, epochs=9, seeds=seeds, accuracy=accuracy)


def germinated(slot: str, number: int = 1, at: int = 1) -> tuple[int, SeedGerminated]:
    return 0, SeedGerminated(
        epoch=at, slot_id=slot, seed_id=f"{slot}-{number}", blueprint_id="conv", seed_params=10, birth_gain=1.0
    )


def moved(slot: str, before: SeedStage, after: SeedStage, at: int) -> tuple[int, SeedStageChanged]:
    return 0, SeedStageChanged(
        epoch=at, slot_id=slot, seed_id=f"{slot}-1", blueprint_id="conv", from_stage=before, to_stage=after
    )


def pruned(slot: str, at: int, ratio: float, rule: str = "dying seed") -> tuple[int, SeedPruned]:
    return 0, SeedPruned(
        epoch=at, slot_id=slot, seed_id=f"{slot}-1", blueprint_id="conv", stage=SeedStage.TRAINING, rule=rule,
        grad_ratio=ratio,
    )  # fmt: skip


def alert(slot: str, at: int, **fields: object) -> tuple[int, AlertRaised]:
    values: dict[str, object] = {
        "rule": "exploding seed", "severity": Severity.WARNING, "slot_id": slot, "seed_id": f"{slot}-1",
        "blueprint_id": "conv", "since_epoch": at, "value": 9.0, "evidence": "ratio 9 > 2",
    }  # fmt: skip
    return 0, AlertRaised(epoch=at, alert=Alert(**(values | fields)))


def difficult_run(run_dir: Path) -> Path:
    """One slot in each state that is not a healthy number, over three epochs, in a run that was cut off."""
    nan = float("nan")
    broken = {"measurement": Measurement.NON_FINITE, "grad_ratio": 0.0, "non_finite_passes": 8, "has_exploding": True}
    mixed = {"non_finite_passes": 2, "has_exploding": True}
    lost = {"measurement": Measurement.PROBE_LOST, "measurement_reason": "the probe never fired", "passes": 0}
    slots = ("well", "dead", "broken", "mixed", "lost")
    epochs = [
        epoch(
            number, seed("well"), seed("dead", 0.0), seed("broken", nan, **broken), seed("mixed", 1.5, **mixed),
            seed("lost", 0.0, **lost, has_vanishing=False),
        )
        for number in (2, 3, 4)
    ]  # fmt: skip
    return run_of(run_dir, *(germinated(slot) for slot in slots), *epochs)


def hostile_run(run_dir: Path) -> Path:
    """Everything that can bear a name bears a bad one."""
    names = [{"slot_id": name, "seed_id": name, "blueprint_id": name} for name in HOSTILE]
    seeds = tuple(
        seed(slot, 1.2, stage=SeedStage.BLENDING, **{**names[number], "evidence": slot, "measurement_reason": slot})
        for number, slot in enumerate(HOSTILE)
    )
    return run_of(
        run_dir,
        (None, RunStarted(task=HOSTILE[0], envs=1, epochs=3, versions={HOSTILE[5]: HOSTILE[0]})),
        (0, EnvStarted(host=HOSTILE[0], host_params=1, slot_ids=HOSTILE, epochs=3)),
        *((0, SeedGerminated(epoch=1, seed_params=1, birth_gain=1.0, **each)) for each in names),
        epoch(2, *seeds),
        epoch(3, *seeds),
        *(alert(each["slot_id"], 3, rule=each["slot_id"], evidence=each["slot_id"], **each) for each in names),
        *(
            (0, SeedPruned(epoch=3, stage=SeedStage.BLENDING, rule=each["slot_id"], grad_ratio=1.2, **each))
            for each in names
        ),
        (0, EnvFailed(epoch=3, error=HOSTILE[5])),
        (None, RunCompleted(completed_envs=0, failed_envs=1)),
        start=False,
    )


def strange_run(run_dir: Path) -> Path:
    """Numbers that no run has, and some that a run that went wrong may have, in every field, beside a sound seed."""
    inf, nan = float("inf"), float("nan")
    numbers = (nan, inf, -inf, -1.0, 5e-324, 1e308, -1e308)
    fields = ("entering_norm", "leaving_norm", "grad_ratio", "min_ratio", "accuracy_delta", "alpha")
    odd = tuple(seed(str(number), stage=SeedStage.BLENDING, **dict.fromkeys(fields, number)) for number in numbers)
    counts = {"passes": -1, "non_finite_passes": -(2**62), "masked_values": 2**62, "epochs_in_stage": -5}
    bins = (seed("more bins", ratio_histogram=(1,) * 40), seed("no counts", ratio_histogram=(1, -1), **counts))
    return run_of(
        run_dir, germinated("sound"), epoch(2, seed("sound"), *odd, *bins),
        *((0, EpochCompleted(epoch=at, epochs=-1, seeds=(seed("sound"),), accuracy=number, validation_loss=number))
          for at, number in enumerate((*numbers, 50.0), 3)),
        epoch(0, seed("sound")), epoch(2**31 - 1, seed("sound")), moved("sound", SeedStage.GERMINATED,
        SeedStage.TRAINING, -1), alert("sound", 2, since_epoch=2**31 - 1, value=nan), pruned("sound", 0, -inf),
    )  # fmt: skip


def large_run(run_dir: Path, envs: int, epochs: int) -> Path:
    """Three slots in each env, whose seeds wander; every now and then one is pruned, and another is planted."""
    chance = random.Random(0)
    events: list[tuple[int | None, Payload]] = []
    for env in range(envs):
        events += [(env, payload) for slot in ("early", "mid", "late") for _, payload in [germinated(slot)]]
    number = dict.fromkeys(((env, slot) for env in range(envs) for slot in ("early", "mid", "late")), 1)
    for at in range(2, epochs + 2):
        for env in range(envs):
            seeds = []
            for slot in ("early", "mid", "late"):
                name = f"{slot}-{number[env, slot]}"
                bins = tuple(chance.randrange(3) if 10 < octave < 24 else 0 for octave in range(34))
                stage = SeedStage.BLENDING if at % 30 > 5 else SeedStage.TRAINING
                ratio = chance.lognormvariate(0, 1)
                seeds.append(
                    seed(
                        slot, ratio, seed_id=name, stage=stage, ratio_histogram=bins, entering_norm=ratio * 1.234567e-3,
                        leaving_norm=chance.random(), accuracy_delta=chance.gauss(1, 5),
                        non_finite_passes=int(at % 40 == 0),
                    )
                )  # fmt: skip
                if at % 25 == 0 and chance.random() < 0.3:
                    number[env, slot] += 1
                    fields = {"slot_id": slot, "blueprint_id": "conv", "epoch": at}
                    cut = SeedPruned(seed_id=name, stage=stage, rule="dying seed", grad_ratio=ratio, **fields)
                    born = SeedGerminated(
                        seed_id=f"{slot}-{number[env, slot]}", seed_params=9, birth_gain=1.0, **fields
                    )
                    events += [(env, cut), (env, born), (env, alert(slot, at, seed_id=name)[1])]
            events.append(
                (env, EpochCompleted(epoch=at, epochs=epochs, seeds=tuple(seeds), accuracy=chance.random() * 90))
            )
    return run_of(run_dir, *events, (None, RunCompleted(completed_envs=envs)))
