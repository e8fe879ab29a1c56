"""One env against an independent account of what it must have done."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from few_digits import STEPS, few_digits
from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.growth.slot import SeedSlot
from sapflow.telemetry.codec import decode, encode
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EpochCompleted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
)
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training.env import Env, EnvPlan
from sapflow.training.tasks.task import Data, Task
from sapflow.training.trainer import Plant, RunPlan, run

SAMPLES, BATCH, EPOCHS = 48, 16, 2


class Host(nn.Module):
    """No dropout and no batch statistics, so that a reference loop sees the same network."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.slot = SeedSlot("mid", (6,))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.slot(torch.tanh(self.first(x))))


def make_data():
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(2 * SAMPLES, 5, generator=generator), torch.arange(2 * SAMPLES) % 3
    return Data(inputs[:SAMPLES], labels[:SAMPLES], inputs[SAMPLES:], labels[SAMPLES:])


def make_seed(shape):
    layer = nn.Linear(*shape, *shape)
    with torch.no_grad():
        layer.weight.copy_(3 * torch.eye(*shape))  # large enough for its gradients to be clipped
        layer.bias.fill_(0.1)
    return layer


class Planter:
    """Plants one seed before the first epoch; what else it does is told by epoch."""

    def __init__(self, **stages):
        self.stages = stages

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        epoch, slot = outcome.epoch, actions.slots["mid"]
        if epoch == 0:
            actions.germinate(0, slot, Blueprint("known", 1, make_seed, calibrated=False))
        for target in self.stages.get(f"after_{epoch}", ()):
            slot.state.sound_epochs = 2
            if target is SeedStage.HOLDING:
                slot.blend(1.0)
            actions.advance(epoch, slot, target, "scripted")


class Kept(list):
    def emit(self, event):
        self.append(decode(encode(event)))


def trained_env(**stages):
    kept = Kept()
    task = Task("reference", make_data, Host, batch_size=BATCH, learning_rate=0.05)
    plan = EnvPlan(env_id=0, epochs=EPOCHS, rng_seed=7, blending_epochs=2, blending="linear")
    env = Env(task, plan, Planter(**stages), EventStream(kept, "run", 0))
    host_before = {name: value.clone() for name, value in env.host.state_dict().items()}
    order = [torch.Generator().set_state(env._shuffle.get_state())]
    env.start()
    for _ in range(EPOCHS):
        env.run_epoch()
    return env, kept, host_before, order[0]


def reference_loop(host_before, shuffle, blend, clip):
    """Host and seed trained by hand: SGD and Adam, clipped apart; `blend` None is incubation, else α by step."""
    data = make_data()
    host, seed = Host(), make_seed((6,))
    host.load_state_dict(host_before)
    parameters = list(host.parameters())
    sgd = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS)
    adam = torch.optim.Adam(seed.parameters(), lr=SeedTraining().learning_rate)
    losses, step = [], 0
    for _ in range(EPOCHS):
        epoch_losses = []
        for batch in torch.randperm(SAMPLES, generator=shuffle).split(BATCH):
            x, target = data.train_inputs[batch], data.train_labels[batch]
            sgd.zero_grad()
            adam.zero_grad()
            h = torch.tanh(host.first(x))
            if blend is None:
                weight, bias = (parameter.detach() for parameter in host.last.parameters())
                F.cross_entropy(F.linear(h.detach() + seed(h.detach()), weight, bias), target).backward()
                loss = F.cross_entropy(host.last(h), target)
            else:
                loss = F.cross_entropy(host.last(h + blend(step) * seed(h)), target)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            nn.utils.clip_grad_norm_(seed.parameters(), clip)
            sgd.step()
            adam.step()
            epoch_losses.append(loss.item())
            step += 1
        schedule.step()
        losses.append(sum(epoch_losses) / len(epoch_losses))
    return host, seed, losses


