"""The lives of seeds as a timeline: a row for each slot, a bar for each stage."""

from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sapflow.history.arrow import pa
from sapflow.history.plot.chart import (
    PANEL_INCHES,
    Chart,
    by_epoch,
    data_of,
    legend_below,
    new_chart,
    say_nothing_to_draw,
    styled,
)
from sapflow.history.plot.palette import INK, STAGE_LOOKS, shown
from sapflow.history.plot.places import Row
from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import SeedStage

COLUMNS = {
    "env": pa.int32(), "slot": pa.string(), "seed": pa.string(), "blueprint": pa.string(), "stage": pa.string(),
    "from_epoch": pa.int32(), "to_epoch": pa.int32(), "died_of": pa.string(),
}  # fmt: skip
MOST_SLOTS = 60
DESCRIPTION = (
    "Each row is a slot, each bar a stage of the seed in it, from the epoch after which it began; bars grow higher "
    "from GERMINATED to FOSSILIZED. A cross is where a seed was pruned."
)


@styled
def lives(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """Stages of each seed over time; of more than 60 slots those in which most seeds were pruned, in their order."""
    seeds = [
        row
        for row in run.seeds().to_pylist()
        if (envs is None or row["env"] in envs) and (slots is None or row["slot"] in slots)
    ]
    places, left_out = _places(seeds)
    chart, (axes,) = new_chart("Lives of the seeds", size=(PANEL_INCHES[0], 1.3 + 0.19 * max(len(places), 6)))
    chart.description = DESCRIPTION + (f" Slots not drawn, in which fewer were pruned: {left_out}." if left_out else "")
    last_epochs = _last_epochs(run)
    segments = [
        segment
        for seed in seeds
        if (seed["env"], seed["slot"]) in places
        for segment in _segments(seed, last_epochs.get(seed["env"], 0))
    ]
    chart.data = data_of(segments, COLUMNS)
    if not segments:
        say_nothing_to_draw(axes, "no seed has lived through an epoch yet")
        return chart
    _draw(axes, segments, places)
    return chart


def _places(seeds: list[Row]) -> tuple[list[tuple[int, str]], int]:
    """The slots that are drawn, and how many are not."""
    pruned: dict[tuple[int, str], int] = {}
    for seed in seeds:
        place = seed["env"], seed["slot"]
        pruned[place] = pruned.get(place, 0) + (seed["died_epoch"] is not None)
    everything = sorted(pruned, key=lambda place: place[0])  # stable: the slots of an env stay in their order
    kept = set(sorted(everything, key=lambda place: -pruned[place])[:MOST_SLOTS])
    return [place for place in everything if place in kept], len(everything) - len(kept)


def _last_epochs(run: Run) -> dict[int, int]:
    last: dict[int, int] = {}
    for row in run.epochs(columns=["env", "epoch"]).to_pylist():
        last[row["env"]] = max(row["epoch"], last.get(row["env"], 0))
    return last


def _segments(seed: Row, last_epoch: int) -> list[Row]:
    """The stages in which a module stood in the slot, each with its first and last epoch."""
    stages = seed["stages"]
    ends = [stage["epoch"] for stage in stages[1:]] + [last_epoch]
    return [
        {
            **seed,
            "stage": stage["stage"],
            "from_epoch": stage["epoch"],
            "to_epoch": max(end, stage["epoch"]),
            "died_of": seed["died_of"] if end == seed["died_epoch"] else None,
        }
        for stage, end in zip(stages, ends, strict=True)
        if SeedStage(stage["stage"]).alive and (end > stage["epoch"] or end == last_epoch)
    ]


def _draw(axes: Axes, segments: list[Row], places: list[tuple[int, str]]) -> None:
    rows = {place: number for number, place in enumerate(places)}
    used: dict[SeedStage, Patch] = {}
    for segment in segments:
        stage, row = SeedStage(segment["stage"]), rows[segment["env"], segment["slot"]]
        colour, height = STAGE_LOOKS[stage]
        span = segment["from_epoch"], segment["to_epoch"] - segment["from_epoch"]
        axes.barh(row, span[1], left=span[0], height=height, color=colour, linewidth=0)
        used.setdefault(stage, Patch(color=colour, linewidth=0))
        if segment["died_of"] is not None:
            axes.plot([segment["to_epoch"]], [row], "X", color=INK, markersize=6, clip_on=False)
    axes.set_yticks(range(len(places)), [f"{env} {shown(slot, 16)}" for env, slot in places])
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.6)
    by_epoch(axes)
    axes.set_ylabel("env, slot")
    order = [stage for stage in STAGE_LOOKS if stage in used]
    legend_below(axes, [used[stage] for stage in order], [stage.lower() for stage in order])
