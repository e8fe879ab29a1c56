"""How the ratios of single passes are distributed, by octaves."""

import math
from collections.abc import Collection

from matplotlib.axes import Axes

from sapflow.health.policy import record_band
from sapflow.history.arrow import pa
from sapflow.history.plot.chart import Chart, data_of, legend_below, new_chart, say_nothing_to_draw, styled
from sapflow.history.plot.palette import BAND, LOOKS, shown
from sapflow.history.plot.places import SERIES_A_PANEL, Life, Row, lives_of, trouble
from sapflow.history.plot.ratio_axis import octave_label
from sapflow.history.run import Run
from sapflow.telemetry.events import HISTOGRAM_BINS, HISTOGRAM_HIGHEST_OCTAVE, HISTOGRAM_LOWEST_OCTAVE

COLUMNS = {"slot": pa.string(), "octave": pa.string(), "passes": pa.int64(), "percent": pa.float64()}
NEEDED = ("histogram", "passes", "status", "vanishing", "exploding", "non_finite")


@styled
def distribution(run: Run, *, envs: Collection[int] | None = None, slots: Collection[str] | None = None) -> Chart:
    """The share of a slot's finite passes in each octave of the ratio, over all epochs and envs chosen.

    Every pass counts (EPOCH_COMPLETED carries the histogram), not only sampled ones. Of more than six slots those with
    the most trouble are drawn.
    """
    lives = lives_of(run, NEEDED, envs, slots)
    chosen, left_out = _slots(lives)
    broken = sum(row["non_finite"] for life in lives for row in life.rows)
    chart, (axes,) = new_chart("Ratios of single passes")
    chart.description = (
        "Share of each slot's passes by the octave of their ratio, over all epochs; the first and the last bin hold "
        "everything below and above, the shaded band is healthy. "
        f"Passes that were not finite, which have no ratio: {broken}."
        + (f" Slots not drawn, which have less trouble: {left_out}." if left_out else "")
    )
    counts = {slot: _summed(lives, slot) for slot in chosen}
    chart.data = data_of([row for slot, bins in counts.items() for row in _rows(slot, bins)], COLUMNS)
    if not any(map(sum, counts.values())):
        say_nothing_to_draw(axes, "no pass was measured")
        return chart
    _draw(axes, counts)
    return chart


def _slots(lives: list[Life]) -> tuple[list[str], int]:
    troubles: dict[str, int] = {}
    for life in lives:
        troubles[life.slot] = troubles.get(life.slot, 0) + trouble(life)
    kept = sorted(troubles, key=lambda slot: -troubles[slot])[:SERIES_A_PANEL]
    return [slot for slot in troubles if slot in kept], len(troubles) - len(kept)


def _summed(lives: list[Life], slot: str) -> list[int]:
    """A stranger's histogram may have other bins, and counts that are none."""
    bins = [0] * HISTOGRAM_BINS
    for life in lives:
        if life.slot == slot:
            for row in life.rows:
                for number, count in enumerate(row["histogram"] or ()):
                    bins[min(number, HISTOGRAM_BINS - 1)] += max(count, 0)
    return bins


def _rows(slot: str, bins: list[int]) -> list[Row]:
    total = sum(bins)
    return [
        {"slot": slot, "octave": _bin_name(number), "passes": count, "percent": 100 * count / total}
        for number, count in enumerate(bins)
        if count
    ]


def _bin_name(number: int) -> str:
    octave = HISTOGRAM_LOWEST_OCTAVE + number - 1
    if number == 0:
        return f"below {octave_label(HISTOGRAM_LOWEST_OCTAVE)}"
    if number == HISTOGRAM_BINS - 1:
        return f"{octave_label(octave)} and above"
    return f"{octave_label(octave)} to {octave_label(octave + 1)}"


def _draw(axes: Axes, counts: dict[str, list[int]]) -> None:
    used = [number for bins in counts.values() for number, count in enumerate(bins) if count]
    edges = [HISTOGRAM_LOWEST_OCTAVE - 1 + number for number in range(HISTOGRAM_BINS + 1)]
    band = record_band()
    axes.axvspan(math.log2(band.lower), math.log2(band.upper), color=BAND, zorder=0, linewidth=0)
    handles, labels = [], []
    for look, (slot, bins) in zip(LOOKS, counts.items(), strict=False):
        if not (total := sum(bins)):
            continue
        shares = [100 * count / total for count in bins]
        handles.append(
            axes.stairs(shares, edges, color=look.colour, linestyle=look.dash, linewidth=1.6, label=slot)
        )  # fmt: skip
        labels.append(shown(slot))
    first, last = edges[min(min(used), 16)] - 1, edges[max(max(used), 17) + 1] + 1
    axes.set_xlim(first, last)
    stride = max(1, (last - first) // 7)
    ticks = [octave for octave in range(first, last + 1) if octave % stride == 0]
    axes.set_xticks(ticks, [_edge_label(octave) for octave in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ratio of a pass")
    axes.set_ylabel("% of the slot's passes")
    legend_below(axes, handles, labels)


def _edge_label(octave: int) -> str:
    if octave < HISTOGRAM_LOWEST_OCTAVE:
        return "…0"
    return octave_label(octave) if octave <= HISTOGRAM_HIGHEST_OCTAVE + 1 else "…∞"
