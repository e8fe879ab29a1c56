"""What one epoch's sums say of one module: the measurement's state with its reason, and the torch-free reading."""

from sapflow.gradients.epoch_sums import EpochSums
from sapflow.gradients.pass_sums import ENTERING, LEAVING
from sapflow.gradients.probe import Probe
from sapflow.gradients.vitals import VitalSigns
from sapflow.health.policy import Reading
from sapflow.telemetry.vocabulary import Measurement


def reading_of(epoch: EpochSums, probe: Probe, signs: VitalSigns, *, loss_scaled: bool) -> Reading:
    """The reading of the probe's module over the passes that `epoch` holds; the fields are described in `Reading`."""
    row = probe.row
    measurement, reason = _measurement(epoch, probe)
    passes = int(epoch.passes[row])
    return Reading(
        measurement=measurement,
        reason=reason,
        passes=passes,
        non_finite_passes=int(epoch.non_finite[row]),
        longest_non_finite_run=int(epoch.longest_run[row]),
        loss_scaled=loss_scaled,
        entering_square=float(epoch.entering[row]),
        leaving_square=float(epoch.leaving[row]),
        min_ratio=float(epoch.lowest[row]) if passes else 0.0,
        max_ratio=float(epoch.highest[row]),
        last_ratio=float(epoch.last[row]),
        histogram=tuple(epoch.histogram[row].tolist()) if passes else (),
        output_input_rms=signs.output_input_rms,
        parameter_liveness=signs.parameter_liveness,
        parameters_moved=signs.parameters_moved,
    )


def _measurement(epoch: EpochSums, probe: Probe) -> tuple[Measurement, str]:
    """The state of the measurement, and in words why it is not MEASURED and what to do about it."""
    row = probe.row
    entering_fired, leaving_fired = bool(epoch.fired[row, ENTERING]), bool(epoch.fired[row, LEAVING])
    if epoch.passes[row]:
        return Measurement.MEASURED, ""
    if epoch.non_finite[row]:
        return Measurement.NON_FINITE, "every pass had NaN or infinite gradients"
    if probe.failure:
        return Measurement.PROBE_LOST, f"the probe cannot measure this module: {probe.failure}"
    if entering_fired and not epoch.entered[row]:
        return Measurement.NO_GRADIENT, "only zeros entered: the loss does not depend on its output"
    if entering_fired and not leaving_fired:
        if probe.detached_forwards:
            return Measurement.INPUT_DETACHED, "its input needs no gradient: feed it one that does to know what leaves"
        return (
            Measurement.INPUT_DETACHED,
            "no gradient came to its input: it is not asked for, or the output does not depend on it",
        )
    if not probe.forwards:
        return Measurement.UNMEASURED, "it did not run forward with gradients enabled"
    if not probe.passes_ended:
        return Measurement.UNMEASURED, "no backward pass has ended yet"
    if not probe.hooked_outputs:
        return Measurement.NO_GRADIENT, "its output needs no gradient: nothing in it or before it is trained"
    if probe.parameters_reached:
        return Measurement.PROBE_LOST, "gradients reached its parameters but not its probe: attach the probe again"
    if leaving_fired:
        return Measurement.NO_GRADIENT, "a gradient left it, but none entered at its output"
    return Measurement.NO_GRADIENT, "it ran forward, and no backward pass reached its output"
