"""What sets the controllers apart: when they sow, what they choose, what they give up; and that they can be resumed."""

import math
from collections import Counter

import msgspec
import pytest
import torch
from torch import nn

from few_digits import few_digits
from sapflow import grow
from sapflow.control.controller import EpochOutcome
from sapflow.control.controllers import (
    CONTROLLERS,
    AccuracyOnlyController,
    HeuristicController,
    RandomController,
    controller_named,
)
from sapflow.control.life_cycle import GrowthPlan
from sapflow.errors import BlueprintError, InputError
from sapflow.growth.blueprints import Blueprint
from sapflow.telemetry.events import EpochCompleted, SeedGerminated, SeedPruned
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training.trainer import RunPlan, run
from test_controller import PLAN, Garden, flow

S = SeedStage


def linear(shape):
    return nn.Linear(*shape, *shape)


POOL = [Blueprint(name, 1, linear) for name in ("good", "bad", "plain")]


class Watched(Garden):
    """A garden with another controller, to which the host's accuracy is told."""

    def __init__(self, controller, epochs=100, slots=1):
        super().__init__(epochs=epochs, slots=slots)
        self.controller = controller
        self.accuracies = []

    def decide(self) -> None:
        accuracy = self.accuracies[self.epoch - 1] if self.epoch else None
        self.controller.decide(EpochOutcome(epoch=self.epoch, epochs=self.epochs, accuracy=accuracy), self.actions)

    def live(self, accuracies, **options):
        self.accuracies += accuracies
        return self.run(len(accuracies), **options)


class TestTheHeuristic:
    def test_sows_on_a_plateau_after_the_host_has_begun_to_learn(self):
        garden = Watched(HeuristicController(PLAN, 0, pool=POOL))
        garden.live([10.0] * 8)  # it has not begun
        assert garden.of(SeedGerminated) == []
        garden.live([20.0, 30.0, 40.0, 50.0])  # it learns
        assert garden.of(SeedGerminated) == []
        garden.live([50.1, 50.0, 50.2])
        assert [event.epoch for event in garden.of(SeedGerminated)] == [15]

    def test_sows_one_seed_an_epoch_where_fewest_have_grown(self):
        garden = Watched(HeuristicController(PLAN, 0, pool=POOL), slots=3)
        garden.live([10.0, 20.0] + [20.0] * 9)
        assert [(event.slot_id, event.epoch) for event in garden.of(SeedGerminated)] == [
            ("s0", 5), ("s1", 8), ("s2", 11)
        ]  # fmt: skip

    def test_sows_nothing_that_has_no_time_for_a_life(self):
        garden = Watched(HeuristicController(PLAN, 0, pool=POOL), epochs=10)
        garden.live([10.0, 20.0] + [20.0] * 8)
        assert [event.epoch for event in garden.of(SeedGerminated)] == []
        longer = Watched(HeuristicController(PLAN, 0, pool=POOL), epochs=11)
        longer.live([10.0, 20.0] + [20.0] * 9)
        assert [event.epoch for event in longer.of(SeedGerminated)] == [5]

    @pytest.mark.parametrize("before", [[], [math.nan], [math.inf]], ids=str)
    def test_goes_by_the_loss_where_nobody_tells_an_accuracy(self, before):
        controller, garden = HeuristicController(PLAN, 0, pool=POOL), Garden()
        for epoch, loss in enumerate([*before, 2.0, 1.0, 1.0, 1.0, 1.0], start=1):
            controller.decide(EpochOutcome(epoch=epoch, validation_loss=loss), garden.actions)
        assert [event.epoch for event in garden.of(SeedGerminated)] == [5 + len(before)]

    def test_chooses_what_has_worked(self):
        garden = Watched(HeuristicController(PLAN, 0, pool=POOL))
        lives = [("good", None, 2.0)] * 8 + [("bad", 5, -3.0)] * 8
        for name, pruned, delta in lives:
            garden.actions.germinate(0, garden.slot, POOL[0])
            life = garden.actions.lives[-1]
            life.blueprint_id, life.pruned_epoch, life.accuracy_delta = name, pruned, delta
            garden.monitor.detach("s0")
            garden.slot.advance(S.PRUNED), garden.slot.advance(S.EMBARGOED), garden.slot.advance(S.DORMANT)
        chosen = Counter(garden.controller.choose(POOL, garden.actions).blueprint_id for _ in range(300))
        assert chosen["good"] > chosen["plain"] > chosen["bad"]
        assert chosen["good"] > 200


