"""The calibrated policy on other people's modules: properties of its judgement, and real networks in training."""

import copy
import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from sapflow.errors import InputError
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.health.baseline import ENOUGH_PEERS
from sapflow.health.calibrated import CalibratedPolicy, chain_verdict
from sapflow.health.policy import HealthPolicy, Need, Reading, Verdict
from sapflow.telemetry.vocabulary import Measurement

VANISHING, EXPLODING = (True, False), (False, True)
HEALTHY = (False, False)


def reading(gain: float, passes: int = 10, **fields) -> Reading:
    return Reading(
        measurement=Measurement.MEASURED, passes=passes, entering_square=1.0, leaving_square=gain * gain, **fields
    )


def flags(verdict: Verdict) -> tuple[bool, bool]:
    return verdict.has_vanishing, verdict.has_exploding


def lone(readings: Iterable[Reading], policy: CalibratedPolicy | None = None) -> list[Verdict]:
    policy = policy or CalibratedPolicy()
    memory = policy.new_memory("head")
    return [policy.judge(item, memory) for item in readings]


def together(series: list[list[float]], *, passes: int = 10, live: bool = False) -> list[list[Verdict]]:
    """Peers layers.0, layers.1, …, judged epoch by epoch; `live` judges copies of their memories in between."""
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"layers.{index}") for index in range(len(series))]
    judged = []
    for gains in zip(*series, strict=True):
        if live:
            for gain, memory in zip(gains, memories, strict=True):
                policy.judge(reading(gain / 1000, passes=30), copy.deepcopy(memory))
        judged.append(
            [policy.judge(reading(gain, passes), memory) for gain, memory in zip(gains, memories, strict=True)]
        )
    return judged


# Gains on a grid of 0.7 octaves, less than 5 wide: no difference and no median is a level.
grid = st.integers(min_value=-6, max_value=0).map(lambda step: 2.0 ** (0.7 * step))
series_of_peers = st.integers(3, 5).flatmap(
    lambda peers: st.integers(5, 12).flatmap(
        lambda epochs: st.lists(st.lists(grid, min_size=epochs, max_size=epochs), min_size=peers, max_size=peers)
    )
)


@given(series_of_peers, st.floats(min_value=-3, max_value=30))
def test_drift_knows_no_scale(series, octaves):
    scaled = [[gain * 2.0**octaves for gain in gains] for gains in series]
    assert [list(map(flags, epoch)) for epoch in together(series)] == [
        list(map(flags, epoch)) for epoch in together(scaled)
    ]


@pytest.mark.parametrize("scale", [0.05, 1.0, 1e6])
def test_what_drifts_from_itself_and_from_its_peers_is_named(scale):
    series = [[scale] * 6 for _ in range(4)]
    series[2] = [scale] * 4 + [scale / 20] * 2
    last = together(series)[-1]
    assert [flags(verdict) for verdict in last] == [HEALTHY, HEALTHY, VANISHING, HEALTHY]
    assert f"1/20 of its own baseline {scale:.3g}" in last[2].evidence
    assert "of its 3 peers" in last[2].evidence


@pytest.mark.parametrize("passes", [1, 10, 100])
def test_what_all_peers_do_together_is_no_drift_of_anyone(passes):
    falling = [1.0] * 40 + [0.01] * 40
    assert {flags(verdict) for epoch in together([falling] * 4, passes=passes) for verdict in epoch} == {HEALTHY}


def test_what_was_born_apart_from_its_peers_may_stay_there():
    series = [[1.0] * 10, [1.0] * 10, [1 / 25] * 10, [1.0] * 10]
    assert {flags(verdict) for epoch in together(series) for verdict in epoch} == {HEALTHY}
    series[2] = [1 / 40] * 10
    last = together(series)[-1]
    assert [flags(verdict) for verdict in last] == [HEALTHY, HEALTHY, VANISHING, HEALTHY]
    # … and it is no standard for the others any more.
    assert "2 peers" in last[0].evidence


