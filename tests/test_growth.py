"""The life of a seed: legal stages, slots and their forward, germination at unit gain, blending."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sapflow.errors import IllegalTransitionError
from sapflow.growth.blending import blend_weight
from sapflow.growth.blueprints import blueprint_for
from sapflow.growth.germination import germinate
from sapflow.growth.host import ConvHost, DenseHost, slots_of
from sapflow.growth.lifecycle import check_transition
from sapflow.growth.randomness import RandomState, stream_seed
from sapflow.growth.slot import SeedSlot, SeedState
from sapflow.telemetry.events import GradientHealth, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage

S = SeedStage
LEGAL = {
    (S.DORMANT, S.GERMINATED), (S.GERMINATED, S.TRAINING), (S.TRAINING, S.BLENDING), (S.BLENDING, S.HOLDING),
    (S.HOLDING, S.FOSSILIZED), (S.GERMINATED, S.PRUNED), (S.TRAINING, S.PRUNED), (S.BLENDING, S.PRUNED),
    (S.HOLDING, S.PRUNED), (S.PRUNED, S.EMBARGOED), (S.EMBARGOED, S.DORMANT),
}  # fmt: skip
SOUND = GradientHealth(measurement=Measurement.MEASURED, grad_ratio=1.0, passes=5)


@pytest.mark.parametrize(("stage", "target"), list(itertools.product(SeedStage, SeedStage)))
def test_only_legal_transitions_pass(stage, target):
    if (stage, target) in LEGAL:
        check_transition(stage, target)
    else:
        with pytest.raises(IllegalTransitionError, match=f"from {stage} to {target}"):
            check_transition(stage, target)


def planted(stage: SeedStage = S.GERMINATED, width: int = 4) -> SeedSlot:
    """A slot whose seed has come to `stage` the legal way."""
    slot = SeedSlot("mid", (width,))
    slot.plant(nn.Linear(width, width), seed_id="mid-1", blueprint_id="linear")
    for step in (S.TRAINING, S.BLENDING, S.HOLDING, S.FOSSILIZED):
        if slot.state.stage is stage:
            break
        slot.state.observe(SOUND)
        slot.state.observe(SOUND)
        slot.state.alpha = 1.0
        slot.advance(step)
    return slot


@given(st.lists(st.sampled_from(SeedStage), max_size=30))
def test_an_illegal_transition_raises_and_changes_nothing(targets):
    slot = planted()
    for target in targets:
        before, seed = copy.deepcopy(slot.state), slot.seed
        try:
            slot.advance(target)
        except IllegalTransitionError:
            assert slot.state == before
            assert slot.seed is seed
        else:
            assert (before.stage, target) in LEGAL
            assert slot.state.stage is target
            assert slot.state.epochs_in_stage == 0
        assert slot.alive == (slot.seed is not None)


@pytest.mark.parametrize(
    "health",
    [
        GradientHealth(),
        GradientHealth(measurement=Measurement.MEASURED, grad_ratio=0.001),
        GradientHealth(measurement=Measurement.MEASURED, grad_ratio=1000.0),
        GradientHealth(measurement=Measurement.NON_FINITE, non_finite_passes=3),
        GradientHealth(measurement=Measurement.MEASURED, grad_ratio=1.0, non_finite_passes=1),
        GradientHealth(measurement=Measurement.INPUT_DETACHED),
    ],
)
def test_the_gate_out_of_training_needs_two_sound_measured_epochs_in_a_row(health):
    slot = planted(S.TRAINING)
    slot.state.observe(SOUND)
    slot.state.observe(health)
    slot.state.observe(SOUND)
    with pytest.raises(IllegalTransitionError, match="gate"):
        slot.advance(S.BLENDING)
    slot.state.observe(SOUND)
    slot.advance(S.BLENDING)


def test_the_gate_to_fossilized_closes_on_a_seed_that_costs_accuracy():
    slot = planted(S.HOLDING)
    slot.state.accuracy_delta = -0.5
    assert not slot.closed_gate(S.FOSSILIZED)
    slot.state.accuracy_delta = -1.5
    with pytest.raises(IllegalTransitionError, match=r"1\.50 %"):
        slot.advance(S.FOSSILIZED)


def test_the_gate_to_fossilized_opens_on_nothing_that_was_measured_long_ago():
    slot = planted(S.HOLDING)
    slot.close_epoch()
    assert not slot.closed_gate(S.FOSSILIZED)  # nobody ever validates: by its gradient flow alone
    slot.state.weighed_before = 0
    slot.close_epoch()
    assert "not measured" in slot.closed_gate(S.FOSSILIZED)


@pytest.mark.parametrize("stage", [S.DORMANT, S.GERMINATED, S.TRAINING])
def test_the_host_sees_the_very_tensor_while_no_seed_blends(stage):
    slot = SeedSlot("mid", (4,)) if stage is S.DORMANT else planted(stage)
    h = torch.randn(3, 4)
    assert slot(h) is h


def test_what_the_host_sees_of_a_blending_and_of_a_holding_seed():
    h = torch.randn(3, 4)
    slot = planted(S.BLENDING)
    slot.blend(0.25)
    torch.testing.assert_close(slot(h), h + 0.25 * slot.seed(h))
    slot = planted(S.HOLDING)
    torch.testing.assert_close(slot(h), h + slot.seed(h))
    slot.bypassed = True
    assert slot(h) is h


def test_a_living_seed_is_no_part_of_the_host_until_it_is_fossilised():
    for stage, part in ((S.TRAINING, False), (S.BLENDING, False), (S.HOLDING, False), (S.FOSSILIZED, True)):
        slot = planted(stage)
        host = nn.Sequential(nn.Linear(4, 4), slot)
        assert len(list(host.parameters())) == (4 if part else 2)
        assert any("fossil" in key for key in host.state_dict()) == part


def test_modes_and_moves_of_the_host_reach_the_seed():
    slot = planted(S.HOLDING)
    host = nn.Sequential(slot).double().eval()
    assert slot.seed.weight.dtype == torch.float64
    assert not slot.seed.training
    assert host(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_non_finite_values_never_reach_the_host_and_are_counted():
    slot = planted(S.HOLDING)
    with torch.no_grad():
        slot.seed.weight[0] = torch.nan
    h = torch.randn(3, 4, requires_grad=True)
    y = slot(h)
    assert y.isfinite().all()
    assert torch.equal(y[:, 0], h[:, 0])
    y.sum().backward()
    assert h.grad.isfinite().all()
    slot.close_epoch()
    assert slot.state.masked_values >= 3
    slot.eval()(h)
    slot.close_epoch()
    assert slot.state.masked_values == 0  # of this epoch, and not of what is only looked at


@pytest.mark.parametrize("stage", [S.BLENDING, S.HOLDING])
def test_what_is_not_finite_before_it_comes_to_the_seed_is_not_counted_as_its_own(stage):
    slot = planted(stage)
    if stage is S.BLENDING:
        slot.blend(0.5)
    slot(torch.full((3, 4), torch.nan, requires_grad=True)).sum().backward()
    slot.close_epoch()
    assert slot.state.masked_values == 0


def test_pruning_frees_the_slot_after_the_embargo():
    slot = planted(S.HOLDING)
    h = torch.randn(3, 4)
    slot.advance(S.PRUNED)
    assert slot(h) is h
    assert slot.seed is None
    with pytest.raises(IllegalTransitionError):
        slot.plant(nn.Linear(4, 4), seed_id="mid-2", blueprint_id="linear")
    slot.advance(S.EMBARGOED)
    slot.advance(S.DORMANT)
    assert slot.state == SeedState("mid")
    slot.plant(nn.Linear(4, 4), seed_id="mid-2", blueprint_id="linear")


def test_the_state_says_everything_it_knows():
    state = SeedState("mid", "mid-1", "conv", S.BLENDING, 3, 0.4, 17, 0.5, 2, health=SOUND)
    expected = SeedTelemetry(
        slot_id="mid", seed_id="mid-1", blueprint_id="conv", stage=S.BLENDING, epochs_in_stage=3, alpha=0.4,
        seed_params=17, accuracy_delta=0.5, masked_values=2, measurement=Measurement.MEASURED, grad_ratio=1.0, passes=5,
    )  # fmt: skip
    assert state.telemetry() == expected
    assert SeedState("x").telemetry() == SeedTelemetry(slot_id="x")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_blending_rises_from_its_first_step_to_one(schedule, steps):
    weights = [blend_weight(schedule, step, steps) for step in range(steps)]
    assert weights[0] > 0
    assert weights == sorted(weights)
    assert weights[-1] == pytest.approx(1.0)
    assert blend_weight(schedule, steps + 5, steps) == pytest.approx(1.0)


def exchange(shape, batch=32):
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(batch, *shape, generator=generator) for _ in range(2)]
    return lambda: (pair[0].relu(), pair[1])


def test_germination_draws_from_a_stream_of_its_own():
    def born(seed: int, disturb: int) -> torch.Tensor:
        torch.manual_seed(disturb)
        slot = SeedSlot("mid", (24,))
        before = torch.get_rng_state()
        blueprint = blueprint_for("mlp", (24,))
        born, *_ = germinate(slot, blueprint, exchange=exchange((24,)), random_seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([p.flatten() for p in born.parameters()])

    assert torch.equal(born(1, 10), born(1, 20))
    assert not torch.equal(born(1, 10), born(2, 10))


@pytest.mark.parametrize(("host", "inputs"), [(DenseHost(64, 10), (5, 1, 8, 8)), (ConvHost(8, 10), (5, 1, 8, 8))])
def test_hosts_have_their_slots_where_their_shapes_say(host, inputs):
    slots = slots_of(host)
    assert list(slots) == ["early", "mid", "late"]
    fed = {}
    for slot_id, slot in slots.items():
        slot.register_forward_pre_hook(lambda _m, args, slot_id=slot_id: fed.update({slot_id: args[0].shape[1:]}))
    assert host(torch.randn(inputs)).shape == (5, 10)
    assert fed == {slot_id: slot.shape for slot_id, slot in slots.items()}


def test_random_states_replay_and_restore():
    torch.manual_seed(5)
    state = RandomState.capture()
    first = torch.rand(3)
    after = torch.rand(3)
    state.restore()
    torch.rand(3)
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), after)
    with RandomState.seeded(9).replayed():
        drawn = torch.rand(2)
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(9)))
    assert stream_seed(1, "a") != stream_seed(1, "b")
    assert 0 <= stream_seed("x") < 2**63
