"""Rules: what holds for some epochs is raised once, what fails for some is cleared once, nothing flaps."""

import pytest

from sapflow.health.rules import DEFAULT_RULES, Action, Condition, Rule, RuleBook
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage


def seed(ratio: float | None, **fields) -> SeedTelemetry:
    """A seed with this ratio, judged by the record's band; None is an epoch without a measurement."""
    if ratio is None:
        return SeedTelemetry(slot_id="mid", seed_id="mid-1", **fields)
    return SeedTelemetry(
        slot_id="mid", seed_id="mid-1", blueprint_id="conv", grad_ratio=ratio, measurement=Measurement.MEASURED,
        has_vanishing=ratio < 0.5, has_exploding=ratio > 2.0, evidence=f"ratio {ratio}", **fields,
    )  # fmt: skip


def history(rule: Rule, ratios) -> str:
    """R where the alert is raised, C where it is cleared, . elsewhere."""
    book, marks = RuleBook([rule]), ""
    for epoch, ratio in enumerate(ratios, start=1):
        outcome = book.evaluate(epoch, [seed(ratio)])
        marks += "R" if outcome.raised else "C" if outcome.cleared else "."
    return marks


@pytest.mark.parametrize(
    ("ratios", "marks"),
    [
        ([0.1, 0.1, 0.1, 0.1], ".R.."),
        ([0.1, 1.0, 0.1, 1.0, 0.1], "....."),
        ([0.1, 0.1, 1.0, 0.1, 1.0, 1.0], ".R...C"),
        ([0.1, 0.1, 1.0, 1.0, 0.1, 0.1], ".R.C.R"),
        # An epoch without a measurement neither raises nor clears.
        ([0.1, None, 0.1], "..R"),
        ([0.1, 0.1, None, None, None, 1.0, 1.0], ".R....C"),
        ([None, None, None], "..."),
        ([], ""),
    ],
)
def test_hysteresis(ratios, marks):
    assert history(Rule(name="v", when=Condition.VANISHING, for_epochs=2, clear_after=2), ratios) == marks


def test_an_alert_names_seed_value_start_and_evidence():
    book = RuleBook([Rule(name="sinking", when=Condition.RATIO_BELOW, level=0.2, for_epochs=3)])
    for epoch in (4, 5, 6):
        outcome = book.evaluate(epoch, [seed(0.1)])
    (alert,) = outcome.raised
    assert (alert.rule, alert.slot_id, alert.seed_id, alert.blueprint_id) == ("sinking", "mid", "mid-1", "conv")
    assert (alert.since_epoch, alert.value) == (4, 0.1)
    assert "ratio_below 0.2 for 3 epochs" in alert.evidence
    assert "ratio 0.1" in alert.evidence
    assert book.open_alerts == [alert]


def test_an_alert_holds_since_the_first_epoch_of_its_streak_also_when_some_were_not_measured():
    book = RuleBook([Rule(name="v", when=Condition.VANISHING, for_epochs=2)])
    for epoch, ratio in enumerate([1.0, 0.1, None, None, 0.1], start=1):
        outcome = book.evaluate(epoch, [seed(ratio)])
    assert [alert.since_epoch for alert in outcome.raised] == [2]


def test_nothing_is_asked_for_a_fossil():
    book = RuleBook([Rule(name="v", when=Condition.VANISHING, for_epochs=1, actions=(Action.PRUNE,))])
    (alert,) = book.evaluate(1, [seed(0.1, stage=SeedStage.FOSSILIZED)]).raised
    assert alert.actions == ()


def test_a_seed_that_is_gone_is_forgotten_and_its_alerts_come_back():
    book = RuleBook([Rule(name="v", when=Condition.VANISHING, for_epochs=1)])
    raised = book.evaluate(1, [seed(0.1)]).raised
    assert book.forget("mid-1") == raised
    assert book.open_alerts == []
    assert book.forget("mid-1") == []


def prunes(ratios) -> bool:
    book = RuleBook(DEFAULT_RULES)
    for epoch, ratio in enumerate(ratios, start=1):
        book.evaluate(epoch, [seed(ratio)])
    return any(Action.PRUNE in alert.actions for alert in book.open_alerts)


def test_a_flag_alone_is_no_verdict_of_death():
    # A third of what the least of the healthy seeds in docs/prune-levels.md had, and three times the most.
    assert not prunes([0.1] * 50)
    assert not prunes([6.0] * 50)
    assert not prunes([0.001, 0.001])
    assert prunes([0.001] * 3)
    assert prunes([100.0] * 3)


def test_overflows_that_the_policy_takes_for_a_grad_scaler_s_business_raise_nothing():
    assert RuleBook(DEFAULT_RULES).evaluate(1, [seed(1.0, non_finite_passes=1)]).raised == []


def test_non_finite_gradients_and_masked_values_prune_at_once():
    for ratio, fields in ((3.0, {"non_finite_passes": 1}), (1.0, {"masked_values": 2})):
        book = RuleBook(DEFAULT_RULES)
        (alert,) = book.evaluate(1, [seed(ratio, **fields)]).raised
        assert alert.actions == ("prune",)
