"""The calibrated policy: other people's modules, judged by what they were born as and by what their peers do.

Gains are compared in octaves (log2): no module is blamed for the scale that its architecture gives it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar
from weakref import WeakValueDictionary

from sapflow.errors import InputError
from sapflow.health.baseline import Alarm, Family, ModuleMemory, octave_of, weight_of
from sapflow.health.detectors import (
    CHAIN,
    FEWEST_PEERS,
    Finding,
    dead,
    explodes,
    leaves_band,
    said,
    saturated,
    strays,
    tiny,
)  # fmt: skip
from sapflow.health.policy import Need, Reading, Verdict, non_finite_evidence, worst_of
from sapflow.telemetry.vocabulary import Fault, Measurement


@dataclass(frozen=True, kw_only=True)
class CalibratedPolicy:
    """Judges a module by its own first passes, by its peers, and by whether its parameters get gradients.

    A finding (`health/detectors.py`) has to hold for some passes to set a flag, and to be clear of a nearer level for
    as many to take it back; a non-finite pass flags at once, as in `HealthPolicy`. Peers are modules whose names differ
    in numbers alone; of very many, some. Nothing is called vanishing in its first GRACE_PASSES, while its parameters
    have not moved although some get gradients (a branch whose last weight starts at 0), or while it rises from near 0;
    nothing is compared with itself or its peers in its first BASELINE_PASSES. One policy object serves one monitor.

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
        evidence, faults = ([non_finite], [Fault.NON_FINITE]) if non_finite else ([], [])
        if standing:  # what does not stand yet may tell the cause, too
            evidence += [f"{finding.evidence}, for {alarm.held} passes" for finding, alarm in heard if alarm.held]
            faults += [finding.fault for finding, alarm in heard if alarm.held]
        elif not evidence and reading.measurement is Measurement.MEASURED:
            evidence.append(_at_ease(memory, peers))
        return Verdict(
            has_vanishing=any(not finding.exploding for finding in standing),
            has_exploding=bool(non_finite) or any(finding.exploding for finding in standing),
            evidence="; ".join(evidence),
            fault=worst_of(faults),
        )

    def _findings(self, reading: Reading, memory: ModuleMemory, peers: list[ModuleMemory]) -> Iterator[Finding]:
        """Every detector that has something to go by; whoever is excused is back from all that is vanishing."""
        measured = reading.measurement is Measurement.MEASURED
        findings: list[Finding] = []
        if measured:
            findings += [*explodes(memory), *saturated(memory), tiny(memory)]
        if measured or reading.measurement is Measurement.INPUT_DETACHED:
            findings += dead(memory, peers)
        if measured and memory.baseline is not None:
            standards = [peer for peer in peers if peer.baseline is not None]
            findings += strays(memory, memory.baseline, standards)
            if self.depth is not None:
                findings += leaves_band(memory, self.depth)
        for finding in findings:
            excused = bool(memory.excuse) and not finding.exploding
            yield finding._replace(beyond=False, back=True) if excused else finding


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
    evidence = f"gain {said(total)} over a chain of {len(gains)}, {place}; most by {most}: {said(octaves[most])}"
    fault = Fault.VANISHING if total < lower else Fault.EXPLODING if total > upper else None
    return Verdict(has_vanishing=total < lower, has_exploding=total > upper, evidence=evidence, fault=fault)


def _at_ease(memory: ModuleMemory, peers: list[ModuleMemory]) -> str:
    """What a module without an alarm is compared with."""
    words = [f"gain {said(memory.gain)}"]
    if memory.excuse:
        words.append(f"in grace: {memory.excuse}")
    elif memory.baseline is not None:
        words.append(f"own baseline {said(memory.baseline)}")
    if len(peers) >= FEWEST_PEERS:
        words.append(f"median of its {len(peers)} peers {said(median(peer.gain for peer in peers))}")
    return ", ".join(words)
