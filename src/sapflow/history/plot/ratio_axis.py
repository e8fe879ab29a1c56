"""An axis for ratios: octaves, the healthy band, and rails for what has no place among numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sapflow.health.policy import record_band
from sapflow.history.plot.palette import BAND, MUTED

SMALLEST, LARGEST = 2.0**-40, 2.0**40
LEAST_SHOWN = (2.0**-3, 2.0**3)
MOST_TICKS = 7
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class RatioAxis:
    """Where things are: the lowest and the highest number, and the rails in units of the axis."""

    low: float
    high: float
    zero: float
    unmeasured: float
    not_finite: float

    @classmethod
    def over(cls, ratios: Iterable[float]) -> "RatioAxis":
        """An axis on which all these ratios have a place."""
        numbers = [ratio for ratio in ratios if SMALLEST <= ratio <= LARGEST]
        low = 2.0 ** math.floor(math.log2(min([*numbers, LEAST_SHOWN[0]])))
        high = 2.0 ** math.ceil(math.log2(max([*numbers, LEAST_SHOWN[1]])))
        step = max(1.0, math.log2(high / low) / 9)
        return cls(low, high, low / 2**step, low / 2 ** (2 * step), high * 2**step)

    def place(self, ratio: float) -> float:
        """Where a measured ratio stands: zero, and what is too small or too large for numbers, on its rail."""
        if ratio < SMALLEST:
            return self.zero
        return ratio if ratio <= LARGEST else self.not_finite

    def dress(self, axes: Axes, rails: Iterable[float]) -> None:
        """Make the y axis of `axes` this one, with the band and those rails that are used."""
        used = set(rails)
        axes.set_yscale("log", base=2)
        band = record_band()
        axes.axhspan(band.lower, band.upper, color=BAND, zorder=0, linewidth=0)
        octaves = range(round(math.log2(self.low)), round(math.log2(self.high)) + 1)
        stride = -(-len(octaves) // MOST_TICKS)
        ticks = {2.0**octave: octave_label(octave) for octave in octaves if octave % stride == 0}
        names = {self.unmeasured: "not measured", self.zero: "0", self.not_finite: "NaN, ∞"}
        for rail in used:
            axes.axhline(rail, color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0.5)
            ticks[rail] = names[rail]
        axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.yaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(min([*used, self.low]) / 1.3, max([*used, self.high]) * 1.3)


def octave_label(octave: int) -> str:
    """2 to the power of `octave` as people write it."""
    if 0 <= octave <= 6:
        return str(2**octave)
    if -6 <= octave < 0:
        return f"1/{2**-octave}"
    return power_label(2, octave)


def power_label(base: int, exponent: int) -> str:
    """A power as text: a formula would need a renderer of formulas."""
    return f"{base}{str(exponent).translate(SUPERSCRIPTS)}"