def test_peers_that_differ_among_themselves_allow_for_more():
    series = [[gain] * 10 for gain in (6.0, 1.0, 1 / 8, 1 / 64)]
    assert {flags(verdict) for epoch in together(series) for verdict in epoch} == {HEALTHY}


def test_a_gain_near_1_is_no_outlier_among_peers_that_are_small():
    series = [[gain] * 10 for gain in (2.0, 0.02, 0.02, 0.02)]
    assert {flags(verdict) for epoch in together(series) for verdict in epoch} == {HEALTHY}


def test_alone_it_takes_more_to_be_called_drifting():
    assert flags(lone(map(reading, [1.0] * 3 + [1 / 30] * 5))[-1]) == HEALTHY
    assert flags(lone(map(reading, [1.0] * 3 + [1 / 40] * 5))[-1]) == VANISHING
    assert flags(lone(map(reading, [1.0] * 3 + [40.0] * 5))[-1]) == EXPLODING


@given(
    st.lists(st.floats(min_value=0.25, max_value=4.0), min_size=1, max_size=6),
    st.integers(1, 100),
    st.floats(min_value=0.0, max_value=2.0),
)
def test_what_stays_as_it_was_born_is_never_flagged(gains, passes, rms):
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"blocks.{index}") for index in range(len(gains))]
    for _ in range(12):
        for gain, memory in zip(gains, memories, strict=True):
            steady = reading(gain, passes, output_input_rms=rms, parameter_liveness=1.0, parameters_moved=True)
            assert flags(policy.judge(steady, memory)) == HEALTHY


def test_gain_explodes_only_with_the_signal():
    for born in (8.0, 1.0):
        for later, rms, flag in ((30.0, 1.9, HEALTHY), (30.0, 2.1, EXPLODING), (8.0, 2.1, EXPLODING)):
            expected = HEALTHY if (born, later) == (1.0, 8.0) else flag  # what was born sound may learn as much
            readings = [reading(born, output_input_rms=1.0)] * 4 + [reading(later, output_input_rms=rms)]
            assert flags(lone(readings)[-1]) == expected, (born, later, rms)


def test_an_exploding_module_is_known_before_it_takes_the_others_along():
    """Within some ten passes of such growth all is NaN, and nobody can be named any more."""
    burst = reading(70.0, 5, output_input_rms=70.0)
    assert flags(lone([burst])[0]) == EXPLODING
    assert flags(lone([reading(70.0, 4, output_input_rms=70.0)])[0]) == HEALTHY  # a few odd passes are no alarm


def test_an_exploding_module_is_back_short_of_three_quarters_of_its_limits():
    policy = CalibratedPolicy()
    memory = policy.new_memory("head")
    for gain, rms, flag in ((8, 3, EXPLODING), (3.2, 1.7, EXPLODING), (3.2, 1.4, HEALTHY), (8, 3, EXPLODING)):
        assert flags(policy.judge(reading(gain, 40, output_input_rms=rms), memory)) == flag


@pytest.mark.parametrize("peers", [0, 3])
@given(data=st.data())
def test_between_the_two_levels_nothing_flaps(peers, data):
    low, high = (3.1, 4.9) if peers else (4.1, 9.0)
    octaves_down = data.draw(st.lists(st.floats(low, high), min_size=10, max_size=60))
    gains = [1.0] * 3 + [2.0**-octaves for octaves in octaves_down]
    flagged = [epoch[0].has_vanishing for epoch in together([gains] + [[1.0] * len(gains)] * peers, passes=20)]
    assert sum(before != after for before, after in pairwise(flagged)) <= 1


def test_an_alarm_is_raised_and_cleared_by_twenty_passes_in_a_row():
    def passes_until(changed: bool, gain: float, policy: CalibratedPolicy, memory: object) -> int:
        for count in range(1, 100):
            if policy.judge(reading(gain, passes=1), memory).has_vanishing is changed:
                return count
        return 0

    policy = CalibratedPolicy()
    memory = policy.new_memory("head")
    for _ in range(30):
        policy.judge(reading(1.0, passes=1), memory)
    for _ in range(5):  # never long enough
        policy.judge(reading(0.01, passes=19), memory)
        policy.judge(reading(1.0, passes=1), memory)
    assert passes_until(True, 0.01, policy, memory) == 20
    assert passes_until(False, 1.0, policy, memory) == 20


