"""The controller at its decision points: what is pruned, what moves on, what rests, what germinates, and when."""

import pytest
import torch
from torch import nn

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.control.controllers import ScheduledController
from sapflow.control.life_cycle import GrowthPlan
from sapflow.control.responses import Responses
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.host import slots_of
from sapflow.growth.slot import SeedSlot
from sapflow.health.rules import Action, Condition, Rule, RuleBook
from sapflow.telemetry.events import (
    AlertCleared,
    GradientHealth,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
)
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Measurement, SeedStage

S = SeedStage
PLAN = GrowthPlan(
    first_germination=1, germination_interval=2, training_epochs=2, longest_training=5, blending_epochs=2,
    holding_epochs=2, embargo_epochs=3,
)  # fmt: skip
RULES = (
    Rule(name="low", when=Condition.RATIO_BELOW, level=0.02, for_epochs=1, actions=(Action.PRUNE,)),
    Rule(name="broken", when=Condition.NON_FINITE, for_epochs=1, actions=(Action.PRUNE,)),
    Rule(name="flagged", when=Condition.VANISHING, for_epochs=1),
)


def flow(ratio: float, **fields) -> GradientHealth:
    return GradientHealth(
        measurement=Measurement.MEASURED, grad_ratio=ratio, passes=5, has_vanishing=ratio < 0.5, **fields
    )  # fmt: skip


class Garden:
    """One host with real slots and real seeds; only what the monitor would have measured is scripted."""

    def __init__(self, epochs: int = 100, slots: int = 1, plants: dict[str, str] | None = None):
        torch.manual_seed(0)
        layers = [layer for index in range(slots) for layer in (nn.Linear(6, 6), SeedSlot(f"s{index}", (6,)))]
        host = nn.Sequential(*layers)
        self.events: list = []
        self.monitor = GradientMonitor()
        self.rules = RuleBook(RULES)
        self.actions = SlotActions(
            host, slots_of(host), self.monitor, self.rules, EventStream(self, "run", 0),
            make_optimizer=lambda seed: torch.optim.SGD(seed.parameters(), lr=0.1), random_name="test",
        )  # fmt: skip
        self.responses = Responses(self.actions, self.actions.stream)
        sample = torch.randn(8, 6)
        self.actions.closure = lambda net: net(sample).square().mean()
        self.controller = ScheduledController(PLAN, 0, plants=plants)
        self.epoch, self.epochs = 0, epochs
        self.decide()

    def emit(self, event) -> None:
        self.events.append(event.payload)

    def of(self, kind) -> list:
        return [payload for payload in self.events if isinstance(payload, kind)]

    def run(self, epochs: int, health: GradientHealth = flow(1.0), delta: float = 0.0) -> list[SeedStage]:  # noqa: B008
        """Let epochs pass in which every living seed has this flow; the stages of s0 after each decision."""
        stages = []
        for _ in range(epochs):
            self.epoch += 1
            for slot_id, slot in self.actions.slots.items():
                slot.state.epochs_in_stage += 1
                if slot.state.stage is S.BLENDING:
                    slot.blend(slot.state.epochs_in_stage / PLAN.blending_epochs)
                if slot.alive:
                    self.actions.observe(slot_id, health)
                    slot.state.accuracy_delta = delta
            living = [s.state.telemetry() for s in self.actions.slots.values() if s.alive]
            raised = self.responses.say(self.epoch, self.rules.evaluate(self.epoch, living))
            self.responses.carry_out(self.epoch, raised)
            self.decide()
            stages.append(self.slot.state.stage)
        return stages

    def decide(self) -> None:
        self.controller.decide(EpochOutcome(epoch=self.epoch, epochs=self.epochs), self.actions)

    @property
    def slot(self) -> SeedSlot:
        return self.actions.slots["s0"]


def test_a_healthy_life_from_germination_to_fossil():
    garden = Garden()
    assert garden.slot.state.stage is S.DORMANT
    stages = garden.run(8, delta=1.5)
    assert stages == [S.TRAINING] * 2 + [S.BLENDING] * 2 + [S.HOLDING] * 2 + [S.FOSSILIZED] * 2
    (fossil,) = garden.of(SeedFossilized)
    assert (fossil.epoch, fossil.accuracy_delta, fossil.seed_params) == (7, 1.5, garden.slot.state.seed_params)
    assert fossil.seed_params > 0
    assert garden.slot.fossil is not None


def test_slots_germinate_one_after_the_other():
    garden = Garden(slots=3)
    garden.run(7)
    assert [(event.slot_id, event.epoch) for event in garden.of(SeedGerminated)] == [("s0", 1), ("s1", 3), ("s2", 5)]


def test_nothing_germinates_when_it_could_not_learn_any_more():
    garden = Garden(epochs=3, slots=3)
    garden.run(3)
    assert [event.slot_id for event in garden.of(SeedGerminated)] == ["s0"]


