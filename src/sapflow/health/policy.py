"""The judging seam: a reading of one module and epoch goes in, flags and the evidence for them come out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from sapflow.telemetry.record_sections import Band
from sapflow.telemetry.records import record_of
from sapflow.telemetry.vocabulary import Fault, Measurement

# A ratio is measured from fp32 norms: one that differs from an end of the band by less than this, relatively, is on it.
RELATIVE_TOLERANCE = 1e-6
# Overflow is the normal business of a GradScaler; only this many overflowed passes in a row are a sign of trouble.
OVERFLOWS_IN_A_ROW = 3


class Need(StrEnum):
    """What a policy may ask to have measured beside the gains; it costs something, so nobody else pays for it."""

    OUTPUT_INPUT_RMS = "output_input_rms"
    PARAMETER_LIVENESS = "parameter_liveness"  # and whether parameters moved


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The torch-free sums of one module over one epoch, or over the epoch so far.

    Squares are sums of ‖·‖₂² over the `passes` in which both sides were finite and something entered. None is "not
    measured": no policy needed it. `output_input_rms` is the RMS of the output over that of the input, of
    what needs a gradient where anything does, and `keeps_size` whether it is known that both have as many numbers;
    `parameter_liveness` the share (0 to 1) of the module's trainable parameter tensors whose gradient norm exceeds 1e-4
    of the largest among all watched parameters (0.0 where all are zero); `parameters_moved` whether training has
    changed any of its parameters since it was attached.
    """

    measurement: Measurement = Measurement.UNMEASURED
    reason: str = ""
    passes: int = 0
    non_finite_passes: int = 0
    longest_non_finite_run: int = 0
    loss_scaled: bool = False
    entering_square: float = 0.0
    leaving_square: float = 0.0
    min_ratio: float = 0.0
    max_ratio: float = 0.0
    last_ratio: float = 0.0
    histogram: tuple[int, ...] = ()
    output_input_rms: float | None = None
    keeps_size: bool = False
    parameter_liveness: float | None = None
    parameters_moved: bool | None = None

    @property
    def grad_ratio(self) -> float:
        """√(Σ leaving² / Σ entering²): the gain of all passes taken as one batch (TELE-557); 0.0 unless MEASURED."""
        return math.sqrt(self.leaving_square / self.entering_square) if self.entering_square > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The flags of TELE-557, what is wrong where one is set, and what a person can check it by."""

    has_vanishing: bool = False
    has_exploding: bool = False
    evidence: str = ""
    fault: Fault | None = None


class Policy(Protocol):
    """How readings are judged. `memory` is the policy's own, one for each module, kept by the caller."""

    @property
    def needs(self) -> frozenset[Need]:
        """What is to be measured for it beside the gains."""

    def new_memory(self, name: str) -> Any:
        """What the policy wants to remember of the module of that name; None if nothing."""

    def judge(self, reading: Reading, memory: Any) -> Verdict:
        """The verdict on a reading; may change `memory`."""


def record_band() -> Band:
    """The healthy band as TELE-557 has it."""
    band = record_of("grad_ratio").data.band
    assert band is not None
    return band


def non_finite_evidence(reading: Reading) -> str:
    """The non-finite passes in words where they are a sign of trouble; "" where they are not."""
    run_limit = OVERFLOWS_IN_A_ROW if reading.loss_scaled else 1
    overflowed = reading.longest_non_finite_run >= run_limit
    return f"{reading.non_finite_passes} non-finite passes" if overflowed else ""


def worst_of(faults: Iterable[Fault]) -> Fault | None:
    """The first of them in the order of `Fault`; None if there are none."""
    return min(faults, key=list(Fault).index, default=None)


@dataclass(frozen=True, kw_only=True)
class HealthPolicy:
    """The record's band: healthy in [lower, upper], both ends included; it needs no memory.

    A non-finite pass sets `has_exploding`; where the loss is scaled (GradScaler), three in a row do.
    """

    lower: float = field(default_factory=lambda: record_band().lower)
    upper: float = field(default_factory=lambda: record_band().upper)

    needs: ClassVar[frozenset[Need]] = frozenset()

    def new_memory(self, name: str) -> None:
        """The band needs none."""

    def judge(self, reading: Reading, memory: None) -> Verdict:
        """Flags by the band and by non-finite passes; nothing measured is no flag, and no evidence of health."""
        overflow = non_finite_evidence(reading)
        findings, faults = ([overflow], [Fault.NON_FINITE]) if overflow else ([], [])
        vanishing = exploding = False
        if reading.measurement is Measurement.MEASURED:
            ratio = reading.grad_ratio
            vanishing = ratio < self.lower * (1 - RELATIVE_TOLERANCE)
            exploding = ratio > self.upper * (1 + RELATIVE_TOLERANCE)
            if vanishing:
                faults.append(Fault.VANISHING if ratio else Fault.DEAD)
            elif exploding:
                faults.append(Fault.EXPLODING)
            place = f"< {self.lower:g}" if vanishing else f"> {self.upper:g}" if exploding else "in band"
            findings.append(f"ratio {ratio:.3g} {place}, {reading.passes} passes")
        return Verdict(
            has_vanishing=vanishing,
            has_exploding=exploding or bool(overflow),
            evidence="; ".join(findings),
            fault=worst_of(faults),
        )