@settings(max_examples=30)
@given(series_of_peers)
def test_judging_the_open_epoch_on_copies_changes_nothing(series):
    assert together(series, live=True) == together(series)


def test_a_copy_is_judged_by_the_same_peers():
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"layers.{index}") for index in range(3)]
    for _ in range(5):
        for memory in memories:
            policy.judge(reading(0.4), memory)
    live = policy.judge(reading(0.4), copy.deepcopy(memories[0]))
    assert live == policy.judge(reading(0.4), memories[0])
    assert "2 peers" in live.evidence


def test_memory_is_bounded_and_a_peer_that_is_gone_counts_no_more():
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"layers.{index}") for index in range(3)]
    for count in range(3000):
        for memory in memories:
            verdict = policy.judge(reading(min(count / 100, 0.5), passes=1, parameters_moved=True), memory)
    assert all(len(memory.recent) <= 30 and len(memory.alarms) < 10 for memory in memories)
    assert "2 peers" in verdict.evidence
    survivor = memories.pop()
    del memories, memory
    assert "peers" not in policy.judge(reading(0.5), survivor).evidence


@pytest.mark.parametrize("experts", [40, 1500])
def test_among_many_peers_a_module_is_compared_with_some_from_first_to_last(experts):
    deeper_is_less = [2.0 ** (-index / experts) for index in range(experts)]
    healthy, outlying = together([[gain] * 4 for gain in deeper_is_less] + [[2.0**-9] * 4])[-1][-2:]
    assert flags(healthy) == HEALTHY
    compared = int(re.search(r"median of its (\d+) peers 0\.7", healthy.evidence)[1])
    assert min(experts, ENOUGH_PEERS) - 1 <= compared <= 2 * ENOUGH_PEERS
    assert flags(outlying) == VANISHING


def test_one_pass_of_a_hundred_with_a_huge_gradient_is_one_pass():
    histogram = [0] * 34
    histogram[16], histogram[3] = 99, 1  # 99 passes at half an octave below 1, one at 2^-14
    spiked = reading(6e-5, 100, min_ratio=6e-5, max_ratio=0.75, last_ratio=0.75, histogram=tuple(histogram))
    assert {flags(verdict) for verdict in lone([reading(0.7, 100)] * 2 + [spiked] * 3)} == {HEALTHY}


@pytest.mark.parametrize("run", [0, 1, 2, 3])
def test_non_finite_passes_mean_what_they_mean_in_the_record(run):
    overflowed = Reading(
        measurement=Measurement.NON_FINITE if run else Measurement.UNMEASURED,
        non_finite_passes=run,
        longest_non_finite_run=run,
    )
    record, calibrated = HealthPolicy(), CalibratedPolicy()
    assert calibrated.judge(overflowed, calibrated.new_memory("x")) == record.judge(overflowed, None)


@pytest.mark.parametrize("state", [state for state in Measurement if state is not Measurement.MEASURED])
def test_what_was_not_measured_is_neither_healthy_nor_sick(state):
    for verdict in lone([Reading(measurement=state, passes=0)] * 50):
        assert (flags(verdict), verdict.evidence) == (HEALTHY, "")


def test_a_first_layer_is_judged_by_its_parameters_alone():
    dead = Reading(measurement=Measurement.INPUT_DETACHED, parameter_liveness=0.0, parameters_moved=False)
    last = lone([dead] * 60)[-1]
    assert flags(last) == VANISHING
    assert last.evidence.startswith("0% of its parameter tensors")


def test_few_live_parameters_are_a_fault_unless_all_peers_are_made_so():
    few = reading(1.0, parameter_liveness=0.3, parameters_moved=True)
    assert flags(lone([few] * 10)[-1]) == VANISHING
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"layers.{index}") for index in range(3)]
    for _ in range(10):
        last = [policy.judge(few, memory) for memory in memories]
    assert {flags(verdict) for verdict in last} == {HEALTHY}


