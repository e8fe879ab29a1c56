"""Runs on the real digits: reproducible, env by env, and with growth that finds what was planted."""

from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
import torch

from few_digits import STEPS, few_digits
from sapflow.cli.console import console
from sapflow.cli.train import _closing_table
from sapflow.control.actions import Life
from sapflow.errors import InputError
from sapflow.gradients.sampling import Sampler
from sapflow.telemetry.codec import decode, encode
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EnvFailed,
    EpochCompleted,
    GradientSampled,
    RunCompleted,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    TelemetryEvent,
)
from sapflow.telemetry.vocabulary import EventType, Measurement, SeedStage
from sapflow.training import trainer
from sapflow.training.env import Env
from sapflow.training.trainer import Plant, RunPlan, run


class Kept(list):
    """A sink that keeps events the way a journal does: through their bytes."""

    def emit(self, event: TelemetryEvent) -> None:
        self.append(decode(encode(event)))

    def of(self, kind, env_id=None):
        return [event.payload for event in self if isinstance(event.payload, kind) and event.env_id in (env_id, None)]


def record(**plan) -> Kept:
    kept = Kept()
    with few_digits():
        run(RunPlan(**plan), "run", kept)
    return kept


def deterministic(events, env_id=0):
    """An env's events but for their times, and without samples, which the clock paces."""
    return [
        (event.sequence, msgspec.msgpack.encode(event.payload))
        for event in events
        if event.env_id == env_id and not isinstance(event.payload, GradientSampled)
    ]


@pytest.fixture(scope="module")
def small_run() -> Kept:
    torch.set_num_threads(trainer.THREADS + 1)
    return record(task="digits-mlp", envs=2, epochs=8, plants=(Plant(1, "early", "sigmoid"),))


def test_the_same_seed_gives_the_same_telemetry(small_run):
    torch.manual_seed(12345)  # what else goes on in the process does not matter
    again = record(task="digits-mlp", envs=2, epochs=8, plants=(Plant(1, "early", "sigmoid"),))
    for env_id in (None, 0, 1):
        assert deterministic(small_run, env_id) == deterministic(again, env_id)


def test_an_env_s_telemetry_does_not_depend_on_the_number_of_envs(small_run):
    alone = record(task="digits-mlp", envs=1, epochs=8)
    assert deterministic(small_run) == deterministic(alone)


def test_another_seed_gives_other_telemetry(small_run):
    assert deterministic(record(task="digits-mlp", envs=1, epochs=8, rng_seed=1)) != deterministic(small_run)


def test_sequences_count_each_env_s_deterministic_events_without_a_gap(small_run):
    for env_id in (None, 0, 1):
        numbers = [event.sequence for event in small_run if event.env_id == env_id and event.sequence is not None]
        assert numbers == list(range(len(numbers)))
    assert all(event.sequence is None for event in small_run if event.type is EventType.GRADIENT_SAMPLED)


def test_a_run_says_what_happens_in_order(small_run):
    types = [event.type for event in small_run if event.env_id == 0 and event.sequence is not None]
    assert types[0] is EventType.ENV_STARTED
    assert types[-1] is EventType.ENV_COMPLETED
    assert [payload.epoch for payload in small_run.of(EpochCompleted, 0)] == list(range(1, 9))
    assert small_run[-1].payload == RunCompleted(completed_envs=2)


def test_the_host_learns_from_all_of_the_digits():
    kept = Kept()
    run(RunPlan(task="digits-mlp", envs=1, epochs=6), "run", kept)
    epochs = kept.of(EpochCompleted, 0)
    assert epochs[-1].accuracy > 85
    assert epochs[-1].train_loss < epochs[0].train_loss / 4
    assert epochs[-1].seeds[0].passes == 23  # 1,437 images in batches of 64


def test_seeds_are_measured_in_every_epoch_they_live(small_run):
    for epoch in small_run.of(EpochCompleted, 0):
        for seed in epoch.seeds:
            grows = seed.stage in (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)
            assert (seed.measurement is Measurement.MEASURED) == grows
            assert seed.passes == (STEPS if grows else 0)


def test_accuracy_delta_is_zero_while_the_host_does_not_see_the_seed(small_run):
    seeds = [seed for payload in small_run.of(EpochCompleted, 0) for seed in payload.seeds]
    assert all(seed.accuracy_delta == 0.0 for seed in seeds if seed.stage is SeedStage.TRAINING)
    assert any(seed.accuracy_delta != 0.0 for seed in seeds if seed.stage in (SeedStage.BLENDING, SeedStage.HOLDING))


def test_alpha_rises_through_blending(small_run):
    alphas = [
        seed.alpha
        for payload in small_run.of(EpochCompleted, 0)
        for seed in payload.seeds
        if seed.slot_id == "early" and seed.stage is SeedStage.BLENDING
    ]
    assert alphas == sorted(alphas)
    assert 0 < alphas[0] < alphas[-1] == pytest.approx(1.0)