def test_what_is_planted_grows_first_and_only_once():
    garden = Garden(plants={"s0": "sigmoid"})
    garden.run(1)
    garden.run(1, flow(0.001))
    garden.run(6)
    first, second = garden.of(SeedGerminated)
    assert (first.blueprint_id, first.planted) == ("sigmoid", True)
    assert (second.blueprint_id == "sigmoid", second.planted) == (False, False)


@pytest.mark.parametrize("age", [0, 1, 2, 3, 5])
def test_a_rule_prunes_at_the_next_decision_in_every_stage(age):
    garden = Garden()
    garden.run(1 + age)
    stage = garden.slot.state.stage
    assert garden.run(1, flow(0.001)) == [S.PRUNED]
    (pruned,) = garden.of(SeedPruned)
    assert (pruned.stage, pruned.rule, pruned.grad_ratio) == (stage, "low", 0.001)
    assert garden.monitor.names == ()
    assert {cleared.alert.rule for cleared in garden.of(AlertCleared)} == {"low", "flagged"}
    (life,) = garden.actions.lives
    assert (life.pruned_epoch, life.pruned_by, life.last_ratio) == (garden.epoch, "low", 0.001)


def test_several_rules_that_ask_for_one_seed_prune_it_once():
    garden = Garden()
    garden.run(1)
    assert garden.run(1, flow(0.001, non_finite_passes=1)) == [S.PRUNED]
    assert len(garden.of(SeedPruned)) == 1


def test_a_flag_alone_does_not_prune():
    garden = Garden()
    garden.run(1)
    assert S.PRUNED not in garden.run(3, flow(0.3))


def test_a_fossil_stays():
    garden = Garden()
    garden.run(8)
    assert garden.run(2, flow(0.001)) == [S.FOSSILIZED] * 2
    assert garden.of(SeedPruned) == []


@pytest.mark.parametrize("killer", ["a rule", "never ready", "no gain"])
def test_the_embargo_is_as_long_whatever_pruned(killer):
    garden = Garden()
    garden.run(1)
    if killer == "a rule":
        garden.run(1, flow(0.001))
    elif killer == "never ready":
        garden.run(5, flow(0.05))
    else:
        garden.run(6, delta=-2.0)
    assert garden.of(SeedPruned)[-1].rule == {"a rule": "low"}.get(killer, killer)
    assert garden.slot.state.stage is S.PRUNED
    stages = garden.run(4)
    assert stages == [S.EMBARGOED] * 3 + [S.TRAINING]


def test_a_seed_that_costs_accuracy_is_not_fossilised_and_one_within_the_noise_is():
    costly, noisy = Garden(), Garden()
    assert costly.run(7, delta=-2.0)[-1] is S.PRUNED
    assert noisy.run(7, delta=-0.3)[-1] is S.FOSSILIZED


def test_stage_changes_are_said_in_order_with_their_reasons():
    garden = Garden()
    garden.run(2)
    garden.run(1, flow(0.001))
    garden.run(4)
    changes = garden.of(SeedStageChanged)[:4]
    assert [change.to_stage for change in changes] == [S.TRAINING, S.PRUNED, S.EMBARGOED, S.DORMANT]
    assert all(change.reason for change in changes)


def test_every_seed_draws_from_a_stream_of_its_own():
    garden = Garden(slots=2, plants={"s0": "mlp", "s1": "mlp"})
    garden.run(3)
    first, second = (garden.actions.slots[name].seed[0].weight for name in ("s0", "s1"))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_germination_leaves_the_measurement_and_the_buffers_of_other_seeds_alone():
    def measured(disturb: bool):
        garden = Garden(slots=2)
        late = garden.actions.slots["s1"]
        late.plant(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6)), seed_id="x", blueprint_id="x")
        late.state.stage = S.HOLDING
        late.blend(1.0)
        garden.monitor.attach("s1", late.seed)
        if disturb:
            garden.controller.germinate(1, garden.slot, garden.actions)
        host = garden.actions.host
        host(torch.linspace(-1, 1, 24).view(4, 6)).square().mean().backward()
        return garden.monitor.close_epoch()["s1"], [buffer.clone() for buffer in late.seed.buffers()]

    (quiet, buffers), (disturbed, disturbed_buffers) = measured(False), measured(True)
    assert quiet == disturbed
    assert all(torch.equal(a, b) for a, b in zip(buffers, disturbed_buffers, strict=True))


def test_a_slot_that_no_gradient_reaches_still_germinates():
    garden = Garden()
    garden.actions.closure = lambda net: net(torch.randn(8, 6)).sum() * 0
    garden.run(1)
    assert garden.slot.alive
    assert all(parameter.isfinite().all() for parameter in garden.slot.seed.parameters())
