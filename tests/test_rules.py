"""Rules: what holds for some epochs is raised once, what fails for some is cleared once, nothing flaps."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import InputError
from sapflow.health.rules import DEFAULT_RULES, Action, ActionKind, Condition, Rule, RuleBook
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage


def seed(ratio: float | None, **fields) -> SeedTelemetry:
    """A seed with this ratio, judged by the record's band; None is an epoch without a measurement."""
    if ratio is None:
        return SeedTelemetry(slot_id="mid", seed_id="mid-1", **fields)
    known = {
        "slot_id": "mid", "seed_id": "mid-1", "blueprint_id": "conv", "grad_ratio": ratio,
        "measurement": Measurement.MEASURED, "has_vanishing": ratio < 0.5, "has_exploding": ratio > 2.0,
        "evidence": f"ratio {ratio}",
    }  # fmt: skip
    return SeedTelemetry(**{**known, **fields})


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


def test_an_overflow_beside_a_gain_above_the_band_is_no_verdict_of_death():
    exploding = seed(2.5, non_finite_passes=1, fault=Fault.EXPLODING)
    assert RuleBook(DEFAULT_RULES).evaluate(1, [exploding]).raised == []


def test_non_finite_gradients_and_masked_values_prune_at_once():
    for ratio, fields in ((3.0, {"non_finite_passes": 1}), (1.0, {"masked_values": 2})):
        book = RuleBook(DEFAULT_RULES)
        (alert,) = book.evaluate(1, [seed(ratio, **fields)]).raised
        assert alert.actions == ("prune",)


# A rule, ratios, and what comes of them; the times of the second half are in passes, ten a window.
HYSTERESIS = [
    ("clear level", {"when": "ratio_below", "level": 0.1, "clear_level": 0.3, "for_epochs": 2, "clear_after": 2},
     [0.05, 0.05, 0.2, 0.2, 0.3, 0.3, 0.2, 0.05, 0.05], ".R...C..R"),
    ("between breaks both streaks", {"when": "ratio_below", "level": 0.1, "clear_level": 0.3, "for_epochs": 2},
     [0.05, 0.2, 0.05, 0.05, 0.4, 0.2, 0.4, 0.4], "...R...C"),
    ("clear level above", {"when": "ratio_above", "level": 9, "clear_level": 3, "for_epochs": 1, "clear_after": 1},
     [9.0, 9.1, 5.0, 3.0, 9.1], ".R.CR"),
    ("cool-down", {"when": "vanishing", "for_epochs": 1, "clear_after": 1, "cool_down": 3},
     [0.1, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1], "RC...R."),
    ("a streak may begin while it cools", {"when": "vanishing", "for_epochs": 2, "clear_after": 1, "cool_down": 1},
     [0.1, 0.1, 1.0, 0.1, 0.1], ".RC.R"),
    ("cooling goes on unmeasured", {"when": "vanishing", "for_epochs": 1, "clear_after": 1, "cool_down": 2},
     [0.1, 1.0, None, None, 0.1], "RC..R"),
    ("unmeasured", {"when": "unmeasured", "for_epochs": 2, "clear_after": 1}, [1.0, None, None, None, 1.0], "..R.C"),
    ("passes", {"when": "vanishing", "for_passes": 25, "clear_after": 15}, [0.1] * 3 + [1.0] * 2, "..R.C"),
    ("passes clear after as many", {"when": "vanishing", "for_passes": 20}, [0.1, 0.1, 1.0, 0.1, 1.0, 1.0], ".R...C"),
    ("passes cool", {"when": "vanishing", "for_passes": 10, "clear_after": 10, "cool_down": 15},
     [0.1, 1.0, 0.1, 0.1, 0.1], "RC..R"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "ratios", "marks"), HYSTERESIS, ids=[case[0] for case in HYSTERESIS])
