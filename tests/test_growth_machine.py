"""Lives of seeds at random: whatever is asked for, in whatever order, with training, pauses and resumes in between."""

import copy
import io

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn
from torch.nn import functional as F

from sapflow.control.evaluation import Evaluation
from sapflow.control.grower import Grower
from sapflow.errors import IllegalTransitionError
from sapflow.growth.blueprints import blueprint_for
from sapflow.growth.host import slots_of
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Measurement, SeedStage

S = SeedStage
SLOTS = ("early", "late")
AFTER = {
    S.DORMANT: {S.GERMINATED}, S.GERMINATED: {S.TRAINING, S.PRUNED}, S.TRAINING: {S.BLENDING, S.PRUNED},
    S.BLENDING: {S.HOLDING, S.PRUNED}, S.HOLDING: {S.FOSSILIZED, S.PRUNED}, S.FOSSILIZED: set(),
    S.PRUNED: {S.EMBARGOED}, S.EMBARGOED: {S.DORMANT},
}  # fmt: skip


class Nobody:
    """The machine decides."""

    def decide(self, outcome, actions):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def emit(self, event):
        pass


def make_host():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), SeedSlot("early", (6,)), nn.Dropout(0.2),
        nn.Linear(6, 6), nn.Tanh(), SeedSlot("late", (6,)), nn.Linear(6, 2),
    )  # fmt: skip


