"""Measures the ratios of healthy trained seeds and of sick ones, to set the levels beyond which a seed is pruned.

A prune rule asks for a ratio beyond its level for three epochs in a row. So what counts of a seed's life is the lowest
level it was below, and the highest it was above, for three measured epochs in a row. Prints docs/prune-levels.md:

    python benchmarks/prune_levels.py > docs/prune-levels.md
"""

import sys
from collections import defaultdict

from sapflow.growth.lifecycle import SOUND_RATIOS
from sapflow.health.rules import PRUNE_ABOVE, PRUNE_BELOW
from sapflow.telemetry.events import EpochCompleted, SeedGerminated, TelemetryEvent
from sapflow.telemetry.vocabulary import Measurement
from sapflow.training.trainer import Plant, RunPlan, run

SIZES = {"digits-cnn": (12, 30), "digits-mlp": (12, 30), "characters": (6, 20)}  # envs and epochs, by task
SICK = ("sigmoid", "explosive")


class Events(list[TelemetryEvent]):
    def emit(self, event: TelemetryEvent) -> None:
        self.append(event)


def lives(task: str, rng_seed: int, plants: tuple[Plant, ...]) -> dict[tuple[bool, str], list[list[float]]]:
    """The epoch ratios of every seed, by whether it was planted and its blueprint."""
    events = Events()
    envs, epochs = SIZES[task]
    run(RunPlan(task=task, envs=envs, epochs=epochs, rng_seed=rng_seed, plants=plants), "prune-levels", events)
    planted = {
        (event.env_id, event.payload.seed_id) for event in events
        if isinstance(event.payload, SeedGerminated) and event.payload.planted
    }  # fmt: skip
    ratios: dict[tuple[int | None, str, str], list[float]] = defaultdict(list)
    for event in events:
        if isinstance(event.payload, EpochCompleted):
            for seed in event.payload.seeds:
                if seed.measurement is Measurement.MEASURED:
                    ratios[event.env_id, seed.seed_id, seed.blueprint_id].append(seed.grad_ratio)
    by_kind: dict[tuple[bool, str], list[list[float]]] = defaultdict(list)
    for (env_id, seed_id, blueprint), life in ratios.items():
        by_kind[(env_id, seed_id) in planted, blueprint].append(life)
    return by_kind


def sustained(life: list[float]) -> tuple[float, float]:
    """The lowest level that the life was below, and the highest it was above, for three epochs in a row."""
    windows = [life[start : start + 3] for start in range(len(life) - 2)] or [life]
    return min(map(max, windows)), max(map(min, windows))


def row(task: str, kind: str, seeds: list[list[float]]) -> str:
    below, above = zip(*map(sustained, seeds), strict=True)
    left = sum(min(life) < 0.5 or max(life) > 2.0 for life in seeds)
    pruned = sum(low < PRUNE_BELOW or high > PRUNE_ABOVE for low, high in zip(below, above, strict=True))
    epochs = sum(map(len, seeds))
    return (
        f"| {task} | {kind} | {len(seeds)} | {epochs} | {min(below):.3g} | {max(above):.3g} | {left} | {pruned} |"
    )  # fmt: skip


def main() -> None:
    sizes = ", ".join(f"{envs} envs of {task} for {epochs} epochs" for task, (envs, epochs) in SIZES.items())
    print(
        f"""# The levels beyond which a seed is pruned

Made by `python benchmarks/prune_levels.py > docs/prune-levels.md`:
{sizes};
rng seeds 0 (healthy) and 1 (every env with one sick seed planted). A prune rule asks for a ratio beyond its level for
three epochs in a row, so the table has, over the lives of all seeds of a kind, the lowest level that one was below and
the highest that one was above for so long.

The rules prune below {PRUNE_BELOW:g} and above {PRUNE_ABOVE:g}. The record's band, [0.5, 2.0], is no such level: "left
the band" counts the seeds that were outside it in at least one epoch.

| task | kind | seeds | epochs | below for 3 | above for 3 | left the band | pruned by these levels |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
    )
    margins = []
    for task, (envs, _) in SIZES.items():
        healthy = lives(task, 0, ())
        for (_, blueprint), seeds in sorted(healthy.items()):
            print(row(task, blueprint, seeds))
            margins += [sustained(life) for life in seeds]
        plants = tuple(Plant(env_id, ("early", "mid", "late")[env_id % 3], SICK[env_id % 2]) for env_id in range(envs))
        for (was_planted, blueprint), seeds in sorted(lives(task, 1, plants).items()):
            if was_planted:
                print(row(task, f"{blueprint} (sick)", seeds))
        sys.stdout.flush()
    lowest, highest = min(low for low, _ in margins), max(high for _, high in margins)
    print(
        f"""
Between the {len(margins)} healthy seeds and the levels lie factors of {lowest / PRUNE_BELOW:.0f} (below) and
{PRUNE_ABOVE / highest:.0f} (above). The gate out of TRAINING asks for ratios within {list(SOUND_RATIOS)}."""
    )


if __name__ == "__main__":
    main()