def test_levels_times_and_units(name, fields, ratios, marks):
    rule = Rule(name=name, **{**fields, "when": Condition(fields["when"])})
    book, seen = RuleBook([rule]), ""
    assert book.needs_windows is rule.by_passes
    for epoch, ratio in enumerate(ratios, start=1):
        seeds = [seed(ratio, stage=SeedStage.TRAINING)]
        window, at_end = book.evaluate_window(1, 10, seeds), book.evaluate(epoch, seeds)
        idle = at_end if rule.by_passes else window
        assert not idle.raised
        assert not idle.cleared
        outcome = window if rule.by_passes else at_end
        seen += "R" if outcome.raised else "C" if outcome.cleared else "."
    assert seen == marks


NON_FINITE = {"measurement": Measurement.NON_FINITE}
DETACHED = {"measurement": Measurement.INPUT_DETACHED}
BLENDING = {"stage": SeedStage.BLENDING}
# The condition with its level, what is told of a seed, and whether it holds (None: nobody knows).
STATES = [
    ("dead", None, {"entering_norm": 1.0, "leaving_norm": 0.0}, True),
    ("dead", None, {"entering_norm": 1.0, "leaving_norm": 1e-30}, False),
    ("dead", None, {"entering_norm": 0.0, "leaving_norm": 0.0}, False),
    ("dead", None, {"entering_norm": 1.0, "leaving_norm": 1.0, "parameter_liveness": 0.0}, True),
    ("dead", None, {"entering_norm": 1.0, "leaving_norm": 1.0, "parameter_liveness": 0.1}, False),
    ("dead", None, {"entering_norm": 1.0, "leaving_norm": 0.0} | DETACHED, None),
    ("dead", None, {"parameter_liveness": 0.0} | DETACHED, True),
    ("masked", None, {"masked_values": 1} | DETACHED, True),
    ("masked", None, DETACHED, False),
    ("non_finite", None, {"masked_values": 1} | DETACHED, True),
    ("non_finite", None, {"non_finite_passes": 1, "has_exploding": True} | NON_FINITE, True),
    ("non_finite", None, {"non_finite_passes": 3, "has_exploding": True, "fault": Fault.NON_FINITE} | NON_FINITE, True),
    ("non_finite", None, {"non_finite_passes": 1, "has_exploding": True, "fault": Fault.DIVERGED}, False),
    ("non_finite", None, {"non_finite_passes": 1} | NON_FINITE, None),  # the policy has taken it for overflow
    ("non_finite", None, {"non_finite_passes": 1}, False),
    ("non_finite", None, {}, False),
    ("non_finite", None, DETACHED, None),
    *(("unmeasured", None, {"measurement": m} | BLENDING, m is not Measurement.MEASURED) for m in Measurement),
    ("unmeasured", None, {"stage": SeedStage.GERMINATED} | DETACHED, None),
    ("ratio_below", 1.0, {}, False),
    ("ratio_above", 1.0, {}, False),
    ("ratio_below", 1.1, {}, True),
    ("ratio_above", 0.9, {}, True),
    ("ratio_above", 0.9, DETACHED, None),
    ("peak_above", 50.0, {"max_ratio": 51.0}, True),
    ("peak_above", 50.0, {"max_ratio": 50.0}, False),
    ("peak_above", 50.0, {"max_ratio": 51.0} | DETACHED, None),
    ("liveness_below", 0.5, {"parameter_liveness": 0.4}, True),
    ("liveness_below", 0.5, {"parameter_liveness": 0.5}, False),
    ("liveness_below", 0.5, {}, None),
    ("accuracy_below", -1.0, {"accuracy_delta": -1.5} | BLENDING, True),
    ("accuracy_below", -1.0, {"accuracy_delta": 0.0} | BLENDING, False),
    ("accuracy_below", 1.0, {"stage": SeedStage.TRAINING}, None),
    ("accuracy_below", 1.0, {"stage": SeedStage.WATCHED}, None),
]


