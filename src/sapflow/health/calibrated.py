"""The calibrated policy: other people's modules, judged by what they were born as and by what their peers do.

Gains are compared in octaves (log2): no module is blamed for the scale that its architecture gives it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar, NamedTuple
from weakref import WeakValueDictionary

from sapflow.errors import InputError
from sapflow.health.baseline import TINY, ZERO_OCTAVE, Alarm, Family, ModuleMemory, octave_of, weight_of
from sapflow.health.policy import Need, Reading, Verdict, non_finite_evidence
from sapflow.telemetry.vocabulary import Measurement

# Passes and readings in a row that raise an alarm, and that clear it. Comparing takes two readings, since peers are
# read one after another: what happens to all of them at once seems to happen to the first alone.
PERSISTENCE = 10, 1
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


class _Finding(NamedTuple):
    """What one detector says of a reading."""

    detector: str
    exploding: bool
    beyond: bool  # past the level that raises
    back: bool  # past the level that clears
    evidence: str
    persistence: tuple[int, int] = PERSISTENCE


@dataclass(frozen=True, kw_only=True)
class CalibratedPolicy:
    """Judges a module by its own first passes, by its peers, and by whether its parameters get gradients.

    A finding has to hold for some passes (PERSISTENCE) to set a flag, and to be clear of a nearer level for as many to
    take it back; a non-finite pass flags at once, as in `HealthPolicy`. Peers are modules whose names differ in
    numbers alone. Nothing is called vanishing in its first BASELINE_PASSES, while its parameters have not moved
    although some get gradients (a branch whose last weight starts at 0), or while it rises from near 0. One policy
    object serves one monitor.

    Args:
        depth: judge each module as one of so many blocks in a chain, too: the gain of all together is to stay in
            [0.01, 100], so that of each in [0.01^(1/depth), 100^(1/depth)].

    Raises:
        InputError: `depth` is below 1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset(Need)

    depth: int | None = None
    _families: WeakValueDictionary[str, Family] = field(
        init=False, repr=False, compare=False, default_factory=WeakValueDictionary
    )

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise InputError(f"depth={self.depth}: a chain has at least 1 block")

    def new_memory(self, name: str) -> ModuleMemory:
        """A memory for the module of that name, which joins its peers."""
        family = self._families.setdefault(re.sub(r"\d+", "*", name), Family())
        memory = ModuleMemory(name, family)
        family.members[name] = memory
        return memory

    def judge(self, reading: Reading, memory: ModuleMemory) -> Verdict:
        """Flags, with the evidence for them; without one, what the module is compared with."""
        memory.take(reading)
        peers = memory.family.peers_of(memory.name)
        heard = [
            (finding, memory.alarms.setdefault(finding.detector, Alarm(*finding.persistence)))
            for finding in self._findings(reading, memory, peers)
        ]
        standing = [
            finding
            for finding, alarm in heard
            if alarm.hear(beyond=finding.beyond, back=finding.back, passes=weight_of(reading))
        ]
        non_finite = non_finite_evidence(reading)
        evidence = [non_finite] if non_finite else []
        if standing:  # what does not stand yet may tell the cause, too
            evidence += [f"{finding.evidence}, for {alarm.held} passes" for finding, alarm in heard if alarm.held]
        elif not evidence and reading.measurement is Measurement.MEASURED:
            evidence.append(_at_ease(memory, peers))
        return Verdict(
            has_vanishing=any(not finding.exploding for finding in standing),
            has_exploding=bool(non_finite) or any(finding.exploding for finding in standing),
            evidence="; ".join(evidence),
        )

    def _findings(self, reading: Reading, memory: ModuleMemory, peers: list[ModuleMemory]) -> Iterator[_Finding]:
        """Every detector that has something to go by; whoever is excused is back from all that is vanishing."""
        measured = reading.measurement is Measurement.MEASURED
        findings: list[_Finding] = []
        if measured:
            findings += _explodes(reading, memory)
        if measured or reading.measurement is Measurement.INPUT_DETACHED:
            findings += _dead(memory, peers)
        if measured and memory.baseline is not None:
            findings += [_tiny(memory), *_strays(memory, memory.baseline, peers), *self._leaves_band(memory)]
        for finding in findings:
            excused = bool(memory.excuse) and not finding.exploding
            yield finding._replace(beyond=False, back=True) if excused else finding

    def _leaves_band(self, memory: ModuleMemory) -> Iterator[_Finding]:
        if self.depth is None:
            return
        lower, upper = (gain ** (1 / self.depth) for gain in CHAIN)
        evidence = f"gain {_gain(memory.gain)} outside [{lower:.3g}, {upper:.3g}] for one of {self.depth} blocks"
        for sign, edge in ((-1, lower), (1, upper)):
            level = abs(math.log2(edge))
            yield _finding("band", sign, sign * memory.gain, (level, CHAIN_CLEARS * level), evidence)