def test_parameters_that_die_are_a_fault_and_come_back():
    verdicts = lone(
        reading(1.0, parameter_liveness=alive, parameters_moved=True)
        for alive in [1.0] * 5 + [0.5] * 3 + [0.54] * 3 + [0.75] * 2
    )
    assert [verdict.has_vanishing for verdict in verdicts] == [False] * 6 + [True] * 6 + [False]


def test_each_policy_says_what_it_needs():
    assert HealthPolicy().needs == frozenset()
    assert CalibratedPolicy().needs == {Need.OUTPUT_INPUT_RMS, Need.PARAMETER_LIVENESS}


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_a_chain_at_the_ends_of_its_depth_band_has_gain_a_hundredth_and_a_hundred(depth):
    for edge, flag in ((0.01, VANISHING), (100.0, EXPLODING)):
        inside, outside = (edge ** ((1 + nudge) / depth) for nudge in (-1e-3, 1e-3))
        policy = CalibratedPolicy(depth=depth)
        assert flags(lone([reading(inside)] * 5, policy)[-1]) == HEALTHY
        last = lone([reading(outside)] * 5, policy)[-1]
        assert flags(last) == flag
        assert f"one of {depth} blocks" in last.evidence
        assert flags(chain_verdict({str(block): outside for block in range(depth)})) == flag
        assert flags(chain_verdict({str(block): inside for block in range(depth)})) == HEALTHY


def test_a_block_out_of_its_depth_band_is_back_at_nine_tenths_of_it():
    gains = [0.01 ** (share / 12) for share in (0.5, 1.1, 0.95, 0.85)]
    verdicts = lone((reading(gain, 40) for gain in gains), CalibratedPolicy(depth=12))
    assert [verdict.has_vanishing for verdict in verdicts] == [False, True, True, False]


def test_a_chain_names_its_gain_and_who_did_most():
    verdict = chain_verdict({"h.0": 0.5, "h.1": 0.002, "h.2": 2.0})
    assert flags(verdict) == VANISHING
    assert "0.002 over a chain of 3" in verdict.evidence
    assert "h.1: 0.002" in verdict.evidence
    assert flags(chain_verdict({"h.0": 0.5, "h.1": 0.0})) == VANISHING
    assert chain_verdict({}) == Verdict()


def test_a_depth_below_one_is_bad_input():
    with pytest.raises(InputError, match="depth=0"):
        CalibratedPolicy(depth=0)


# From here on, real networks on real images; readings are made from autograd's own gradients, not by the monitor.


@dataclass(frozen=True)
class Pass:
    entering: float
    leaving: float
    output_input_rms: float
    liveness: float
    moved: bool

    @property
    def finite(self) -> bool:
        return math.isfinite(self.entering) and math.isfinite(self.leaving)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


class Host(nn.Module):
    """Stem, blocks and head; a block is a branch beside a skip, or a link of a chain."""

    def __init__(self, blocks: list[nn.Module], *, width: int = 64, chain: bool = False, images: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1) if images else nn.Linear(64, width)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 10)
        self.chain, self.images = chain, images

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.view(-1, 1, 8, 8) if self.images else x)
        for block in self.blocks:
            h = block(h) if self.chain else h + block(h)
        return self.head(h.mean((2, 3)) if self.images else h)