class Garden:
    """A host with its grower and its optimizer, which trains on data that the epoch's number determines."""

    def __init__(self):
        self.host = make_host()
        self.grower = Grower(
            self.host, self.host, slots_of(self.host), Nobody(), EventStream(Nobody(), "run", 0),
            random_name="machine", how=SeedTraining(blending_steps=4),
        )  # fmt: skip
        self.optimizer = torch.optim.SGD(self.host.parameters(), lr=0.05, momentum=0.9)
        self.grower.actions.closure = self.closure(0)

    def closure(self, number):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(8, 5, generator=generator)
        return lambda net: F.cross_entropy(net(x), (x[:, 0] > 0).long())

    def epoch(self):
        torch.manual_seed(self.grower.epoch)
        losses = []
        for step in range(3):
            self.optimizer.zero_grad()
            loss = self.grower.loss(self.closure(3 * self.grower.epoch + step))
            loss.backward()
            self.optimizer.step()
            self.grower.monitor.step()
            losses.append(loss.detach())
        said = self.grower.close_epoch(lambda: Evaluation(accuracy=50.0))
        return losses, [copy.deepcopy(parameter.grad) for parameter in self.optimizer.param_groups[0]["params"]], said

    def state(self):
        return {
            "host": self.host.state_dict(), "optimizer": self.optimizer.state_dict(), "growth": self.grower.state_dict()
        }  # fmt: skip

    def restored(self):
        """Another garden, that goes on from a copy of this one's state which has been on the disk."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        buffer.seek(0)
        state, other = torch.load(buffer, weights_only=True), Garden()
        other.grower.load_state_dict(state["growth"])
        other.host.load_state_dict(state["host"])
        other.optimizer.load_state_dict(state["optimizer"])
        return other


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.garden = Garden()
        self.alone = Garden()  # the host as it would be had nothing ever been asked for
        self.seen = False  # the host has seen a seed, and is another from then on

    @initialize(ages=st.tuples(*[st.integers(0, 5)] * len(SLOTS)))
    def grow_up(self, ages):
        """Begin anywhere in life: the machine would seldom come far by itself."""
        for where, age in zip(SLOTS, ages, strict=True):
            for _ in range(age):
                if self.actions.slots[where].state.stage is S.DORMANT:
                    self.germinate(where, "mlp")
                else:
                    self.ripen_and_advance(where)
            if age == 1:
                self.train()

    @property
    def actions(self):
        return self.garden.grower.actions

    def asks(self, slot, call):
        """Carries out the call; where it is refused, nothing has changed. Gives whether it was done."""
        before, seed = copy.deepcopy(slot.state), slot.seed
        try:
            call()
        except IllegalTransitionError:
            assert slot.state == before
            assert slot.seed is seed
            return False
        return True

    @rule(where=st.sampled_from(SLOTS), what=st.sampled_from(["mlp", "norm", "sigmoid"]))
    def germinate(self, where, what):
        slot = self.actions.slots[where]
        dormant = slot.state.stage is S.DORMANT
        blueprint = blueprint_for(what, slot.shape)
        assert self.asks(slot, lambda: self.actions.germinate(self.garden.grower.epoch, slot, blueprint)) == dormant

    @rule(where=st.sampled_from(SLOTS), aim=st.sampled_from(SeedStage))
    def advance(self, where, aim):
        slot = self.actions.slots[where]
        stage = slot.state.stage
        legal = aim in AFTER.get(stage, ()) and aim not in (S.GERMINATED, S.PRUNED)  # these have ways of their own
        closed = bool(slot.closed_gate(aim)) if legal else True
        done = self.asks(slot, lambda: self.actions.advance(self.garden.grower.epoch, slot, aim, "asked"))
        assert done == (legal and not closed)
        self.seen |= slot.host_sees

    @rule(where=st.sampled_from(SLOTS))
    def ripen_and_advance(self, where):
        """The way that most lives should take, without the many epochs that it takes them."""
        slot = self.actions.slots[where]
        slot.state.sound_epochs = 2
        if slot.state.stage is S.BLENDING:
            slot.blend(1.0)
        for aim in AFTER[slot.state.stage] - {S.PRUNED, S.GERMINATED}:
            self.advance(where, aim)

    @rule(where=st.sampled_from(SLOTS))
    def prune(self, where):
        slot = self.actions.slots[where]
        legal = S.PRUNED in AFTER[slot.state.stage]
        prune = lambda: self.actions.prune(self.garden.grower.epoch, slot, rule="asked", evidence="")  # noqa: E731
        assert self.asks(slot, prune) == legal

    @rule(where=st.sampled_from(SLOTS), hold=st.booleans())
    def hold_or_resume(self, where, hold):
        slot = self.actions.slots[where]
        grows = slot.alive and slot.state.stage is not S.FOSSILIZED
        assert self.asks(slot, lambda: (self.actions.hold if hold else self.actions.resume)(slot)) == grows
        assert slot.state.paused == (hold if grows else False)

    @rule()
    def train(self):
        mine, alone = self.garden.epoch(), self.alone.epoch()
        if not self.seen:  # losses and gradients are the same to the bit
            assert same(mine[:2], alone[:2])
        for seed in mine[2].seeds:
            if seed.stage is S.TRAINING:
                assert seed.measurement is Measurement.MEASURED

    @rule()
    def kill_and_resume(self):
        resumed = self.garden.restored()
        assert same(self.garden.state(), resumed.state())
        ahead = self.garden.epoch()
        assert same(ahead, resumed.epoch())
        assert same(self.garden.state(), resumed.state())
        self.garden = resumed
        self.alone.epoch()

    @invariant()
    def what_is_said_is_so(self):
        for slot_id, slot in self.actions.slots.items():
            state = slot.state
            assert slot.alive == (slot.seed is not None) == (slot_id in self.garden.grower.monitor.names)
            assert slot.alive == (slot.optimizer is not None)
            assert 0.0 <= state.alpha <= 1.0
            assert (state.alpha > 0) <= slot.host_sees
            assert (slot.fossil is not None) == (state.stage is S.FOSSILIZED)
            h = torch.randn(3, 6)
            slot.eval()
            unseen = torch.equal(slot(h), h)
            slot.train()
            assert unseen or slot.host_sees


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)  # fmt: skip
TestMachine = pytest.mark.timeout(120)(TestMachine)