def chain_verdict(gains: Mapping[str, float]) -> Verdict:
    """The gain of a chain of blocks that feed one another, from the measured gain of each, by name.

    Flagged beyond [0.01, 100]; the evidence names the block that did most. No blocks are no flag.
    """
    if not gains:
        return Verdict()
    octaves = {name: octave_of(gain) for name, gain in gains.items()}
    total = sum(octaves.values())
    lower, upper = (math.log2(gain) for gain in CHAIN)
    most = (min if total < 0 else max)(octaves, key=octaves.__getitem__)
    place = f"below {CHAIN[0]:g}" if total < lower else f"above {CHAIN[1]:g}" if total > upper else "in its band"
    evidence = f"gain {_gain(total)} over a chain of {len(gains)}, {place}; most by {most}: {_gain(octaves[most])}"
    return Verdict(has_vanishing=total < lower, has_exploding=total > upper, evidence=evidence)


def _finding(detector: str, sign: int, distance: float, levels: tuple[float, float], evidence: str) -> _Finding:
    """Raised by a distance above the first level, cleared below the second; downward is vanishing, upward exploding."""
    return _Finding(f"{detector} {sign:+}", sign > 0, distance > levels[0], distance < levels[1], evidence)


def _compared(detector: str, sign: int, distance: float, levels: tuple[float, float], evidence: str) -> _Finding:
    return _finding(detector, sign, distance, levels, evidence)._replace(persistence=PERSISTENCE_COMPARED)


def _explodes(reading: Reading, memory: ModuleMemory) -> Iterator[_Finding]:
    growth = reading.output_input_rms
    if growth is None:
        return
    gain = 2**memory.gain
    born_sound = memory.baseline is not None and (memory.born_tiny or memory.baseline < math.log2(EXPLODING_AT_BIRTH))
    limit = EXPLODING_LATER if born_sound else EXPLODING_AT_BIRTH
    yield _Finding(
        detector="explodes",
        exploding=True,
        beyond=gain > limit and growth > GROWING,
        back=gain < CLEARING * limit or growth < CLEARING * GROWING,
        evidence=f"gain {gain:.3g} (limit {limit:g}) with output/input RMS {growth:.3g} (limit {GROWING:g})",
    )


def _tiny(memory: ModuleMemory) -> _Finding:
    evidence = f"gain {_gain(memory.gain)} (limit {2**TINY:.3g})"
    return _finding("tiny", -1, -memory.gain, (-TINY, -TINY_CLEARS), evidence)


def _strays(memory: ModuleMemory, baseline: float, peers: list[ModuleMemory]) -> Iterator[_Finding]:
    """Drift from the own baseline and from the peers in one direction; an outlier among the peers."""
    own = memory.gain - baseline
    drifted = f"gain {_gain(memory.gain)} is {_times(own)} its own baseline {_gain(baseline)}"
    if len(peers) < FEWEST_PEERS:
        for sign in (-1, 1):
            yield _compared("drift", sign, sign * own, DRIFT_ALONE, drifted)
        return
    centre = median(peer.gain for peer in peers)
    spread = SPREAD * median(abs(peer.gain - centre) for peer in peers)
    allowance = max(0.0, spread - DRIFT[0])  # peers that differ among themselves allow for more
    among = f"{_times(memory.gain - centre)} the median {_gain(centre)} of its {len(peers)} peers"
    for sign in (-1, 1):
        apart = sign * (memory.gain - centre) - allowance
        yield _compared("drift", sign, min(sign * own, apart), DRIFT, f"{drifted} and {among}")
        outlying = apart if sign * memory.gain > SOUND else 0.0
        yield _compared("outlier", sign, outlying, OUTLIER, f"gain {_gain(memory.gain)} is {among}")


def _dead(memory: ModuleMemory, peers: list[ModuleMemory]) -> Iterator[_Finding]:
    if memory.liveness is None:
        return
    limit = max(DEAD_FROM_BIRTH, DEAD_OF_PEAK * memory.peak_liveness)
    others = [peer.liveness for peer in peers if peer.liveness is not None]
    # Where gradient flows and the peers are no livelier, they are made so, or the largest gradient lies elsewhere.
    shared = len(others) >= FEWEST_PEERS and median(others) <= memory.liveness and memory.gain > TINY
    yield _Finding(
        detector="dead",
        exploding=False,
        beyond=memory.liveness <= limit and not shared,
        back=memory.liveness > limit + LIVENESS_MARGIN or shared,
        evidence=f"{memory.liveness:.0%} of its parameter tensors get a gradient",
        persistence=PERSISTENCE_COMPARED,
    )


def _at_ease(memory: ModuleMemory, peers: list[ModuleMemory]) -> str:
    """What a module without an alarm is compared with."""
    words = [f"gain {_gain(memory.gain)}"]
    if memory.excuse:
        words.append(f"in grace: {memory.excuse}")
    elif memory.baseline is not None:
        words.append(f"own baseline {_gain(memory.baseline)}")
    if len(peers) >= FEWEST_PEERS:
        words.append(f"median of its {len(peers)} peers {_gain(median(peer.gain for peer in peers))}")
    return ", ".join(words)


def _gain(octave: float) -> str:
    return f"{2**octave:.3g}" if octave > ZERO_OCTAVE else "0"


def _times(octaves: float) -> str:
    if octaves < NOTHING:
        return "nothing of"
    return f"{2**octaves:.3g} times" if octaves >= 0 else f"1/{2**-octaves:.3g} of"
