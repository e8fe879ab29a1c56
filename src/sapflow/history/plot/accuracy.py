"""A host's accuracy with its seeds, and what it was with each of them left out."""

import math
from collections.abc import Collection

from matplotlib.axes import Axes

from sapflow.history.arrow import pa
from sapflow.history.plot.chart import Chart, by_epoch, data_of, legend_below, new_chart, say_nothing_to_draw, styled
from sapflow.history.plot.palette import INK, LOOKS, shown
from sapflow.history.plot.places import Life, Panel, Row, as_drawn, lives_of, most_telling, panels_of, the_only
from sapflow.history.plot.thinning import thinned
from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import SeedStage

COLUMNS = {
    "env": pa.int32(), "epoch": pa.int32(), "slot": pa.string(), "seed": pa.string(), "accuracy": pa.float64(),
    "accuracy_delta": pa.float64(), "without": pa.float64(),
}  # fmt: skip
NEEDED = ("accuracy", "accuracy_delta", "ratio", "status", "vanishing", "exploding", "non_finite")


@styled
def accuracy(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """Validation accuracy by epoch, and the recorded counterfactual: accuracy − accuracy_delta for each seed in use.

    A panel for every six slots of an env, of more than 24 those with the most trouble.
    """
    lives = lives_of(run, NEEDED, envs, slots)
    hosts = _hosts(run, envs)
    everything = [panel for panel in panels_of(lives) if panel.env in hosts]
    if slots is None:  # a host has an accuracy before anything grows in it
        bare = hosts.keys() - {life.env for life in lives}
        everything = sorted([*everything, *(Panel(env, (), f"env {env}") for env in bare)], key=lambda one: one.env)
    panels = most_telling(everything, lives)
    chart, axes = new_chart("Accuracy with and without each seed", len(panels))
    left_out = len(everything) - len(panels)
    chart.description = (
        "Validation accuracy of the host in percent, and what it was at the same moment with one slot bypassed: where "
        "the dashed line is below, the seed helps. Only seeds that the host sees have one."
        + (f" Panels not drawn, which have less trouble: {left_out}." if left_out else "")
    )
    drawn: list[Row] = []
    for panel, place in zip(panels, axes, strict=False):
        inside = [life for life in lives if life.env == panel.env and life.slot in panel.slots]
        drawn += _draw(place, inside, panel.slots, hosts[panel.env])
        place.set_title(f"Accuracy with and without, {panel.title}")
    if not panels:
        say_nothing_to_draw(axes[0], "no accuracy is known: nobody validated, or no epoch has ended")
    elif len(panels) == 1:
        chart.title = axes[0].get_title(loc="left")
    chart.data = data_of(drawn, COLUMNS)
    return chart


def _hosts(run: Run, envs: Collection[int] | None) -> dict[int, dict[int, float]]:
    """The accuracy of each env by epoch, where one is known."""
    hosts: dict[int, dict[int, float]] = {}
    for row in run.epochs(columns=["env", "epoch", "accuracy"], env=the_only(envs)).to_pylist():
        if row["accuracy"] is not None and (envs is None or row["env"] in envs):
            hosts.setdefault(row["env"], {})[row["epoch"]] = as_drawn(row["accuracy"])
    return hosts


def _draw(axes: Axes, lives: list[Life], slots: tuple[str, ...], host: dict[int, float]) -> list[Row]:
    (line,) = axes.plot(list(host), list(host.values()), color=INK, linewidth=1.8, label="with all")
    handles, drawn = {"with all seeds": line}, []
    for life in lives:
        rows = [{**row, "without": _without(row)} for row in thinned(life.rows) if _is_known(row)]
        if not rows:
            continue
        look = LOOKS[slots.index(life.slot)]
        (line,) = axes.plot(
            [row["epoch"] for row in rows], [row["without"] for row in rows], color=look.colour,
            linestyle=(0, (3, 1.2)), marker=look.marker, markevery=max(1, len(rows) // 10), label=life.seed,
        )  # fmt: skip
        handles.setdefault(f"without {shown(life.slot, 18)}", line)
        drawn += rows
    by_epoch(axes)
    axes.set_ylabel("%")
    legend_below(axes, list(handles.values()), list(handles))
    return drawn


def _is_known(row: Row) -> bool:
    stage = SeedStage(row["stage"])
    return stage.seen_by_host and stage is not SeedStage.WATCHED and not math.isnan(_without(row))


def _without(row: Row) -> float:
    return math.nan if row["accuracy"] is None else as_drawn(row["accuracy"] - row["accuracy_delta"])
