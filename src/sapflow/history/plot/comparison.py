"""Several runs on one axis: the median of each group, and an interval that assumes no distribution.

A run's value at an epoch is the median of its envs. A group's line is the median of its runs, and its band the
interval between two order statistics that holds the true median with at least 95 %; with fewer than six runs that is
their whole range, which holds it with 1 − 2^(1−n). A group of one run is made of its envs in place of runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median, median_high, median_low

from matplotlib.ticker import MaxNLocator

from sapflow.history.arrow import pa
from sapflow.history.plot.chart import Chart, by_epoch, data_of, legend_below, new_chart, say_nothing_to_draw, styled
from sapflow.history.plot.palette import LOOKS, shown
from sapflow.history.plot.places import Row, as_drawn, lives_of, not_measured
from sapflow.history.plot.ratio_axis import RatioAxis
from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import Measurement, SeedStage

LEVEL = 0.95
METHOD = (
    "Lines are medians over the runs of a group (of a run, over its envs); bands run between order statistics and hold "
    "the median with at least 95 %, or, with fewer than six values, are their whole range. Small marks are single runs."
)
Curves = list[dict[int, float]]  # a value by epoch, for each env of a run


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The narrowest pair of order statistics around the median that holds it with at least 95 %, and its coverage.

    P(X(k) ≤ median ≤ X(n+1−k)) = 1 − 2·P(Binomial(n, ½) < k), whatever the distribution (Conover, Practical
    Nonparametric Statistics, 3.2). With fewer than six values none does, and it is the range.
    """
    ordered, count = sorted(values), len(values)
    tail, best = 0.0, (1, 1.0 - 2.0 ** (1 - count))
    for k in range(1, count // 2 + 1):
        tail += math.comb(count, k - 1) / 2**count
        if 1 - 2 * tail < LEVEL:
            break
        best = (k, 1 - 2 * tail)
    k, coverage = best
    return ordered[k - 1], ordered[count - k], coverage


def _accuracy(run: Run) -> Curves:
    return _by_env(run, "accuracy")


def _loss(run: Run) -> Curves:
    return _by_env(run, "validation_loss")


def _by_env(run: Run, column: str) -> Curves:
    curves: dict[int, dict[int, float]] = {}
    for row in run.epochs(columns=["env", "epoch", column]).to_pylist():
        if row[column] is not None and not math.isnan(row[column]):
            curves.setdefault(row["env"], {})[row["epoch"]] = as_drawn(row[column])
    return list(curves.values())


def _ratio(run: Run) -> Curves:
    def measured(rows: list[Row]) -> list[float]:
        return [row["ratio"] for row in rows if row["status"] == Measurement.MEASURED and row["ratio"] >= 0]

    return _over_seeds(run, measured)


def _not_flagged(run: Run) -> Curves:
    """Of the seeds that train: the policy flags what leaves its band, and what was not measured is no healthier."""

    def shares(rows: list[Row]) -> list[float]:
        trained = [row for row in rows if SeedStage(row["stage"]).trained]
        sound = [row for row in trained if not (not_measured(row) or row["vanishing"] or row["exploding"])]
        return [100 * len(sound) / len(trained)] if trained else []

    return _over_seeds(run, shares)


def _over_seeds(run: Run, values: Callable[[list[Row]], list[float]]) -> Curves:
    envs: dict[int, dict[int, list[Row]]] = {}
    for life in lives_of(run, ("ratio", "status", "vanishing", "exploding")):
        for row in life.rows:
            envs.setdefault(life.env, {}).setdefault(row["epoch"], []).append(row)
    return [
        {epoch: middle_of(found) for epoch in sorted(epochs) if (found := values(epochs[epoch]))}
        for epochs in envs.values()
    ]


def middle_of(ratios: Sequence[float]) -> float:
    """The median of numbers that are compared by octaves: between two, the geometric mean."""
    return math.sqrt(median_low(ratios) * median_high(ratios))


MEASURES: dict[str, tuple[str, str, Callable[[Run], Curves]]] = {
    "accuracy": ("Validation accuracy", "%", _accuracy),
    "validation_loss": ("Validation loss", "loss", _loss),
    "ratio": ("Median ratio of the measured seeds", "ratio", _ratio),
    "not_flagged": ("Training seeds measured and not flagged", "% of seeds", _not_flagged),
}
COLUMNS = {
    "group": pa.string(), "epoch": pa.int32(), "median": pa.float64(), "low": pa.float64(), "high": pa.float64(),
    "values": pa.int32(), "coverage": pa.float64(),
}  # fmt: skip


@styled
def compare(groups: Mapping[str, Sequence[Run]], measure: str = "accuracy") -> Chart:
    """One of "accuracy", "validation_loss", "ratio" and "not_flagged" by epoch, a line a group with its interval.

    Raises:
        KeyError: there is no such measure.
    """
    title, unit, curves_of = MEASURES[measure]
    chart, (axes,) = new_chart(title)
    rows = [row for name, runs in groups.items() for row in _summary(name, [curves_of(run) for run in runs])]
    chart.data, chart.description = data_of(rows, COLUMNS), METHOD
    if not rows:
        say_nothing_to_draw(axes, "none of these runs has it")
        return chart
    values = [row[key] for row in rows for key in ("low", "median", "high")]
    scale = RatioAxis.over(values) if measure == "ratio" else None
    place = scale.place if scale is not None else float
    handles, labels, rails = [], [], set[float]()
    for number, name in enumerate(groups):
        own = [row for row in rows if row["group"] == name]
        if not own:
            continue
        look = LOOKS[number % len(LOOKS)]
        epochs = [row["epoch"] for row in own]
        middle, low, high = ([place(row[key]) for row in own] for key in ("median", "low", "high"))
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.18, linewidth=0)
        (line,) = axes.plot(
            epochs, middle, color=look.colour, linestyle=look.dash, marker=look.marker,
            markevery=max(1, len(epochs) // 10), label=name,
        )  # fmt: skip
        handles.append(line)
        labels.append(f"{shown(name)} (n = {max(row['values'] for row in own)})")
        if scale is not None:
            rails |= {scale.zero, scale.not_finite} & {*middle, *low, *high}
    if scale is not None:
        scale.dress(axes, rails)
    by_epoch(axes)
    axes.set_ylabel(unit)
    legend_below(axes, handles, labels)
    return chart


def _summary(group: str, runs: list[Curves]) -> list[Row]:
    replicates = runs[0] if len(runs) == 1 else [_median_curve(curves) for curves in runs]
    rows = []
    for epoch in sorted({epoch for curve in replicates for epoch in curve}):
        values = [curve[epoch] for curve in replicates if epoch in curve]
        low, high, coverage = interval(values)
        rows.append(
            {"group": group, "epoch": epoch, "median": median(values), "low": low, "high": high,
             "values": len(values), "coverage": coverage}
        )  # fmt: skip
    return rows


def _median_curve(curves: Curves) -> dict[int, float]:
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return {epoch: median(curve[epoch] for curve in curves if epoch in curve) for epoch in epochs}


FATES = {
    "fossilized": lambda seed: seed["last_stage"] == SeedStage.FOSSILIZED,
    "pruned": lambda seed: seed["died_epoch"] is not None,
    "still growing": lambda seed: seed["died_epoch"] is None and seed["last_stage"] != SeedStage.FOSSILIZED,
}
FATE_COLUMNS = {
    "group": pa.string(), "fate": pa.string(), "median": pa.float64(), "low": pa.float64(), "high": pa.float64(),
    "values": pa.int32(), "coverage": pa.float64(),
}  # fmt: skip


@styled
def fates(groups: Mapping[str, Sequence[Run]]) -> Chart:
    """How many seeds of a run came to which end: a dot a run, the median and its interval a group."""
    chart, (axes,) = new_chart("What became of the seeds")
    chart.description = METHOD
    rows = []
    handles, labels = [], []
    for number, (name, runs) in enumerate(groups.items()):
        look = LOOKS[number % len(LOOKS)]
        seeds = [run.seeds(columns=["died_epoch", "last_stage"]).to_pylist() for run in runs]
        for place, (fate, holds) in enumerate(FATES.items()):
            values = [sum(map(holds, each)) for each in seeds]
            low, high, coverage = interval(values)
            middle = median(values)
            rows.append({"group": name, "fate": fate, "median": middle, "low": low, "high": high,
                         "values": len(values), "coverage": coverage})  # fmt: skip
            where = place + 0.7 * ((number + 0.5) / len(groups) - 0.5)
            axes.plot([where] * len(values), values, look.marker, color=look.colour, markersize=2.5, alpha=0.6)
            bar = axes.errorbar(where, middle, [[middle - low], [high - middle]], color=look.colour, marker=look.marker,
                                markersize=6, capsize=3, linewidth=1.2)  # fmt: skip
        handles.append(bar)
        labels.append(f"{shown(name)} (n = {len(runs)})")
    axes.set_xticks(range(len(FATES)), list(FATES))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seeds a run")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(axes, handles, labels)
    chart.data = data_of(rows, FATE_COLUMNS)
    return chart
