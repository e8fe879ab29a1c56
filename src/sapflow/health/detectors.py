"""The detectors of the calibrated policy: what each says of a module, and what it takes to raise and clear its alarm.

Gains are compared in octaves (log2): no module is blamed for the scale that its architecture gives it. What is measured
of the levels stands in docs/detection.md.
"""

import math
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from sapflow.health.baseline import TINY, ZERO_OCTAVE, ModuleMemory
from sapflow.telemetry.vocabulary import Fault

# Passes and readings in a row that raise an alarm, and that clear it. Comparing takes two readings, since peers are
# read one after another: what happens to all of them at once seems to happen to the first alone.
PERSISTENCE = 10, 1
PERSISTENCE_TINY = 5, 1
PERSISTENCE_EXPLODES = 5, 1  # a signal that grows in every block overflows within some ten passes, and all is NaN
PERSISTENCE_DEAD = 10, 2
PERSISTENCE_COMPARED = 20, 2

# Octaves: beyond the first an alarm is raised, short of the second it clears.
DRIFT = 4.0, 3.0  # from the own baseline, and from the peers
DRIFT_ALONE = 5.0, 4.0  # from the own baseline, where there are too few peers
OUTLIER = 5.0, 4.0  # from the peers, whatever the own baseline
TINY_CLEARS = TINY + 1
CLEARING = 0.75  # of a limit that is a gain or a scale: short of it, its alarm clears

# Exploding is a gain together with growth of the signal (output/input RMS). Healthy blocks that were born below have
# learned gains of 10 (a normalised block on a small stream, under Adam), so later they are allowed more.
EXPLODING_AT_BIRTH = 4.0
EXPLODING_LATER = 16.0
GROWING = 2.0

# Of healthy blocks the gain was 0.4 to 2.2 times the growth of the signal, in low-rank branches with a small gain 3.4
# times; of those that saturate 3.4 to 10 times.
STEEP = 3.5
STEEP_GAIN = 2.0

CHAIN = 0.01, 100.0  # between these the gain of a whole chain of blocks is healthy
CHAIN_CLEARS = 0.9  # of the band's octaves

FEWEST_PEERS = 2
NOTHING = -25.0  # octaves: a gain of 0 beside one that is not
SPREAD = 3 * 1.4826  # median absolute deviations that are three standard deviations of a normal distribution
SOUND = 2.0  # octaves around 1 within which nobody is an outlier: it may be the peers that are small, or large

# A module is dead at half of the share of live tensors that it ever had (a bias before a normalisation never lives) …
DEAD_OF_PEAK = 0.5
DEAD_FROM_BIRTH = 0.4  # … or at this share; it is alive again above by the margin.
LIVENESS_MARGIN = 0.05


class Finding(NamedTuple):
    """What one detector says of a reading."""

    detector: str
    beyond: bool  # past the level that raises
    back: bool  # past the level that clears
    evidence: str
    fault: Fault
    persistence: tuple[int, int] = PERSISTENCE

    @property
    def exploding(self) -> bool:
        """Which of the two flags it sets."""
        return self.fault in (Fault.EXPLODING, Fault.DIVERGED, Fault.SATURATED)


def explodes(memory: ModuleMemory) -> Iterator[Finding]:
    """A gain, together with growth of the signal that runs forward."""
    if memory.growth is None or memory.born is None:
        return
    gain, growth = 2**memory.gain, memory.growth
    sound = memory.baseline is not None and (memory.born_tiny or memory.baseline < math.log2(EXPLODING_AT_BIRTH))
    limit = EXPLODING_LATER if sound else EXPLODING_AT_BIRTH
    yield Finding(
        detector="explodes",
        beyond=gain > limit and growth > GROWING,
        back=gain < CLEARING * limit or growth < CLEARING * GROWING,
        evidence=f"gain {gain:.3g} (limit {limit:g}) with output/input RMS {growth:.3g} (limit {GROWING:g})",
        fault=Fault.DIVERGED if memory.born < math.log2(EXPLODING_AT_BIRTH) else Fault.EXPLODING,
        persistence=PERSISTENCE_EXPLODES,
    )


def saturated(memory: ModuleMemory) -> Iterator[Finding]:
    """A gain far above the growth of the signal: most units are saturated, and a few steep ones carry the gradient.

    For what is about linear, both are the same (‖Wᵀg‖/‖g‖ and ‖Wx‖/‖x‖, for W as wide as high). Where saturation cuts
    the output down, the slopes are still those of the weights.
    """
    if memory.growth is None or not memory.keeps_size:
        return
    gain = 2**memory.gain
    limit = max(STEEP_GAIN, STEEP * memory.growth)
    yield Finding(
        detector="saturated",
        beyond=gain > limit,
        back=gain < CLEARING * limit,
        evidence=f"gain {gain:.3g} (limit {limit:.3g}) with output/input RMS {memory.growth:.3g}",
        fault=Fault.SATURATED,
    )


