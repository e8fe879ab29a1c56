"""What a calibrated policy remembers of a module: its gain, its baseline, its grace and its peers; gains in octaves."""

import math
from collections import deque
from copy import copy
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from weakref import WeakValueDictionary

from sapflow.health.policy import Reading
from sapflow.telemetry.events import HISTOGRAM_LOWEST_OCTAVE
from sapflow.telemetry.vocabulary import Measurement

# Passes that make a baseline, counted from when the parameters first moved, and those before which no module is called
# vanishing.
BASELINE_PASSES = 30
GRACE_PASSES = 5
# Below this gain a module is a candidate for vanishing, unless it was born so and rises.
TINY = math.log2(1e-3)
# Octaves that a branch born near 0 rises while its passes double, as long as it learns: in a straight line, one.
RISING = 0.7
ZERO_OCTAVE = -40.0  # stands for a gain of 0
# A median of more says no more. Each module is compared at each reading, and with all of a thousand experts that took
# longer than their training.
ENOUGH_PEERS = 32


@dataclass
class Alarm:
    """A detector's alarm with persistence: raised by passes beyond one level, cleared by those back from a nearer."""

    passes: int  # in a row, that it takes …
    readings: int  # … and the readings
    raised: bool = False
    contrary_passes: int = 0  # in a row, that speak against the state it is in
    contrary_readings: int = 0
    held: int = 0  # passes since it was last clear

    def hear(self, *, beyond: bool, back: bool, passes: int) -> bool:
        """Whether it stands after a reading of so many passes; neither beyond nor back leaves it as it is."""
        contrary = back if self.raised else beyond
        self.contrary_passes = self.contrary_passes + passes if contrary else 0
        self.contrary_readings = self.contrary_readings + 1 if contrary else 0
        if self.contrary_passes >= self.passes and self.contrary_readings >= self.readings:
            self.raised = not self.raised
            self.contrary_passes = self.contrary_readings = 0
        self.held = self.held + passes if self.raised or beyond else 0
        return self.raised


class Family:
    """The modules whose names differ in numbers alone; gone with the last of them."""

    def __init__(self) -> None:
        self.members: WeakValueDictionary[str, ModuleMemory] = WeakValueDictionary()

    def peers_of(self, name: str) -> list["ModuleMemory"]:
        """Those that the member of that name can be compared with: out of grace, and without an alarm.

        In a large family, every so-manieth from its first to its last: ENOUGH_PEERS, or up to twice as many.
        """
        members = self.members.valuerefs()
        some = [member() for member in members[:: len(members) // ENOUGH_PEERS or 1]]
        return [member for member in some if member is not None and member.name != name and member.at_ease]


@dataclass(eq=False)
class ModuleMemory:
    """What is remembered of one module: some numbers, BASELINE_PASSES of them in `recent` at most."""

    name: str
    family: Family
    passes: int = 0  # since its parameters moved, or could have
    waiting: bool = False  # some parameter gets a gradient, and none has moved yet
    gain: float = ZERO_OCTAVE  # of the last measured reading
    born: float | None = None  # its gain in its first pass, or the lowest of its first reading, in octaves
    baseline: float | None = None
    risen_to: float | None = None  # octaves, of a branch that was born near 0
    rising: bool = True
    next_mark: int = GRACE_PASSES
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=BASELINE_PASSES))
    growth: float | None = None  # output over input, as last seen
    keeps_size: bool = False  # likewise
    liveness: float | None = None
    peak_liveness: float = 0.0
    alarms: dict[str, Alarm] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> "ModuleMemory":
        """A copy for a verdict in mid-epoch; several a second are made, and the generic way takes ten times as long."""
        twin = copy(self)
        twin.recent = self.recent.copy()
        twin.alarms = {detector: copy(alarm) for detector, alarm in self.alarms.items()}
        return twin

    @property
    def born_tiny(self) -> bool:
        """Whether its first gain was near 0, as that of a branch whose last weight starts at 0."""
        return self.born is not None and self.born < TINY

    @property
    def excuse(self) -> str:
        """Why it cannot be called vanishing yet; "" if it can."""
        if self.waiting:
            return "its parameters have not moved yet"
        if self.passes < GRACE_PASSES:
            return f"{self.passes} of the {GRACE_PASSES} passes before which nothing is called vanishing"
        if self.born_tiny and self.rising and self.risen_to is not None and self.gain > self.risen_to - 1:
            return "it was born near 0 and rises"
        return ""

    @property
    def at_ease(self) -> bool:
        """Whether nothing excuses it, and nothing speaks against it."""
        return not self.excuse and not any(alarm.raised for alarm in self.alarms.values())

    def take(self, reading: Reading) -> None:
        """Note a reading: how old the module is, its gain, baseline and liveness."""
        alive = reading.parameter_liveness
        if alive is not None:
            self.liveness, self.peak_liveness = alive, max(self.peak_liveness, alive)
        if reading.output_input_rms is not None:
            self.growth, self.keeps_size = reading.output_input_rms, reading.keeps_size
        self.waiting = reading.parameters_moved is False and bool(alive)
        measured = reading.measurement is Measurement.MEASURED
        if measured:
            self.gain = typical_octave(reading)
            if self.born is None:
                self.born = octave_of(reading.min_ratio if reading.histogram else reading.grad_ratio)
        if not self.waiting:
            self.passes += weight_of(reading)
            if measured:
                self._calibrate()

    def _calibrate(self) -> None:
        """The baseline is that of the first passes; a branch born near 0 is held to the highest that it rose to."""
        if self.baseline is not None and not self.born_tiny:
            return
        self.recent.append(self.gain)
        level = median(self.recent)
        if self.born_tiny and self.passes >= self.next_mark:
            self.rising = self.risen_to is None or level >= self.risen_to + RISING
            self.risen_to = level if self.risen_to is None else max(level, self.risen_to)
            self.next_mark = 2 * self.passes
            self.recent.clear()
        if self.passes >= BASELINE_PASSES:
            self.baseline = self.risen_to if self.born_tiny else level


def typical_octave(reading: Reading) -> float:
    """The median over the reading's passes, from its histogram, so that one pass with a huge gradient is one pass."""
    if not reading.histogram:
        return octave_of(reading.grad_ratio)
    half, below = sum(reading.histogram) / 2, 0
    octave = 0.0
    for index, count in enumerate(reading.histogram):
        if below + count >= half:
            octave = HISTOGRAM_LOWEST_OCTAVE - 1 + index + (half - below) / count
            break
        below += count
    return min(max(octave, octave_of(reading.min_ratio)), octave_of(reading.max_ratio))


def weight_of(reading: Reading) -> int:
    """The passes that a reading stands on; one without a gain counts for one."""
    return max(reading.passes, 1)


def octave_of(gain: float) -> float:
    """log2 of a gain, with a floor for 0."""
    return max(math.log2(gain), ZERO_OCTAVE) if gain > 0 else ZERO_OCTAVE