def test_a_planted_vanishing_seed_is_alerted_on_and_pruned_before_the_host_sees_it(small_run):
    (germinated, *_) = small_run.of(SeedGerminated, 1)
    (pruned,) = small_run.of(SeedPruned, 1)
    assert germinated.planted
    assert germinated.blueprint_id == pruned.blueprint_id == "sigmoid"
    assert (pruned.slot_id, pruned.stage, pruned.rule) == ("early", SeedStage.TRAINING, "dying seed")
    assert 0 < pruned.grad_ratio < 0.02
    raised = {payload.alert.rule for payload in small_run.of(AlertRaised, 1)}
    assert raised == {"vanishing seed", "dying seed"}
    assert {payload.alert.rule for payload in small_run.of(AlertCleared, 1)} == raised
    stages = [p.to_stage for p in small_run.of(SeedStageChanged, 1) if p.seed_id == pruned.seed_id]
    assert stages == [SeedStage.TRAINING, SeedStage.PRUNED, SeedStage.EMBARGOED, SeedStage.DORMANT]


def test_until_it_is_pruned_a_planted_seed_changes_nothing_in_its_host(small_run):
    """Env 1 with the sick seed and without it: the same losses and accuracies, to the bit."""
    without = record(task="digits-mlp", envs=2, epochs=8, plants=(Plant(1, "early", "norm"),))
    (pruned,) = small_run.of(SeedPruned, 1)
    pairs = list(zip(small_run.of(EpochCompleted, 1), without.of(EpochCompleted, 1), strict=True))[: pruned.epoch]
    assert len(pairs) >= 3
    for sick, sound in pairs:
        assert (sick.train_loss, sick.accuracy) == (sound.train_loss, sound.accuracy)


def test_a_planted_exploding_seed_is_pruned():
    kept = record(task="digits-cnn", envs=1, epochs=5, plants=(Plant(0, "early", "explosive"),))
    (pruned,) = kept.of(SeedPruned, 0)
    assert (pruned.rule, pruned.blueprint_id) == ("runaway seed", "explosive")
    assert pruned.grad_ratio == pytest.approx(64, rel=0.2)


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_samples_hold_every_pass_of_every_epoch_at_any_pace(monkeypatch, seconds):
    monkeypatch.setattr("sapflow.control.grower.Sampler", partial(Sampler, seconds=seconds))
    kept = record(task="digits-mlp", envs=1, epochs=3)
    samples = kept.of(GradientSampled, 0)
    for epoch in (2, 3):
        mine = [sample for sample in samples if sample.epoch == epoch and sample.slot_id == "early"]
        assert [index for sample in mine for index in sample.pass_index] == list(range(STEPS))
        ratios = [l / e for sample in mine for l, e in zip(sample.leaving, sample.entering, strict=True)]  # noqa: E741
        (completed,) = [p for p in kept.of(EpochCompleted, 0) if p.epoch == epoch]
        seed = completed.seeds[0]
        assert seed.last_ratio == pytest.approx(ratios[-1])
        assert (seed.min_ratio, seed.max_ratio) == pytest.approx((min(ratios), max(ratios)))


def test_an_env_that_fails_says_so_and_the_others_go_on(monkeypatch, caplog):
    real = Env.run_epoch

    def failing(self):
        real(self)
        if self.plan.env_id == 0 and self.epoch == 2:
            raise RuntimeError("out of cheese")

    monkeypatch.setattr(Env, "run_epoch", failing)
    kept = Kept()
    with few_digits():
        envs = run(RunPlan(task="digits-mlp", envs=2, epochs=3), "run", kept)
    assert list(envs) == [1]
    assert kept.of(EnvFailed, 0) == [EnvFailed(epoch=2, error="RuntimeError: out of cheese")]
    assert kept[-1].payload == RunCompleted(completed_envs=1, failed_envs=1)
    assert len(kept.of(EpochCompleted, 1)) == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ({"task": "nothing"}, "digits-cnn"),
        ({"envs": 0}, "at least 1 env"),
        ({"epochs": -1}, "at least 1 epoch"),
        ({"rng_seed": -1}, "from 0"),
        ({"epochs": 10**20}, "up to 1000000"),
        ({"plants": (Plant(4, "mid", "conv"),)}, "no env 4"),
        ({"plants": (Plant(0, "attic", "conv"),)}, "early, mid, late"),
        ({"plants": (Plant(0, "mid", "oak"),)}, "bottleneck, conv"),
        ({"plants": (Plant(0, "mid", "conv"), Plant(0, "mid", "norm"))}, "more than once"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused_in_one_line(plan, complaint):
    kept = Kept()
    with pytest.raises(InputError, match=complaint) as refusal:
        run(RunPlan(**plan), "run", kept)
    assert "\n" not in str(refusal.value)
    assert kept == []


@pytest.mark.parametrize("text", ["", "0:mid", "x:mid:conv", "0:mid:conv:more", "0::conv", "-1:mid:conv", "0:mid:"])
def test_plants_that_are_none(text):
    with pytest.raises(InputError, match="ENV:SLOT:BLUEPRINT"):
        Plant.parse(text)
    assert Plant.parse("3:mid:conv") == Plant(3, "mid", "conv")


def test_the_thread_count_is_fixed(small_run):
    assert torch.get_num_threads() == trainer.THREADS


def test_the_names_of_strangers_are_no_markup_in_the_closing_table():
    life = Life(slot_id="[/mid]", seed_id="mid-1", blueprint_id="mlp[relu]", planted=True, born_epoch=1)
    env = SimpleNamespace(accuracy=90.0, actions=SimpleNamespace(lives=[life]))
    with console.capture() as printed:
        console.print(_closing_table(SimpleNamespace(completed={0: env})))
    assert "[/mid]  mlp[relu]*" in printed.get()