def tiny(memory: ModuleMemory) -> Finding:
    """A gain near 0."""
    return Finding(
        detector="tiny",
        beyond=memory.gain < TINY,
        back=memory.gain > TINY_CLEARS,
        evidence=f"gain {said(memory.gain)} (limit {2**TINY:.3g})",
        fault=Fault.VANISHING if memory.born_tiny else Fault.COLLAPSED,
        persistence=PERSISTENCE_TINY,
    )


def dead(memory: ModuleMemory, peers: list[ModuleMemory]) -> Iterator[Finding]:
    """Parameters that get no gradient worth the name."""
    if memory.liveness is None:
        return
    limit = max(DEAD_FROM_BIRTH, DEAD_OF_PEAK * memory.peak_liveness)
    others = [peer.liveness for peer in peers if peer.liveness is not None]
    # Where gradient flows and the peers are no livelier, they are made so, or the largest gradient lies elsewhere.
    shared = len(others) >= FEWEST_PEERS and median(others) <= memory.liveness and memory.gain > TINY
    yield Finding(
        detector="dead",
        beyond=memory.liveness <= limit and not shared,
        back=memory.liveness > limit + LIVENESS_MARGIN or shared,
        evidence=f"{memory.liveness:.0%} of its parameter tensors get a gradient",
        fault=Fault.DEAD,
        persistence=PERSISTENCE_DEAD,
    )


def strays(memory: ModuleMemory, baseline: float, peers: list[ModuleMemory]) -> Iterator[Finding]:
    """Drift from the own baseline and from the peers in one direction; an outlier among the peers."""
    own = memory.gain - baseline
    drifted = f"gain {said(memory.gain)} is {_times(own)} its own baseline {said(baseline)}"
    if len(peers) < FEWEST_PEERS:
        for sign in (-1, 1):
            yield _departs("drift", sign, sign * own, DRIFT_ALONE, drifted)
        return
    centre = median(peer.gain for peer in peers)
    spread = SPREAD * median(abs(peer.gain - centre) for peer in peers)
    allowance = max(0.0, spread - DRIFT[0])  # peers that differ among themselves allow for more
    among = f"{_times(memory.gain - centre)} the median {said(centre)} of its {len(peers)} peers"
    for sign in (-1, 1):
        apart = sign * (memory.gain - centre) - allowance
        yield _departs("drift", sign, min(sign * own, apart), DRIFT, f"{drifted} and {among}")
        outlying = apart if sign * memory.gain > SOUND else 0.0
        yield _departs("outlier", sign, outlying, OUTLIER, f"gain {said(memory.gain)} is {among}")


def leaves_band(memory: ModuleMemory, depth: int) -> Iterator[Finding]:
    """A gain that would take a chain of `depth` such blocks out of CHAIN."""
    lower, upper = (gain ** (1 / depth) for gain in CHAIN)
    evidence = f"gain {said(memory.gain)} outside [{lower:.3g}, {upper:.3g}] for one of {depth} blocks"
    for sign, edge in ((-1, lower), (1, upper)):
        level = abs(math.log2(edge))
        finding = _departs("band", sign, sign * memory.gain, (level, CHAIN_CLEARS * level), evidence)
        yield finding._replace(persistence=PERSISTENCE)


_FAULTS = {
    ("drift", -1): Fault.COLLAPSED,
    ("drift", 1): Fault.DIVERGED,
    ("outlier", -1): Fault.VANISHING,
    ("outlier", 1): Fault.EXPLODING,
    ("band", -1): Fault.VANISHING,
    ("band", 1): Fault.EXPLODING,
}


def _departs(detector: str, sign: int, distance: float, levels: tuple[float, float], evidence: str) -> Finding:
    """Raised by a distance above the first level, cleared below the second; downward is vanishing, upward exploding."""
    return Finding(
        detector=f"{detector} {sign:+}",
        beyond=distance > levels[0],
        back=distance < levels[1],
        evidence=evidence,
        fault=_FAULTS[detector, sign],
        persistence=PERSISTENCE_COMPARED,
    )


def said(octave: float) -> str:
    """A gain in words, from its octave."""
    return f"{2**octave:.3g}" if octave > ZERO_OCTAVE else "0"


def _times(octaves: float) -> str:
    if octaves < NOTHING:
        return "nothing of"
    return f"{2**octaves:.3g} times" if octaves >= 0 else f"1/{2**-octaves:.3g} of"
