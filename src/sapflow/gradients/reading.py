"""What one epoch's sums say of one module: the measurement's state with its reason, and the torch-free reading."""

from dataclasses import dataclass
from typing import Any

from msgspec.structs import asdict
from torch import nn

from sapflow.gradients.cells import ENTERING, LEAVING, Row
from sapflow.gradients.epoch_sums import EpochSums
from sapflow.gradients.probe import Probe
from sapflow.gradients.selection import kind_of, size_of
from sapflow.gradients.vitals import Vitals, VitalSigns
from sapflow.health.policy import Reading, Verdict
from sapflow.telemetry.events import GradientHealth, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage

ATTACH_FIRST = "attach before torch.compile, or call torch._dynamo.reset() now"

TOO_LOW = (
    "what enters by calls whose input needs no gradient counts, too, under torch.compile, and makes the ratio too low: "
    "have them not compiled"
)
CHANGED_VIEW = (
    "its output is a view, and what changes it in place hides it from the probe: set inplace=False there, or write "
    "y = y + x for y += x, or watch the module around it"
)
UNREADABLE = (
    "what it takes or returns cannot be looked into under torch.compile, as a DTensor or a nested tensor cannot: watch "
    "the module around it"
)
UNTAPPED = (
    "what it is given in a list, dict or dataclass is not measured under torch.compile: give it tensors or tuples, or "
    "watch the module around it"
)


@dataclass
class Watched:
    """A module that is measured: its probe, its row in the sums, the policy's memory of it, and its vital signs."""

    module: nn.Module
    probe: Probe
    row: Row
    memory: Any
    vitals: Vitals | None

    def read(self, epoch: EpochSums, signs: VitalSigns, *, loss_scaled: bool) -> Reading:
        """The reading over the passes that `epoch` holds; the fields are described in `Reading`."""
        row = self.row.index
        # A gradient of 0 may stand there since it was zeroed.
        reached = self.probe.parameters.reached and signs.parameter_liveness != 0
        measurement, reason = _measurement(epoch, row, self.probe, reached=reached)
        if not reason and self.vitals is not None and self.vitals.failure:
            reason = f"whether its parameters are alive is not known: {self.vitals.failure}"
        passes = int(epoch.passes[row]) if measurement is Measurement.MEASURED else 0
        return Reading(
            measurement=measurement,
            reason=reason,
            passes=passes,
            non_finite_passes=int(epoch.non_finite[row]),
            longest_non_finite_run=int(epoch.longest_run[row]),
            loss_scaled=loss_scaled,
            entering_square=float(epoch.entering[row]) if passes else 0.0,
            leaving_square=float(epoch.leaving[row]) if passes else 0.0,
            min_ratio=float(epoch.lowest[row]) if passes else 0.0,
            max_ratio=float(epoch.highest[row]) if passes else 0.0,
            last_ratio=float(epoch.last[row]) if passes else 0.0,
            histogram=tuple(epoch.histogram[row].tolist()) if passes else (),
            keeps_size=self.probe.keeps_size,
            output_input_rms=float(epoch.given[row] / epoch.taken[row]) ** 0.5 if epoch.taken[row] > 0 else None,
            parameter_liveness=signs.parameter_liveness,
            parameters_moved=signs.parameters_moved,
        )


def health_of(reading: Reading, verdict: Verdict) -> GradientHealth:
    """A reading and the verdict on it, as they are said."""
    return GradientHealth(
        grad_ratio=reading.grad_ratio,
        has_vanishing=verdict.has_vanishing,
        has_exploding=verdict.has_exploding,
        measurement=reading.measurement,
        measurement_reason=reading.reason,
        passes=reading.passes,
        non_finite_passes=reading.non_finite_passes,
        entering_norm=reading.entering_square**0.5,
        leaving_norm=reading.leaving_square**0.5,
        min_ratio=reading.min_ratio,
        max_ratio=reading.max_ratio,
        last_ratio=reading.last_ratio,
        ratio_histogram=reading.histogram,
        evidence=verdict.evidence,
        output_input_rms=reading.output_input_rms,
        parameter_liveness=reading.parameter_liveness,
        fault=verdict.fault,
    )


def seed_of(name: str, module: nn.Module, health: GradientHealth, epochs: int) -> SeedTelemetry:
    """The gradient flow of a module that is watched for so many epochs, as that of a seed."""
    return SeedTelemetry(
        slot_id=name,
        seed_id=name,
        blueprint_id=kind_of(module),
        stage=SeedStage.WATCHED,
        epochs_in_stage=epochs,
        alpha=1.0,
        seed_params=size_of(module),
        **asdict(health),
    )