@pytest.mark.parametrize(("when", "level", "fields", "holds"), STATES)
def test_what_a_condition_means(when, level, fields, holds):
    rule = Rule(name="r", when=Condition(when), level=level, for_epochs=1, clear_after=1)
    assert bool(RuleBook([rule]).evaluate(1, [seed(1.0, **fields)]).raised) is (holds is True)
    # Over is what clears an alert that stands; what is not known does not.
    book = RuleBook([rule])
    book.load_state_dict({"streaks": [[["r", "mid-1"], {"alert": raised_alert("r")}]]})
    assert bool(book.evaluate(1, [seed(1.0, **fields)]).cleared) is (holds is False)


def raised_alert(rule: str) -> dict:
    book = RuleBook([Rule(name=rule, when=Condition.VANISHING, for_epochs=1)])
    return msgspec.to_builtins(book.evaluate(1, [seed(0.1)]).raised[0])


@pytest.mark.parametrize(
    ("scope", "concerned"),
    [
        ({"slots": ("m*",)}, True),
        ({"slots": ("late", "mi?")}, True),
        ({"slots": ("M*",)}, False),
        ({"blueprints": ("conv",)}, True),
        ({"blueprints": ("sig*",)}, False),
        ({"slots": ("mid",), "blueprints": ("sig*",)}, False),
        ({"stages": (SeedStage.BLENDING,)}, True),
        ({"stages": (SeedStage.TRAINING, SeedStage.HOLDING)}, False),
    ],
)
def test_a_rule_keeps_to_its_scope(scope, concerned):
    book = RuleBook([Rule(name="r", when=Condition.VANISHING, for_epochs=1, **scope)])
    assert bool(book.evaluate(1, [seed(0.1, **BLENDING)]).raised) is concerned


def test_an_alert_ends_when_its_seed_leaves_the_stages_of_the_rule():
    book = RuleBook([Rule(name="r", when=Condition.VANISHING, for_epochs=1, stages=(SeedStage.TRAINING,))])
    (alert,) = book.evaluate(1, [seed(0.1, stage=SeedStage.TRAINING)]).raised
    assert book.evaluate(2, [seed(0.1, **BLENDING)]).cleared == []
    assert book.evaluate(3, [seed(0.1, **BLENDING)]).cleared == [alert]


def test_actions_are_words_with_a_kind_and_an_argument():
    assert (Action("slow_down").kind, Action("slow_down").argument) == (ActionKind.SLOW_DOWN, "0.1")
    assert Action("slow_down:0.50") == "slow_down:0.5"
    assert (Action("call:mail.me").kind, Action("call:mail.me").argument) == (ActionKind.CALL, "mail.me")
    assert [Action(kind).kind for kind in ("prune", "hold", "stop", "notify")] == ["prune", "hold", "stop", "notify"]


@pytest.mark.parametrize(
    "text",
    ["", "prun", "Prune", "prune:now", "slow_down:", "slow_down:1", "slow_down:0", "slow_down:-1", "slow_down:nan",
     "slow_down:fast", "call", "call:", "call:os.system('x')", "call:a b", "call:" + "x" * 81, "stop:", "hold\n"],
)  # fmt: skip
def test_there_are_no_other_actions(text):
    with pytest.raises(InputError):
        Action(text)


def test_a_fossil_and_a_watched_module_are_out_of_reach_but_people_are_told():
    actions = tuple(map(Action, ("prune", "hold", "slow_down", "stop", "notify", "call:mine")))
    rule = Rule(name="r", when=Condition.VANISHING, for_epochs=1, actions=actions)
    for stage in (SeedStage.FOSSILIZED, SeedStage.WATCHED):
        (alert,) = RuleBook([rule]).evaluate(1, [seed(0.1, stage=stage)]).raised
        assert alert.actions == ("stop", "notify", "call:mine")
    (alert,) = RuleBook([rule]).evaluate(1, [seed(0.1, **BLENDING)]).raised
    assert alert.actions == ("prune", "hold", "slow_down:0.1", "stop", "notify", "call:mine")
    assert {type(action) for action in alert.actions} == {str}


def test_an_alert_tells_the_value_that_its_level_is_compared_with():
    rule = Rule(name="r", when=Condition.ACCURACY_BELOW, level=-1.0, for_epochs=1)
    (alert,) = RuleBook([rule]).evaluate(1, [seed(1.0, accuracy_delta=-2.5, **BLENDING)]).raised
    assert alert.value == -2.5
    assert "accuracy_below -1 for 1 epoch; what the seed adds to the accuracy is -2.5" in alert.evidence