@pytest.mark.parametrize("clip", [1.0, 0.02])
@pytest.mark.parametrize("blending", [False, True])
def test_host_and_seed_learn_as_in_a_loop_written_by_hand(monkeypatch, blending, clip):
    monkeypatch.setattr("sapflow.training.env.GRADIENT_CLIP", clip)
    stages = [SeedStage.TRAINING, *([SeedStage.BLENDING] if blending else [])]
    env, kept, host_before, shuffle = trained_env(after_0=stages)
    steps = EPOCHS * SAMPLES // BATCH
    host, seed, losses = reference_loop(
        host_before, shuffle, (lambda step: (step + 1) / steps) if blending else None, clip
    )
    for mine, reference in zip(env.host.parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)
    for mine, reference in zip(env.slots["mid"].seed.parameters(), seed.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
        assert not torch.equal(mine, make_seed((6,)).state_dict()["weight" if mine.dim() == 2 else "bias"])
    said = [event.payload.train_loss for event in kept if isinstance(event.payload, EpochCompleted)]
    assert said == pytest.approx(losses, rel=1e-5)


def test_accuracy_and_its_delta_are_those_of_two_networks():
    env, kept, _, _ = trained_env(after_0=[SeedStage.TRAINING, SeedStage.BLENDING], after_1=[SeedStage.HOLDING])
    last = next(event.payload for event in reversed(kept) if isinstance(event.payload, EpochCompleted))
    data, host, seed = make_data(), env.host, env.slots["mid"].seed

    def accuracy(branch):
        with torch.no_grad():
            h = torch.tanh(host.first(data.validation_inputs))
            chosen = host.last(h + branch(h)).argmax(-1)
        return 100 * (chosen == data.validation_labels).double().mean().item()

    assert last.accuracy == pytest.approx(accuracy(seed))
    assert last.seeds[0].accuracy_delta == pytest.approx(accuracy(seed) - accuracy(torch.zeros_like))
    assert last.seeds[0].accuracy_delta != 0


def test_a_shadow_with_a_seed_that_says_nothing_has_the_host_s_own_loss(monkeypatch):
    """Dropout and BatchNorm included: the shadow replays the host's random numbers."""
    from sapflow.growth import seed_trainer as module
    from sapflow.training.tasks import task_named

    losses = []
    real = module.shadow_backward

    def spy(host, slot, closure, **kwargs):
        with torch.no_grad():
            for parameter in slot.seed.parameters():
                parameter.zero_()
        losses.append(real(host, slot, closure, **kwargs))
        return losses[-1]

    host_losses = []
    step = Env._train_step
    monkeypatch.setattr(module, "shadow_backward", spy)
    monkeypatch.setattr(
        Env, "_train_step", lambda self, *batch: host_losses.append(step(self, *batch)) or host_losses[-1]
    )
    env = Env(
        task_named("digits-mlp"),
        EnvPlan(env_id=0, epochs=1, rng_seed=0, blending_epochs=2),
        type("One", (), {"decide": lambda self, outcome, actions: outcome.epoch == 0 and _incubate(actions)})(),
        EventStream(Kept(), "run", 0),
    )
    env.start()
    env.run_epoch()
    assert len(losses) == len(host_losses) == 23
    assert torch.equal(torch.stack(losses), torch.stack(host_losses))


def _incubate(actions):
    slot = actions.slots["early"]
    actions.germinate(0, slot, Blueprint("linear", 1, lambda shape: nn.Linear(*shape, *shape)))
    actions.advance(0, slot, SeedStage.TRAINING, "scripted")


def test_an_epoch_s_counts_and_open_alerts_follow_from_the_events_before_it():
    kept = Kept()
    with few_digits():
        run(RunPlan(task="digits-mlp", envs=1, epochs=14, plants=(Plant(0, "early", "sigmoid"),)), "run", kept)
    counts = dict.fromkeys((SeedGerminated, SeedPruned, SeedFossilized, AlertRaised), 0)
    open_alerts, passes = set(), 0
    for event in kept:
        payload = event.payload
        if type(payload) in counts:
            counts[type(payload)] += 1
        if isinstance(payload, AlertRaised):
            open_alerts.add((payload.alert.rule, payload.alert.seed_id))
        elif isinstance(payload, AlertCleared):
            open_alerts.remove((payload.alert.rule, payload.alert.seed_id))
        elif isinstance(payload, EpochCompleted):
            passes += STEPS if any(seed.stage.trained for seed in payload.seeds) else 0
            assert payload.total_passes == passes
            assert payload.total_germinated == counts[SeedGerminated]
            assert payload.total_pruned == counts[SeedPruned]
            assert payload.total_fossilized == counts[SeedFossilized]
            assert payload.total_alerts == counts[AlertRaised]
            assert {(alert.rule, alert.seed_id) for alert in payload.open_alerts} == open_alerts
    assert all(counts.values())


def test_envs_that_fail_before_they_begin_do_not_take_the_run_down(monkeypatch, caplog):
    from sapflow.telemetry.events import EnvFailed, RunCompleted

    start = Env.start

    def failing(self):
        start(self)
        if self.plan.env_id == 1:
            raise RuntimeError("no room")

    monkeypatch.setattr(Env, "start", failing)
    kept = Kept()
    with few_digits():
        envs = run(RunPlan(task="digits-mlp", envs=3, epochs=1), "run", kept)
    assert list(envs) == [0, 2]
    failed = [event for event in kept if isinstance(event.payload, EnvFailed)]
    assert [(event.env_id, event.payload.error) for event in failed] == [(1, "RuntimeError: no room")]
    assert kept[-1].payload == RunCompleted(completed_envs=2, failed_envs=1)
    assert len(caplog.records) == 1


def test_a_task_may_train_on_one_sample_at_a_time():
    kept = Kept()
    task = Task("single", make_data, Host, batch_size=1)
    plan = EnvPlan(env_id=0, epochs=1, rng_seed=7, blending_epochs=1)
    env = Env(task, plan, Planter(after_0=[SeedStage.TRAINING]), EventStream(kept, "run", 0))
    env.start()
    env.run_epoch()
    (said,) = [event.payload for event in kept if isinstance(event.payload, EpochCompleted)]
    assert said.total_passes == SAMPLES
    assert said.train_loss > 0