def _measurement(epoch: EpochSums, row: int, probe: Probe, *, reached: bool) -> tuple[Measurement, str]:
    """The state of the measurement, and in words why it is not MEASURED and what to do about it.

    `reached` is whether a gradient has reached the parameters.
    """
    entering_fired, leaving_fired = bool(epoch.fired[row, ENTERING]), bool(epoch.fired[row, LEAVING])
    if probe.failure:
        return Measurement.PROBE_LOST, f"watch the module around it: the probe cannot measure it, {probe.failure}"
    if probe.traced.failed:
        return Measurement.PROBE_LOST, UNREADABLE
    if probe.traced.untapped:
        return Measurement.PROBE_LOST, UNTAPPED
    if epoch.passes[row]:
        return Measurement.MEASURED, TOO_LOW if probe.traced.tapped and probe.traced.detached else ""
    if epoch.non_finite[row]:
        return (
            Measurement.NON_FINITE,
            "no pass was finite (with norms below 1e19) on both sides: see where NaN was born",
        )
    if entering_fired and not epoch.entered[row]:
        return (
            Measurement.NO_GRADIENT,
            "what entered is 0, or below 1e-19: see whether the loss depends on it, and where gradient vanishes",
        )
    if (entering_fired or probe.entered_alone) and not leaving_fired:
        return Measurement.INPUT_DETACHED, _why_nothing_left(probe)
    if not (probe.ran or probe.compiled):
        return _why_it_did_not_run(probe, reached=reached)
    if not probe.pass_ended:
        return Measurement.UNMEASURED, "no backward pass has ended yet: call step() if nothing else ends one"
    if probe.opaque_output and not (probe.output_hooked or probe.compiled):
        return Measurement.PROBE_LOST, (
            f"no tensor is found in its output, a {probe.opaque_output}: have it return tensors, in tuples, lists, "
            "dicts or dataclasses, or watch a module inside of it"
        )
    if not (probe.output_hooked or probe.compiled):
        return Measurement.NO_GRADIENT, "its output needs no gradient: unfreeze a parameter in it or before it"
    if probe.output_is_view and (reached or leaving_fired):
        return Measurement.PROBE_LOST, CHANGED_VIEW
    if reached:
        return Measurement.PROBE_LOST, "gradients reached its parameters but not its probe: attach the probe again"
    if leaving_fired:
        return Measurement.NO_GRADIENT, "a gradient left it, but none entered: let the loss depend on its output"
    changed = f"; if it does, {CHANGED_VIEW}" if probe.output_is_view else ""
    return Measurement.NO_GRADIENT, f"no backward pass reached its output: let the loss depend on it{changed}"


def _why_nothing_left(probe: Probe) -> str:
    if probe.compiled and not probe.taps_input:
        return "it changes its input in place under torch.compile: set inplace=False, or watch the module around it"
    if probe.input_detached or (probe.traced.detached and not probe.traced.tapped):
        return "its input needs no gradient: feed it one that does to know what leaves"
    if probe.input_numberless:
        return (
            "it is given no numbers that could carry a gradient, as integers cannot, or in a type that is not looked "
            "into: give it tensors, in tuples, lists, dicts or dataclasses, or watch the module after it"
        )
    return "no gradient came to its input: let the output depend on it, and have autograd asked for it"


def _why_it_did_not_run(probe: Probe, *, reached: bool) -> tuple[Measurement, str]:
    if getattr(type(probe.module), "forward", None) is nn.Module.forward:
        return Measurement.UNMEASURED, "it only holds other modules, and has no forward: watch those"
    if probe.unheard:
        return Measurement.UNMEASURED, "it ran only between the passes that are measured: lower `every`"
    if probe.transformed:
        return (
            Measurement.UNMEASURED,
            "it ran only inside of torch.func or a trace, where nothing is measured: call it outside",
        )
    if reached:
        return (
            Measurement.PROBE_LOST,
            "gradients reached its parameters, but its hooks did not run: call it, and not its parts or another method "
            f"of it; if it is compiled, {ATTACH_FIRST}",
        )
    return (
        Measurement.UNMEASURED,
        f"it did not run forward with gradients: call it; if it did, and was compiled: {ATTACH_FIRST}",
    )