class TestChance:
    def test_prunes_and_sows_at_its_rates(self):
        garden = Watched(RandomController(PLAN, 1, pool=POOL, sowing=1.0, pruning=0.25), slots=4, epochs=1000)
        seeds = pruned = 0
        for _ in range(80):
            alive = sum(slot.alive and slot.state.stage is not S.FOSSILIZED for slot in garden.actions.slots.values())
            before = len(garden.of(SeedPruned))
            garden.live([50.0], delta=-5.0)  # nothing becomes a fossil
            by_chance = [event for event in garden.of(SeedPruned)[before:] if event.rule == "chance"]
            seeds, pruned = seeds + alive, pruned + len(by_chance)
        assert seeds > 100
        assert 0.15 < pruned / seeds < 0.35

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_needs_probabilities(self, share):
        with pytest.raises(InputError, match="from 0 to 1"):
            RandomController(PLAN, 0, pruning=share)


def test_accuracy_alone_lets_a_dying_seed_blend_and_gives_it_up_when_it_costs():
    garden = Watched(AccuracyOnlyController(PLAN, 0, pool=POOL))
    garden.rules.rules = ()
    stages = garden.live([50.0] * 7, health=flow(0.001), delta=-3.0)
    assert stages[:5] == [S.TRAINING] * 2 + [S.BLENDING] * 2 + [S.PRUNED]
    (pruned,) = garden.of(SeedPruned)
    assert pruned.rule == "no gain"


def test_what_does_not_fit_is_not_chosen_again(caplog):
    wide = Blueprint("wide", 1, lambda shape: nn.Linear(*shape, 2 * shape[0]))
    controller = CONTROLLERS["scheduled"](PLAN, 0, pool=[wide, POOL[0]])
    garden = Watched(controller, slots=6)
    garden.live([50.0] * 12)
    assert {event.blueprint_id for event in garden.of(SeedGerminated)} == {"good"}
    assert len(garden.of(SeedGerminated)) == 6
    assert len(caplog.records) == 1


def test_what_does_not_fit_one_slot_may_fit_another():
    class First(CONTROLLERS["scheduled"]):
        def choose(self, fitting, actions):
            return fitting[0]

    pool = [Blueprint("eight", 1, lambda _shape: nn.Linear(8, 8)), POOL[0]]
    controller = First(GrowthPlan(first_germination=0, germination_interval=0), 0, pool=pool)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = grow(model, {"1": "after", "3": "after"}, optimizer=optimizer, controller=controller)
    growth.loss(lambda net: net(torch.randn(5, 4)).square().mean())
    assert [slot.state.blueprint_id for slot in growth.actions.slots.values()] == ["good", "eight"]
    resumed = First(PLAN, 0, pool=pool)
    resumed.load_state_dict(msgspec.json.decode(msgspec.json.encode(controller.state_dict())))
    assert resumed.state_dict() == controller.state_dict()
    growth.close()


def test_a_slot_in_which_nothing_can_grow_is_known_before_anything_is_trained():
    maps = Blueprint("maps", 3, linear)
    garden = Watched(CONTROLLERS["scheduled"](PLAN, 0, pool=[maps]))
    with pytest.raises(BlueprintError, match="no blueprint of the pool fits"):
        garden.decide()


class Picky(nn.Linear):
    """Fits as far as meta tensors tell, and fails on real activations."""

    error = RuntimeError

    def forward(self, x):
        if self.error is not None and not x.is_meta:
            raise self.error("not on these")
        return super().forward(x)


class Greedy(Picky):
    error = torch.OutOfMemoryError


@pytest.mark.parametrize("seed", [Picky, Greedy])
def test_what_cannot_germinate_in_the_middle_of_the_training_leaves_its_slot_empty(seed, caplog, monkeypatch):
    pool = [Blueprint("picky", 1, lambda shape: seed(*shape, *shape))]
    garden = Watched(CONTROLLERS["scheduled"](PLAN, 0, pool=pool))
    assert garden.live([50.0] * 3) == [S.DORMANT] * 3
    logged = [record.getMessage() for record in caplog.records if "stays empty" in record.getMessage()]
    assert len(logged) == 1
    monkeypatch.setattr(seed, "error", None)
    # Memory may be there again; what did not fit is not chosen again.
    assert garden.live([50.0]) == [S.TRAINING if seed is Greedy else S.DORMANT]


