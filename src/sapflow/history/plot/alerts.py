"""Alerts over time: which rule held for which seed, and for how long."""

from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.container import BarContainer

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
from sapflow.history.plot.palette import INK, ORANGE, VERMILLION, shown
from sapflow.history.plot.places import Row
from sapflow.history.run import Run
from sapflow.telemetry.vocabulary import Severity

COLUMNS = {
    "env": pa.int32(), "slot": pa.string(), "seed": pa.string(), "blueprint": pa.string(), "rule": pa.string(),
    "severity": pa.string(), "since_epoch": pa.int32(), "raised_epoch": pa.int32(), "cleared_epoch": pa.int32(),
    "evidence": pa.string(),
}  # fmt: skip
MOST_ALERTS = 40
LOOKS = {Severity.CRITICAL: (VERMILLION, 0.62), Severity.WARNING: (ORANGE, 0.34)}


@styled
def alerts(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """Each alert as a bar from the epoch since which its rule held to that in which it was cleared.

    Of more than 40 alerts the most severe and then the longest are drawn.
    """
    found = [
        row
        for row in run.alerts().to_pylist()
        if (envs is None or row["env"] in envs) and (slots is None or row["slot"] in slots)
    ]
    epochs = run.epochs(columns=["epoch"])["epoch"].to_pylist()
    now = max([*epochs, *(row["raised_epoch"] for row in found)], default=0)
    kept = sorted(found, key=lambda row: (row["severity"] != Severity.CRITICAL, -_length(row, now)))[:MOST_ALERTS]
    kept.sort(key=lambda row: (row["raised_epoch"], row["env"]))
    chart, (axes,) = new_chart("Alerts over time", size=(PANEL_INCHES[0], 1.2 + 0.19 * max(len(kept), 5)))
    left_out = len(found) - len(kept)
    chart.description = (
        "Each row is an alert, from the epoch since which its rule held to that in which it was cleared; a stroke is "
        "where it was raised, an arrow means that it is still open. Critical ones are higher."
        + (f" Alerts not drawn, which are less severe or shorter: {left_out}." if left_out else "")
    )
    chart.data = data_of(kept, COLUMNS)
    if kept:
        _draw(axes, kept, now)
    else:
        say_nothing_to_draw(axes, "no alert was raised")
    return chart


def _length(alert: Row, now: int) -> int:
    return int((now + 1 if alert["cleared_epoch"] is None else alert["cleared_epoch"]) - alert["since_epoch"])


def _draw(axes: Axes, kept: list[Row], now: int) -> None:
    handles: dict[str, BarContainer] = {}
    for number, alert in enumerate(kept):
        severity = Severity(alert["severity"])
        colour, height = LOOKS[severity]
        bars = axes.barh(number, max(_length(alert, now), 0.15), left=alert["since_epoch"], height=height, color=colour)
        handles.setdefault(severity.value, bars)
        axes.plot([alert["raised_epoch"]], [number], "|", color=INK, markersize=8)
        if alert["cleared_epoch"] is None:
            axes.plot([now + 1], [number], ">", color=colour, markersize=6, clip_on=False)
    labels = [f"{shown(alert['rule'], 18)} · {alert['env']} {shown(alert['slot'], 14)}" for alert in kept]
    axes.set_yticks(range(len(kept)), labels)
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.6)
    axes.set_xlim(left=min(min(alert["since_epoch"], alert["raised_epoch"]) for alert in kept) - 0.5)
    by_epoch(axes)
    legend_below(axes, list(handles.values()), list(handles))
