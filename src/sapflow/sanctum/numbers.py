"""Numbers as people read them, each in as few cells as it takes: pure functions from numbers to texts."""

import time
from functools import cache
from math import isfinite

from sapflow.health.policy import record_band
from sapflow.telemetry.record_sections import Band


def compact(value: float) -> str:
    """A number in at most six cells: two decimals where they say something, else 1e+05 or 3e-04."""
    size = abs(value)
    if not isfinite(value):
        return str(value)
    if size and (size < 0.005 or size >= 99_999.5):
        return f"{value:.0e}"
    return f"{value:.2f}" if size < 99.995 else f"{value:.0f}"


def known(value: float | None) -> str:
    """`compact`, or -- where there is no number."""
    return "--" if value is None else compact(value)


def ratio(value: float) -> str:
    """A ratio in at most six cells; where two decimals would lie on the other side of the healthy band's end, more.

    0.497 is 0.497, since 0.50 would be healthy; what three decimals would hide as well is <0.50 or >2.00.
    """
    for shown in (compact(value), f"{value:.3f}"):
        if _side(float(shown)) == _side(value):
            return shown
    return f"{'<' if _side(value) < 0 else '>'}{value:.2f}"


def _side(value: float) -> int:
    """-1 below the healthy band, 0 within it, 1 above it."""
    band = healthy_band()
    return (value > band.upper) - (value < band.lower)


@cache
def healthy_band() -> Band:
    """The record's, looked up once: it is asked for every row and dot."""
    return record_band()


def norm(value: float) -> str:
    """A norm with two digits, such as 3.1e-02."""
    return f"{value:.1e}"


def humanised(count: int) -> str:
    """A count in at most six cells, such as 950, 18.4K or 3.2M."""
    if count < 1000:
        return str(count)
    size = float(count)
    for unit in "KMG":
        size /= 1000
        if size < 999.95:
            return f"{size:.1f}{unit}"
    return f"{size:.0e}G"


def duration(seconds: float) -> str:
    """A time span such as 0:42 or 3:05:09; --:-- where there is none."""
    if not 0 <= seconds < 1e8:
        return "--:--"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def clock(moment: float | None, now: float | None = None) -> str:
    """Unix seconds as local time of day; with `now`, the date stands before it where that is another day."""
    if moment is None or not 0 <= moment < 2e11:
        return "--:--:--"
    then = time.localtime(moment)
    another_day = now is not None and time.localtime(now)[:3] != then[:3]
    return time.strftime("%Y-%m-%d %H:%M:%S" if another_day else "%H:%M:%S", then)
