"""The judging seam: the record's band, its ends, and what non-finite passes mean."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.health.policy import HealthPolicy, Reading
from sapflow.telemetry.records import record
from sapflow.telemetry.vocabulary import Measurement


def reading(ratio: float, **fields) -> Reading:
    return Reading(
        measurement=Measurement.MEASURED, passes=10, entering_square=1.0, leaving_square=ratio * ratio, **fields
    )


def flags(ratio: float, **fields) -> tuple[bool, bool]:
    verdict = HealthPolicy().judge(reading(ratio, **fields), None)
    return verdict.has_vanishing, verdict.has_exploding


VANISHING, HEALTHY, EXPLODING = (True, False), (False, False), (False, True)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, HEALTHY),
        (2.0, HEALTHY),
        (1.0, HEALTHY),
        (0.85, HEALTHY),
        # Within the tolerance of an fp32 measurement of the ends …
        (0.5 * (1 - 9e-7), HEALTHY),
        (2.0 * (1 + 9e-7), HEALTHY),
        # … and the next beyond it.
        (0.5 * (1 - 1.1e-6), VANISHING),
        (2.0 * (1 + 1.1e-6), EXPLODING),
        (0.499, VANISHING),
        (2.001, EXPLODING),
        (0.0, VANISHING),
        (1e30, EXPLODING),
    ],
)
def test_the_band_of_the_record(ratio, expected):
    assert flags(ratio) == expected


def test_the_band_is_the_record_s():
    policy = HealthPolicy()
    band = record("TELE-557").data.band
    assert (policy.lower, policy.upper) == (band.lower, band.upper) == (0.5, 2.0)


@given(st.just(0.0) | st.floats(min_value=1e-20, max_value=1e18))
def test_never_both_flags_and_the_evidence_names_the_ratio(ratio):
    verdict = HealthPolicy().judge(reading(ratio), None)
    assert not (verdict.has_vanishing and verdict.has_exploding)
    stated = float(verdict.evidence.split()[1])
    assert math.isclose(stated, ratio, rel_tol=0.01)


@pytest.mark.parametrize("state", [state for state in Measurement if state is not Measurement.MEASURED])
def test_what_was_not_measured_is_neither_healthy_nor_sick(state):
    verdict = HealthPolicy().judge(Reading(measurement=state, leaving_square=1.0), None)
    assert (verdict.has_vanishing, verdict.has_exploding, verdict.evidence) == (False, False, "")


def test_one_non_finite_pass_explodes_and_is_the_evidence():
    verdict = HealthPolicy().judge(reading(1.0, non_finite_passes=1, longest_non_finite_run=1), None)
    assert verdict.has_exploding
    assert "1 non-finite" in verdict.evidence


@pytest.mark.parametrize(("run", "exploding"), [(1, False), (2, False), (3, True)])
def test_a_grad_scaler_may_overflow_twice_in_a_row(run, exploding):
    assert flags(1.0, non_finite_passes=5, longest_non_finite_run=run, loss_scaled=True)[1] is exploding


def test_another_band_is_a_policy_of_its_own():
    verdict = HealthPolicy(lower=0.1, upper=0.2).judge(reading(0.5), None)
    assert verdict.has_exploding
    assert "> 0.2" in verdict.evidence