def test_what_a_seed_adds_is_not_known_of_an_epoch_that_nobody_validated():
    book = RuleBook([Rule(name="r", when=Condition.ACCURACY_BELOW, level=1.0, for_epochs=1, clear_after=1)])
    assert book.evaluate(1, [seed(1.0, accuracy_delta=0.0, **BLENDING)], validated=False).raised == []
    assert len(book.evaluate(2, [seed(1.0, accuracy_delta=0.5, **BLENDING)]).raised) == 1
    assert book.evaluate(3, [seed(1.0, accuracy_delta=2.0, **BLENDING)], validated=False).cleared == []
    assert len(book.evaluate(4, [seed(1.0, accuracy_delta=2.0, **BLENDING)]).cleared) == 1


def test_two_rules_cannot_have_one_name():
    with pytest.raises(InputError, match="'r' stands there more than once"):
        RuleBook([Rule(name="r", when=Condition.DEAD, for_epochs=1)] * 2)


@st.composite
def rules(draw, passes: bool) -> Rule:
    when = draw(st.sampled_from([Condition.VANISHING, Condition.RATIO_BELOW, Condition.UNMEASURED]))
    levels = {"level": 0.5, "clear_level": draw(st.sampled_from([None, 0.5, 0.8]))}
    return Rule(
        name="r", when=when, **({"for_passes": draw(st.integers(1, 30))} if passes else {"for_epochs": draw(TIMES)}),
        clear_after=draw(st.integers(1, 30) if passes else TIMES), cool_down=draw(st.integers(0, 30 if passes else 4)),
        **(levels if when is Condition.RATIO_BELOW else {}),
    )  # fmt: skip


TIMES = st.integers(1, 4)
BOTH = st.booleans().flatmap(rules)
# What is seen of a seed, and in how many passes where the rule counts them.
LIFE = st.lists(st.tuples(st.sampled_from([0.1, 0.6, 1.0, None]), st.integers(1, 12)), max_size=40)


def look(book: RuleBook, rule: Rule, step: int, ratio: float | None, passes: int):
    seeds = [seed(ratio, stage=SeedStage.TRAINING)]
    return book.evaluate_window(step, passes, seeds) if rule.by_passes else book.evaluate(step, seeds)


@given(rule=BOTH, life=LIFE)
def test_nothing_flaps(rule, life):
    """Raised, it stood for so long as it must to clear; cleared, it was not raised again before it cooled and held."""
    book, changed, up = RuleBook([rule]), None, False
    lasted = 0  # in the rule's unit, since the last change
    for step, (ratio, passes) in enumerate(life, start=1):
        outcome = look(book, rule, step, ratio, passes)
        lasted += passes if rule.by_passes else 1
        assert len(outcome.raised) + len(outcome.cleared) <= 1
        if outcome.raised:
            assert not up
            assert lasted >= rule.raised_after
            assert changed is None or lasted > rule.cool_down
        if outcome.cleared:
            assert up
            assert lasted >= rule.cleared_after
        if outcome.raised or outcome.cleared:
            up, changed, lasted = not up, step, 0
        assert bool(book.open_alerts) is up


@given(rule=BOTH, life=LIFE, data=st.data())
def test_a_book_that_is_saved_and_loaded_judges_as_if_it_had_never_stopped(rule, life, data):
    stop = data.draw(st.integers(0, len(life)))
    book, resumed = RuleBook([rule]), RuleBook([rule])
    for step, (ratio, passes) in enumerate(life):
        if step == stop:
            resumed.load_state_dict(msgspec.msgpack.decode(msgspec.msgpack.encode(book.state_dict())))
        outcome = look(book, rule, step, ratio, passes)
        if step >= stop:
            assert look(resumed, rule, step, ratio, passes) == outcome
            assert resumed.open_alerts == book.open_alerts
