"""The gain of every seed over time, beside the healthy band."""

import math
from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sapflow.history.arrow import pa
from sapflow.history.plot.chart import Chart, by_epoch, data_of, legend_below, new_chart, say_nothing_to_draw, styled
from sapflow.history.plot.palette import LOOKS, Look, shown
from sapflow.history.plot.places import Life, Row, lives_of, most_telling, not_measured, panels_of, the_only
from sapflow.history.plot.ratio_axis import RatioAxis
from sapflow.history.plot.thinning import thinned
from sapflow.history.run import Run

COLUMNS = {
    "env": pa.int32(), "slot": pa.string(), "seed": pa.string(), "blueprint": pa.string(), "epoch": pa.int32(),
    "stage": pa.string(), "status": pa.string(), "ratio": pa.float64(), "min_ratio": pa.float64(),
    "max_ratio": pa.float64(), "non_finite": pa.int64(),
}  # fmt: skip
NEEDED = (*COLUMNS, "vanishing", "exploding")
DESCRIPTION = (
    "Gain (leaving over entering gradient) of each seed at the end of each epoch, on a scale of octaves; the shaded "
    "band is healthy, a cross ends the life of a seed that was pruned. Marks on the rails: a seed through which "
    "nothing flows (0), epochs with passes that were not finite (NaN, ∞), and epochs without a measurement."
)


@styled
def ratio(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """Ratio over time of each seed in these envs and slots (None: in all); a panel for every six slots of an env.

    Of more than 24 panels those with the most trouble are drawn; lives longer than 120 epochs are thinned with every
    extreme kept (`thinning.py`).
    """
    lives = [
        Life(life.env, life.slot, life.seed, life.blueprint, tuple(thinned(life.rows)))
        for life in lives_of(run, NEEDED, envs, slots)
    ]
    everything = panels_of(lives)
    panels = most_telling(everything, lives)
    died = _died(run, envs)
    chart, axes = new_chart("Ratio over time", len(panels))
    chart.description = DESCRIPTION + _left_out(len(everything) - len(panels))
    drawn: list[Row] = []
    for panel, place in zip(panels, axes, strict=False):
        inside = [life for life in lives if life.env == panel.env and life.slot in panel.slots]
        _draw(place, inside, panel.slots, died)
        place.set_title(f"Ratio over time, {panel.title}")
        drawn += [row for life in inside for row in life.rows]
    if not panels:
        say_nothing_to_draw(axes[0], "no seed has lived through an epoch yet")
    elif len(panels) == 1:
        chart.title = axes[0].get_title(loc="left")
    chart.data = data_of(drawn, COLUMNS)
    return chart


def _died(run: Run, envs: Collection[int] | None) -> set[tuple[int, str, str]]:
    table = run.seeds(columns=["env", "slot", "seed", "died_epoch"], env=the_only(envs))
    return {(row["env"], row["slot"], row["seed"]) for row in table.to_pylist() if row["died_epoch"] is not None}


def _draw(axes: Axes, lives: list[Life], slots: tuple[str, ...], died: set[tuple[int, str, str]]) -> None:
    scale = RatioAxis.over(row["ratio"] for life in lives for row in life.rows)
    rails: set[float] = set()
    handles: dict[str, Line2D] = {}
    for life in lives:
        look = LOOKS[slots.index(life.slot)]
        handles.setdefault(life.slot, _draw_life(axes, life, look, scale, rails, pruned=_key(life) in died))
    scale.dress(axes, rails)
    by_epoch(axes)
    legend_below(axes, list(handles.values()), [_label(slot, lives) for slot in handles])


def _draw_life(axes: Axes, life: Life, look: Look, scale: RatioAxis, rails: set[float], *, pruned: bool) -> Line2D:
    epochs = [row["epoch"] for row in life.rows]
    places = [math.nan if math.isnan(row["ratio"]) else scale.place(row["ratio"]) for row in life.rows]
    on_axis = [place if scale.low <= place <= scale.high else math.nan for place in places]
    (line,) = axes.plot(
        epochs, on_axis, color=look.colour, linestyle=look.dash, marker=look.marker, label=life.seed,
        markevery=max(1, len(epochs) // 12), clip_on=False,
    )  # fmt: skip
    marks = {
        scale.zero: ("v", [row["epoch"] for row, place in zip(life.rows, places, strict=True) if place == scale.zero]),
        scale.not_finite: (
            "*",
            [
                row["epoch"]
                for row, place in zip(life.rows, places, strict=True)
                if row["non_finite"] > 0 or place == scale.not_finite
            ],
        ),
        scale.unmeasured: ("x", [row["epoch"] for row in life.rows if not_measured(row)]),
    }
    for rail, (marker, where) in marks.items():
        if where:
            rails.add(rail)
            axes.plot(where, [rail] * len(where), marker, color=look.colour, markersize=5, clip_on=False)
    last = next((number for number in reversed(range(len(places))) if not math.isnan(places[number])), None)
    if pruned and last is not None:
        axes.plot([epochs[last]], [places[last]], "X", color=look.colour, markersize=8, clip_on=False)
    return line


def _key(life: Life) -> tuple[int, str, str]:
    return life.env, life.slot, life.seed


def _label(slot: str, lives: list[Life]) -> str:
    blueprints = " → ".join(dict.fromkeys(shown(life.blueprint, 16) for life in lives if life.slot == slot))
    return shown(f"{shown(slot, 18)} ({blueprints})", 42)


def _left_out(panels: int) -> str:
    return f" Panels not drawn, which have less trouble: {panels}." if panels else ""