def test_a_batch_that_does_not_pass_the_slot_leaves_it_empty_until_one_does():
    garden = Watched(CONTROLLERS["scheduled"](PLAN, 0, plants={"s0": "norm"}))
    passing, garden.actions.closure = garden.actions.closure, lambda net: net[0](torch.ones(8, 6)).mean()
    assert garden.live([50.0] * 2) == [S.DORMANT] * 2
    garden.actions.closure = passing
    assert garden.live([50.0]) == [S.TRAINING]
    assert garden.slot.state.blueprint_id == "norm"


def test_what_is_to_be_planted_and_does_not_fit_is_known_before_anything_is_trained():
    with pytest.raises(BlueprintError, match="nonsense"):
        Watched(CONTROLLERS["scheduled"](PLAN, 0, plants={"s0": "nonsense"})).decide()


def test_what_is_to_be_planted_where_there_is_no_slot_is_known_before_anything_is_trained():
    with pytest.raises(InputError, match="plants: there is no slot 's9', only s0, s1"):
        Watched(CONTROLLERS["scheduled"](PLAN, 0, plants={"s0": "norm", "s9": "norm"}), slots=2).decide()


def test_a_seed_whose_optimizer_cannot_be_made_is_not_planted():
    garden = Watched(CONTROLLERS["scheduled"](PLAN, 0, pool=POOL))
    garden.actions.make_optimizer = lambda seed: torch.optim.Adam([])
    with pytest.raises(ValueError, match="empty parameter list"):
        garden.actions.germinate(1, garden.slot, POOL[0])
    assert garden.slot.state.stage is S.DORMANT


def test_a_fossil_waits_for_an_epoch_in_which_its_seed_was_weighed():
    garden = Watched(CONTROLLERS["scheduled"](PLAN, 0, pool=POOL))
    garden.live([50.0] * 6)
    garden.slot.state.weighed_before = 1
    assert garden.live([50.0]) == [S.HOLDING]
    garden.actions.weigh("s0", 0.5)
    assert garden.live([50.0], delta=0.5) == [S.FOSSILIZED]


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_resumed_controller_decides_as_one_that_was_not_stopped(name, stop):
    accuracies = [10.0, 30.0, 40.0] + [40.0] * 30

    def told(garden):
        return [(type(event).__name__, event.slot_id, event.epoch, event.blueprint_id) for event in garden.events
                if hasattr(event, "slot_id")]  # fmt: skip

    whole, resumed = (Watched(controller_named(name)(PLAN, 3, pool=POOL), slots=3) for _ in range(2))
    whole.live(accuracies)
    resumed.live(accuracies[:stop])
    fresh = controller_named(name)(PLAN, 99, pool=POOL)
    fresh.load_state_dict(resumed.controller.state_dict())
    resumed.controller = fresh
    resumed.live(accuracies[stop:])
    assert told(resumed) == told(whole)


@pytest.mark.parametrize(("name", "epochs"), [("scheduled", 8), ("heuristic", 34), ("random", 8), ("accuracy", 8)])
def test_each_of_them_grows_seeds_in_a_real_run(name, epochs):
    events = []
    sink = type("Kept", (), {"emit": lambda self, event: events.append(event)})()
    with few_digits():
        (env,) = run(RunPlan(task="digits-mlp", envs=1, epochs=epochs, controller=name), "run", sink).values()
    assert env.epoch == epochs
    assert any(isinstance(event.payload, SeedGerminated) for event in events)
    assert len([event for event in events if isinstance(event.payload, EpochCompleted)]) == epochs


def test_an_unknown_controller_is_refused_in_one_line():
    with pytest.raises(InputError, match="unknown controller 'oracle': choose one of scheduled, heuristic"):
        RunPlan(controller="oracle").check()


def test_a_life_takes_as_long_as_its_stages():
    assert GrowthPlan(training_epochs=2, blending_epochs=3, holding_epochs=4).shortest_life == 9
