"""What is done about alerts: every action on real seeds, once, in step, as an event; a failing one breaks nothing."""

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import journals
from journals import PATIENCE
from sapflow import SeedTraining, grow
from sapflow.control.controllers import ScheduledController
from sapflow.control.life_cycle import GrowthPlan
from sapflow.errors import InputError
from sapflow.growth.blueprints import blueprint, catalogue
from sapflow.health.rules import Condition, Rule
from sapflow.telemetry.events import ActionTaken, AlertCleared, AlertRaised, GradientSampled, Payload, SeedPruned
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType, SeedStage
from test_grow import Script, batches
from test_notify import served

S = SeedStage


def orthogonal(gain):
    def build(shape):
        layer = nn.Linear(*shape, *shape, bias=False)
        nn.init.orthogonal_(layer.weight, gain=gain)
        return layer.requires_grad_(False)

    return build


class Run:
    """A model in which a seed of known gain grows, under rules; what was said is read from its journal."""

    def __init__(self, tmp_path, rules, *, gain=5.0, stages=None, epochs=4, steps=10, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        self.growth = grow(
            model, {"1": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", rules=rules,
            controller=Script(orthogonal(gain), **(stages or {})), training=SeedTraining(blending_steps=40), **options,
        )  # fmt: skip
        self.slot = self.growth.actions.slots["1"]
        self.stages, self.losses = [], []
        for _ in range(epochs):
            for x, y in batches(steps):
                optimizer.zero_grad()
                loss = self.growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
                loss.backward()
                optimizer.step()
                self.losses.append(loss.item())
            self.before_decision(self.growth.epoch())
        self.growth.close()
        with Source(self.growth.run_dir) as source:
            self.events = source.read()

    def before_decision(self, said):
        self.stages.append(said.seeds[0])

    def of(self, kind: type[Payload]) -> list:
        return [event.payload for event in self.events if isinstance(event.payload, kind)]


def above(level, *actions, **fields):
    fields = {"for_epochs": 1} | fields if "for_passes" not in fields else fields
    return Rule(name="loud", when=Condition.RATIO_ABOVE, level=level, actions=actions, **fields)


def test_prune(tmp_path):
    run = Run(tmp_path, [above(2.0, "prune", for_epochs=2)])
    (pruned,), (taken,) = run.of(SeedPruned), run.of(ActionTaken)
    assert (pruned.epoch, pruned.rule) == (2, "loud")
    assert (taken.epoch, taken.action, taken.done) == (2, "prune", True)
    assert taken.alert.value == pytest.approx(5.0, rel=1e-5)
    assert run.slot.state.stage is S.PRUNED


def test_hold_stops_the_blending_and_lets_go_when_all_is_well_again(tmp_path):
    class Healed(Run):
        def before_decision(self, said):
            super().before_decision(said)
            if said.epoch == 3:
                with torch.no_grad():
                    self.slot.seed.weight.div_(5.0)

    run = Healed(
        tmp_path, [above(2.0, "hold", for_epochs=2, clear_after=1)], stages={"after_1": [S.BLENDING]}, epochs=6
    )
    alphas = [seed.alpha for seed in run.stages]
    assert [seed.paused for seed in run.stages] == [False, False, True, False, False, False]
    assert alphas[1] == alphas[2] == alphas[3] < alphas[4] < alphas[5]
    assert [(taken.epoch, taken.action, taken.done) for taken in run.of(ActionTaken)] == [
        (2, "hold", True), (4, "resume", True)
    ]  # fmt: skip


def test_what_a_program_holds_no_rule_lets_go(tmp_path):
    class HealedAndHeld(Run):
        def before_decision(self, said):
            super().before_decision(said)
            if said.epoch == 2:
                with torch.no_grad():
                    self.slot.seed.weight.div_(5.0)
                self.growth.actions.hold(self.slot)

    run = HealedAndHeld(tmp_path, [above(2.0, "hold", clear_after=1)])
    assert [alert.epoch for alert in run.of(AlertCleared)] == [3]
    assert [seed.paused for seed in run.stages] == [False, True, True, True]
    assert run.slot.state.paused


def test_what_a_program_holds_no_rule_lets_go_when_growth_is_resumed_either(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
    blueprint("loud", dimensions=1, calibrated=False)(orthogonal(5.0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    rules = [above(2.0, "hold", clear_after=1)]

    def begun():
        return grow(
            model, {"1": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", rules=rules,
            controller=ScheduledController(GrowthPlan(first_germination=0), 0, plants={"1": "loud"}),
        )  # fmt: skip

    def epoch(growth):
        for x, y in batches(5):
            optimizer.zero_grad()
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        growth.epoch()

    with begun() as growth:
        epoch(growth)
        growth.actions.hold(growth.actions.slots["1"])
        state = growth.state_dict()
    with begun() as growth:
        growth.load_state_dict(state)
        slot = growth.actions.slots["1"]
        with torch.no_grad():
            slot.seed.weight.div_(5.0)
        epoch(growth)
        assert slot.state.paused
    with Source(growth.run_dir) as source:
        assert [event.payload.epoch for event in source.events([EventType.ALERT_CLEARED], 0)] == [2]


def test_what_nobody_validated_prunes_no_seed_for_its_accuracy(tmp_path):
    rule = Rule(name="useless", when=Condition.ACCURACY_BELOW, level=0.5, for_epochs=1, actions=("prune",))
    run = Run(tmp_path, [rule], stages={"after_1": [S.BLENDING]})
    assert run.of(AlertRaised) == []
    assert run.slot.state.stage is S.BLENDING


def test_slow_down_lowers_the_seed_s_learning_rate_alone(tmp_path):
    run = Run(tmp_path, [above(2.0, "slow_down:0.25")])
    assert [group["lr"] for group in run.slot.optimizer.param_groups] == [pytest.approx(0.25e-3)]
    (taken,) = run.of(ActionTaken)
    assert "0.00025" in taken.outcome


def test_stop_gives_its_reason(tmp_path):
    run = Run(tmp_path, [above(2.0, "stop")])
    assert run.growth.stop_reason.startswith("loud: ratio_above 2")


@pytest.mark.parametrize("stops", [True, False])
def test_when_the_training_is_to_stop_nothing_is_sown_any_more(stops):
    rules = [Rule(name="enough", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1, actions=("stop",))] * stops
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = ScheduledController(GrowthPlan(first_germination=0, germination_interval=1), 0)
    with grow(
        model, {"0": "after", "1": "after"}, optimizer=optimizer, rules=rules, controller=controller
    ) as growth:  # fmt: skip
        for x, y in batches(2):
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        growth.epoch()
        assert bool(growth.stop_reason) is stops
        assert [life.slot_id for life in growth.actions.lives] == ["0"] + ["1"] * (not stops)


def test_a_function_is_called_with_the_alert_and_may_fail(tmp_path):
    called = []

    def fails(alert):
        called.append(alert)
        raise RuntimeError("no room")

    run = Run(tmp_path, [above(2.0, "call:fails", "prune")], functions={"fails": fails})
    failed, pruned = run.of(ActionTaken)
    assert (failed.action, failed.done, failed.outcome) == ("call:fails", False, "RuntimeError: no room")
    assert (pruned.action, pruned.done) == ("prune", True)
    assert [alert.slot_id for alert in called] == ["1"]
    assert len(run.losses) == 40


def test_functions_of_installed_packages_are_called_unless_the_program_has_one_of_that_name(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(journals, "ring", lambda alert: called.append("theirs"), raising=False)
    points = [EntryPoint(name, "journals:ring", "sapflow.functions") for name in ("ring", "knock")]
    monkeypatch.setattr("sapflow.control.functions.entry_points", lambda **_: points)
    rule = above(2.0, "call:ring", "call:knock")
    run = Run(tmp_path, [rule], functions={"knock": lambda alert: called.append("ours")})
    assert [taken.done for taken in run.of(ActionTaken)] == [True, True]
    assert called == ["theirs", "ours"]


def test_a_function_that_nobody_registered_is_refused(tmp_path):
    with pytest.raises(InputError, match="no function is registered as 'nobody'"):
        Run(tmp_path, [above(2.0, "call:nobody")])


def test_a_rule_file_tells_people_and_what_came_of_it_is_said_aside(tmp_path):
    with served() as endpoint:
        (tmp_path / "rules.toml").write_text(
            f"""
            [notify]
            urls = ["{endpoint.url}"]
            [[rules]]
            name = "loud"
            when = "ratio_above"
            level = 2.0
            for_epochs = 2
            actions = ["notify", "prune"]
            """
        )
        run = Run(tmp_path, tmp_path / "rules.toml")
        _, body = endpoint.got.get(timeout=PATIENCE)
    assert body["title"] == "Sapflow warning: loud"
    assert {(taken.action, taken.done) for taken in run.of(ActionTaken)} == {("notify", True), ("prune", True)}
    (aside,) = [event for event in run.events if isinstance(event.payload, ActionTaken) and event.sequence is None]
    assert aside.payload.action == "notify"  # the sequence counts what the run determines


def test_what_cannot_be_done_is_said(tmp_path):
    run = Run(tmp_path, [above(2.0, "notify")])
    (taken,) = run.of(ActionTaken)
    assert not taken.done
    assert taken.outcome.startswith(("KeyError", "LookupError"))


def test_what_is_fossilised_stays(tmp_path):
    stages = {"after_1": [S.BLENDING], "after_5": [S.HOLDING], "after_6": [S.FOSSILIZED]}
    run = Run(tmp_path, [above(2.0, "prune", "slow_down:0.5", for_epochs=8)], stages=stages, epochs=9, gain=3.0)
    assert run.slot.state.stage is S.FOSSILIZED
    (raised,) = run.of(AlertRaised)
    assert raised.alert.actions == ()
    assert run.of(ActionTaken) == []


class TestDecisionsWithinAnEpoch:
    def test_come_at_counted_steps_and_judge_the_passes_since_the_last(self, tmp_path):
        rule = above(2.0, "prune", for_passes=8)
        run = Run(tmp_path, [rule], epochs=2, decide_every=4)
        (pruned,) = run.of(SeedPruned)
        assert pruned.epoch == 1
        said = run.stages[0]
        assert said.stage is S.PRUNED
        assert "for 8 passes" in pruned.evidence
        assert run.growth._grower.trainer.shadows == 8  # pruned after the eighth step of the first epoch
        assert [index for sample in run.of(GradientSampled) for index in sample.pass_index] == list(range(8))

    def test_come_as_often_as_suits_the_rules_where_nobody_says(self, tmp_path):
        run = Run(tmp_path, [above(2.0, "prune", for_passes=4)], epochs=1)
        assert run.of(SeedPruned)
        assert run.growth._grower.trainer.shadows == 4

    def test_come_at_the_end_of_an_epoch_too_for_the_passes_that_are_left(self, tmp_path):
        run = Run(tmp_path, [above(2.0, "prune", for_passes=8)], epochs=1, decide_every=1000)
        (pruned,) = run.of(SeedPruned)
        assert pruned.epoch == 1
        assert run.growth._grower.trainer.shadows == len(run.losses)
        passes = [index for sample in run.of(GradientSampled) for index in sample.pass_index]
        assert passes == list(range(len(run.losses)))

    def test_are_the_same_in_every_run(self, tmp_path):
        rules = [
            above(4.0, "slow_down:0.9", for_passes=6, clear_after=6),
            Rule(name="any", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1),
        ]
        runs = [Run(tmp_path / str(number), rules, decide_every=3) for number in range(2)]
        said = [[(event.sequence, event.payload) for event in run.events if event.sequence is not None] for run in runs]
        assert [payload for _, payload in said[0][1:]] == [payload for _, payload in said[1][1:]]

    def test_clear_when_the_newest_passes_are_well(self, tmp_path):
        class Healed(Run):
            def before_decision(self, said):
                super().before_decision(said)
                with torch.no_grad():
                    self.slot.seed.weight.div_(5.0 if said.epoch == 1 else 1.0)

        run = Healed(tmp_path, [above(2.0, for_passes=4, clear_after=4)], epochs=2, decide_every=2)
        (cleared,) = run.of(AlertCleared)
        assert cleared.epoch == 2

    def test_leave_the_epoch_s_own_account_as_it_is(self, tmp_path):
        plain = Run(tmp_path / "plain", [above(9.0)])
        windowed = Run(tmp_path / "windowed", [above(9.0, for_passes=5)], decide_every=3)
        assert plain.stages == windowed.stages
        assert plain.losses == windowed.losses