def train(host: Host, passes: int, optimizer: torch.optim.Optimizer, damage: Callable[[], None]) -> list[list[Pass]]:
    """Every pass of every block; `damage` is done half way."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def before(block: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        alias = args[0].view_as(args[0])
        alias.retain_grad()
        return alias

    def after(block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen[block] = args[0], output

    for block in host.blocks:
        block.register_forward_pre_hook(before)
        block.register_forward_hook(after)
    born = {parameter: parameter.detach().clone() for parameter in host.blocks.parameters()}
    images, labels = digits()
    chosen = torch.randint(len(images), (passes, 32), generator=torch.Generator().manual_seed(0))
    recorded = []
    for index, batch in enumerate(chosen):
        if index == passes // 2:
            damage()
        optimizer.zero_grad()
        F.cross_entropy(host(images[batch]), labels[batch]).backward()
        largest = max(float(parameter.grad.norm()) for parameter in host.blocks.parameters())
        optimizer.step()
        recorded.append([_pass_of(block, *seen[block], born, largest) for block in host.blocks])
    return recorded


def _pass_of(block: nn.Module, x: Tensor, y: Tensor, born: dict[nn.Parameter, Tensor], largest: float) -> Pass:
    parameters = list(block.parameters())
    return Pass(
        entering=float(y.grad.norm()),
        leaving=float(x.grad.norm()),
        output_input_rms=float(y.detach().square().mean().sqrt() / x.detach().square().mean().sqrt()),
        liveness=sum(float(parameter.grad.norm()) > 1e-4 * largest for parameter in parameters) / len(parameters),
        moved=any(not torch.equal(parameter, born[parameter]) for parameter in parameters),
    )


def reading_of(passes: list[Pass]) -> Reading:
    fine = [item for item in passes if item.finite and item.entering > 0]
    bad = sum(not item.finite for item in passes)
    ratios = [item.leaving / item.entering for item in fine]
    histogram = [0] * 34
    for ratio in ratios:
        histogram[0 if ratio == 0 else min(max(math.floor(math.log2(ratio)), -17), 16) + 17] += 1
    return Reading(
        measurement=Measurement.MEASURED if fine else Measurement.NON_FINITE if bad else Measurement.NO_GRADIENT,
        passes=len(fine),
        non_finite_passes=bad,
        longest_non_finite_run=bad,
        entering_square=sum(item.entering**2 for item in fine),
        leaving_square=sum(item.leaving**2 for item in fine),
        min_ratio=min(ratios, default=0.0),
        max_ratio=max(ratios, default=0.0),
        last_ratio=ratios[-1] if fine else 0.0,
        histogram=tuple(histogram) if fine else (),
        output_input_rms=sum(item.output_input_rms for item in fine) / len(fine) if fine else None,
        parameter_liveness=sum(item.liveness for item in passes) / len(passes),
        parameters_moved=passes[-1].moved,
    )


def judged(recorded: list[list[Pass]], epoch: int) -> list[tuple[int, list[Verdict]]]:
    """The verdicts on all blocks after each epoch of so many passes, with the passes gone by."""
    policy = CalibratedPolicy()
    memories = [policy.new_memory(f"blocks.{index}") for index in range(len(recorded[0]))]
    verdicts = []
    for start in range(0, len(recorded), epoch):
        passes = recorded[start : start + epoch]
        readings = [reading_of(list(block)) for block in zip(*passes, strict=True)]
        verdicts.append((start + len(passes), [policy.judge(*pair) for pair in zip(readings, memories, strict=True)]))
    return verdicts


def linear_relu() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU())


def linear_relu_linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def layer_norm_mlp() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))


def conv_group_norm_relu() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())


def zero_last() -> nn.Sequential:
    return zeroed(layer_norm_mlp(), 3)


def lora() -> nn.Sequential:
    return zeroed(nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)), 1)


def double_zero() -> nn.Sequential:
    return zeroed(lora(), 0)


def batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())


def sigmoids(layers: int) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(64, 64), nn.Sigmoid())))


def tiny() -> nn.Sequential:
    return scaled(linear_relu_linear(), 1e-3)


def dead_relu() -> nn.Sequential:
    block = linear_relu_linear()
    nn.init.constant_(block[0].bias, -100.0)
    return block


def orthogonal_times_8() -> nn.Sequential:
    block = nn.Sequential(nn.Linear(64, 64))
    nn.init.orthogonal_(block[0].weight, gain=8.0)
    return block


def zeroed(block: nn.Sequential, layer: int) -> nn.Sequential:
    for parameter in block[layer].parameters():
        nn.init.zeros_(parameter)
    return block


def scaled(module: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module


def adam(host: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(host.parameters(), 1e-3)


def sgd(host: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(host.parameters(), 0.02, momentum=0.5)


def slow_sgd(host: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(host.parameters(), 0.005)


@pytest.mark.parametrize("optimizer", [adam, sgd])
@pytest.mark.parametrize(
    ("block", "count", "host"),
    [
        (linear_relu, 4, {}),
        (linear_relu, 3, {"chain": True}),
        (linear_relu_linear, 1, {}),
        (layer_norm_mlp, 3, {}),
        (layer_norm_mlp, 1, {}),
        (conv_group_norm_relu, 3, {"width": 8, "images": True}),
        (zero_last, 3, {}),
        (zero_last, 1, {}),
        (lora, 3, {}),
        (lora, 1, {}),
        (batch_norm, 3, {}),
        (batch_norm, 2, {"chain": True}),
    ],
)
def test_healthy_blocks_are_never_flagged_in_training(block, count, host, optimizer):
    torch.manual_seed(1)
    model = Host([block() for _ in range(count)], **host)
    recorded = train(model, 160, optimizer(model), damage=lambda: None)
    for epoch in (1, 10, 40):
        for passes, verdicts in judged(recorded, epoch):
            assert {flags(verdict) for verdict in verdicts} == {HEALTHY}, (epoch, passes, verdicts)


@pytest.mark.parametrize("epoch", [1, 10])
@pytest.mark.parametrize(
    ("blocks", "optimizer", "flag", "within", "cause"),
    [
        ([linear_relu, lambda: sigmoids(3), linear_relu, linear_relu], adam, VANISHING, 50, "of its 3 peers"),
        ([layer_norm_mlp, lambda: sigmoids(5), layer_norm_mlp], sgd, VANISHING, 70, "(limit 0.001)"),
        ([linear_relu_linear, tiny, linear_relu_linear], sgd, VANISHING, 70, "(limit 0.001)"),
        ([linear_relu_linear, dead_relu, linear_relu_linear], adam, VANISHING, 70, "25% of its parameter tensors"),
        ([lora, double_zero, lora], adam, VANISHING, 70, "0% of its parameter tensors"),
        ([double_zero, double_zero, double_zero], adam, VANISHING, 70, "0% of its parameter tensors"),
        ([linear_relu, orthogonal_times_8, linear_relu], adam, EXPLODING, 20, "output/input RMS 8."),
    ],
)
def test_a_block_that_is_born_sick_is_flagged(blocks, optimizer, flag, within, cause, epoch):
    torch.manual_seed(1)
    model = Host([block() for block in blocks])
    for passes, verdicts in judged(train(model, 80, optimizer(model), damage=lambda: None), epoch):
        if passes >= within:
            assert flags(verdicts[1]) == flag, (passes, verdicts[1])
            assert cause in verdicts[1].evidence


@pytest.mark.parametrize("epoch", [1, 10])
@pytest.mark.parametrize(
    ("block", "count", "optimizer", "damage", "flag", "cause"),
    [
        # One weight of a block with peers, then all weights of a block that has none.
        (linear_relu, 4, slow_sgd, lambda block: scaled(block[0], 1e-4), VANISHING, "own baseline"),
        (linear_relu_linear, 1, sgd, lambda block: scaled(block, 1e-4), VANISHING, "(limit 0.001)"),
        (linear_relu, 4, adam, lambda block: scaled(block[0], 50.0), EXPLODING, "output/input RMS"),
        (layer_norm_mlp, 3, adam, lambda block: scaled(block[3], 50.0), EXPLODING, "output/input RMS"),
        # A bias that closes every ReLU: the branch is dead although its last bias learns.
        (linear_relu_linear, 4, adam, lambda block: nn.init.constant_(block[0].bias, -100.0), VANISHING, "25% of its"),
    ],
)
def test_a_block_that_falls_sick_in_training_is_flagged_within_twenty_passes(
    block, count, optimizer, damage, flag, cause, epoch
):
    torch.manual_seed(1)
    model = Host([block() for _ in range(count)])
    recorded = train(model, 140, optimizer(model), damage=lambda: damage(model.blocks[0]))
    verdicts = dict(judged(recorded, epoch))
    assert flags(verdicts[70][0]) == HEALTHY
    assert flags(verdicts[90][0]) == flag, verdicts[90][0]
    assert cause in verdicts[90][0].evidence


def test_a_residual_block_whose_gain_hides_a_dead_branch_is_known_by_its_parameters():
    class Residual(nn.Module):
        def __init__(self, branch: nn.Module) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, h: Tensor) -> Tensor:
            return h + self.branch(h)

    torch.manual_seed(1)
    model = Host([Residual(linear_relu_linear()), Residual(dead_relu()), Residual(linear_relu_linear())], chain=True)
    recorded = train(model, 60, adam(model), damage=lambda: None)
    assert {item.leaving / item.entering for _, item, _ in recorded} == {1.0}
    last = judged(recorded, 1)[-1][1]
    assert [flags(verdict) for verdict in last] == [HEALTHY, VANISHING, HEALTHY]
    assert last[1].evidence.startswith("25% of its parameter tensors")


def test_a_bias_before_a_normalisation_that_never_gets_a_gradient_is_no_fault():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)

        def forward(self, h: Tensor) -> Tensor:
            return self.norm(self.linear(h)).relu()

    torch.manual_seed(1)
    model = Host([])
    normed = Normed()
    model.blocks = nn.ModuleList([normed.linear])
    model.head = nn.Sequential(normed.norm, nn.ReLU(), model.head)
    model.chain = True
    recorded = train(model, 100, sgd(model), damage=lambda: None)
    assert {item.liveness for (item,) in recorded} == {0.5}
    assert {flags(verdict) for _, (verdict,) in judged(recorded, 1)} == {HEALTHY}


def test_a_branch_at_zero_is_in_grace_until_it_moves_and_is_told_so():
    waiting = reading(0.0, parameter_liveness=0.5, parameters_moved=False)
    verdicts = lone([waiting] * 100)
    assert {flags(verdict) for verdict in verdicts} == {HEALTHY}
    assert "have not moved yet" in verdicts[-1].evidence
    stuck = reading(0.0, parameter_liveness=0.5, parameters_moved=True)
    assert flags(lone([waiting] * 10 + [stuck] * 7)[-1]) == VANISHING


def test_a_branch_that_rises_from_zero_is_held_to_what_it_reached():
    def line(first: int, last: int) -> list[Reading]:
        return [reading(1e-5 * count, 1, parameter_liveness=1.0, parameters_moved=True) for count in range(first, last)]

    grown = line(0, 2000)
    assert {flags(verdict) for verdict in lone(grown)} == {HEALTHY}
    last = lone(grown + [reading(2e-6, 1, parameter_liveness=1.0, parameters_moved=True)] * 10)[-1]
    assert flags(last) == VANISHING
    assert "(limit 0.001)" in last.evidence


def test_a_vanished_gain_is_back_beyond_twice_its_limit():
    flagged = [verdict.has_vanishing for verdict in lone(map(reading, [0.005] * 4 + [9e-4, 1.5e-3, 2.5e-3]))]
    assert flagged == [False] * 4 + [True, True, False]


def test_the_monitor_judges_by_it_live_and_at_the_end_of_an_epoch():
    torch.manual_seed(1)
    model = Host([linear_relu() for _ in range(3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with GradientMonitor(dict(model.blocks.named_children()), policy=CalibratedPolicy()) as monitor:
        for _ in range(4):
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(8, 64)).square().sum().backward()
                optimizer.step()
                monitor.step()
            live, closed = monitor.health(), monitor.close_epoch()
            assert {name: health.evidence for name, health in live.items()}.keys() == closed.keys()
        assert all(not (health.has_vanishing or health.has_exploding) for health in closed.values())
        assert "2 peers" in closed["0"].evidence
