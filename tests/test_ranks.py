"""Gradient flow over several ranks: real processes on loopback, compared with one process and torch.autograd.grad.

Each world is started once and runs all of its cases (ranks_worker.py); the tests here look at what its ranks wrote.
"""

import json
import signal

import pytest
import torch

from commands import Forked, program, wait_until

BF16_TOLERANCE = 1e-2


def run_world(world, scratch):
    """Starts `world` ranks; gives a dict of results by case for each of them, and what they said on stderr."""
    ranks = [
        Forked([str(rank), str(world), str(scratch)], scratch, code=program("ranks_worker.py")) for rank in range(world)
    ]
    try:
        wait_until(lambda: all(rank.poll() is not None for rank in ranks), "the end of all ranks")
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
    done = [rank.finish() for rank in ranks]
    assert [one.stdout + one.stderr for one in done] == [""] * world
    return [json.loads((scratch / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_world(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run_world(4, tmp_path_factory.mktemp("four"))


def of_case(results, name):
    """What each rank has to say of one case."""
    outcomes = [of_rank[name] for of_rank in results]
    for outcome in outcomes:
        assert "error" not in outcome, outcome["error"]
    return outcomes


def assert_that_of_the_global_batch(results, name, tolerance):
    for outcome in of_case(results, name):
        assert outcome["seen"]
        for module, seen in outcome["seen"].items():
            assert seen == pytest.approx(outcome["expected"][module], rel=tolerance), module


@pytest.mark.parametrize(
    "name",
    ["ddp", "ddp_static_graph", "ddp_unused_parameters", "ddp_no_sync", "fsdp", "fsdp_attached_before", "fsdp_bf16",
     "fsdp_checkpoint", "tensor_parallel", "tensor_parallel_attached_before", "tensor_parallel_prepared_input",
     "sequence_parallel", "watching_with_a_group", "ddp_compiled_block", "modules_attached_within_an_epoch",
     "tensor_parallel_compiled"],
)  # fmt: skip
def test_every_rank_of_two_holds_the_gain_of_the_global_batch(two_ranks, name):
    assert_that_of_the_global_batch(two_ranks, name, BF16_TOLERANCE if name == "fsdp_bf16" else 1e-5)


@pytest.mark.parametrize(
    "name", ["fsdp_and_tensor_parallel", "fsdp_and_tensor_parallel_block_alone", "fsdp_and_sequence_parallel"]
)
def test_every_rank_of_a_mesh_holds_the_gain_of_the_global_batch(four_ranks, name):
    assert_that_of_the_global_batch(four_ranks, name, 1e-5)


def test_losses_and_gradients_are_the_same_to_the_bit(two_ranks):
    assert of_case(two_ranks, "ddp_to_the_bit") == [{"same": True}] * 2


def test_each_epoch_has_its_own_passes(two_ranks):
    for outcome in of_case(two_ranks, "ddp_second_epoch"):
        assert outcome["passes"] == [1, 2]
        assert outcome["entering"] == pytest.approx(outcome["expected"], rel=1e-5)


def test_what_is_attached_within_an_epoch_has_the_passes_since(two_ranks):
    assert [outcome["late"] for outcome in of_case(two_ranks, "modules_attached_within_an_epoch")] == [2, 2]


def test_display_drains_of_one_rank_alone_communicate_with_nobody(two_ranks):
    first, second = of_case(two_ranks, "display_drains_stay_local")
    assert first == {"collectives": 0, "local": True, "samples": 1, "combined": True}
    assert second == first | {"samples": 0}


@pytest.mark.parametrize("name", ["other_names_stay_local", "other_passes_stay_local"])
def test_ranks_that_do_not_agree_keep_their_own_and_say_so_once(two_ranks, name):
    for outcome in of_case(two_ranks, name):
        assert outcome["local"]
        assert len(outcome["said"]) == 1
        assert "do not agree" in outcome["said"][0]


def test_a_pass_that_is_open_on_one_rank_alone(two_ranks):
    assert of_case(two_ranks, "a_pass_left_open_on_one_rank") == [{"passes": 2}] * 2


def test_a_non_finite_pass_of_one_rank_is_one_of_all(two_ranks):
    expected = {"passes": 1, "non_finite": 1, "exploding": True}
    assert of_case(two_ranks, "a_non_finite_pass_of_one_rank_is_one_of_all") == [expected] * 2


def test_a_rank_that_is_not_in_the_group_is_refused(two_ranks):
    member, stranger = of_case(two_ranks, "a_rank_outside_the_group")
    assert member["refused"] == ""
    assert "not in it" in stranger["refused"]


def test_partial_gradients_are_named_where_ranks_may_not_meet(two_ranks):
    first, second = of_case(two_ranks, "partial_gradients_without_a_group")
    assert second == {"seen": [], "said": 0}
    ((measurement, reason),) = first["seen"]
    assert measurement == "PROBE_LOST"
    assert "process_group" in reason
    assert first["said"] == 1


@pytest.mark.parametrize("name", ["vital_signs_ddp", "vital_signs_fsdp"])
def test_vital_signs_are_those_of_the_global_batch(two_ranks, name):
    first, second = of_case(two_ranks, name)
    assert first == second
    assert first["signs"]["block"][0] == pytest.approx(first["rms"], rel=1e-5)
    assert [liveness for _, liveness in first["signs"].values()] == [1.0] * 3


def test_a_rank_may_watch_on_its_own_where_parameters_are_sharded(two_ranks):
    assert of_case(two_ranks, "one_rank_watches_in_fsdp") == [{"signs": [1.0]}, {"signs": []}]


def test_rank_0_keeps_the_journal(two_ranks):
    outcomes = of_case(two_ranks, "watching_with_a_group")
    assert [outcome["journal"] for outcome in outcomes] == [True, False]
    assert [(outcome["epochs"], outcome["said"]) for outcome in outcomes] == [(1, [])] * 2


def test_watching_a_rank_alone_is_said(two_ranks):
    for outcome in of_case(two_ranks, "watching_a_rank_alone"):
        assert ["process_group" in message for message in outcome["said"]] == [True]


@pytest.mark.parametrize(
    "name", ["an_error_in_the_loop_meets_nobody", "watching_again_into_a_directory_meets_nobody"]
)  # fmt: skip
def test_closing_at_a_moment_of_ones_own_meets_nobody(two_ranks, name):
    assert [outcome["collectives"] for outcome in of_case(two_ranks, name)] == [0, 0]


def test_a_collective_that_raises_is_the_last_one(two_ranks):
    for outcome in of_case(two_ranks, "a_collective_that_raises"):
        assert outcome["local"]
        assert len(outcome["said"]) == outcome["collectives"] == 1


def test_all_ranks_hold_the_seed_that_one_process_would_hold(two_ranks):
    first, second = of_case(two_ranks, "growing")
    alone = first.pop("alone")
    assert first == second
    assert (first["stage"], first["accuracy"], first["train_loss"]) == ("FOSSILIZED", 10.5, 1.05)
    assert len(first["weights"]) == len(alone["weights"]) > 0
    for mine, expected in zip(first["weights"], alone["weights"], strict=True):
        for tensor, reference in zip(mine, expected, strict=True):
            torch.testing.assert_close(torch.tensor(tensor), torch.tensor(reference), rtol=1e-4, atol=1e-6)
    assert first["ratio"] == pytest.approx(alone["ratio"], rel=1e-4)


def test_all_ranks_hold_the_same_seed_where_the_ddp_model_is_compiled_too(two_ranks):
    first, second = of_case(two_ranks, "growing_in_what_is_compiled_around_ddp")
    assert first["weights"] == second["weights"]


def test_growing_what_is_inside_of_a_ddp_model_is_warned_of(two_ranks):
    for outcome in of_case(two_ranks, "growing_inside_of_ddp"):
        of_ddp, (of_inside,) = outcome["said"]
        assert of_ddp == []
        assert "give the DDP model" in of_inside


def test_ranks_whose_batches_take_other_ways_through_a_seed_hold_the_same(two_ranks):
    first, second = of_case(two_ranks, "a_seed_that_ranks_use_in_part")
    assert first["weights"] == second["weights"]
    assert first["refused"] == second["refused"] == ["DORMANT"]
    assert first["called"] == second["called"] == 1
    assert ["nobody to notify" in line for line in first["said"]] == [True]
    assert second["said"] == []


def test_a_seed_that_breaks_on_one_rank_is_given_up_on_all(two_ranks):
    first, second = of_case(two_ranks, "a_seed_that_breaks_on_one_rank")
    assert first["pruned"] == second["pruned"] == [1, "broken"]
    assert first["shadows"] == second["shadows"] == 2
    assert first["said"][-1].endswith("fails in its shadow: on another rank")
    assert second["said"][-1].endswith("fails in its shadow: RuntimeError: no room")


def test_what_is_asked_of_the_first_rank_is_done_on_all(two_ranks):
    first, second = of_case(two_ranks, "asked_by_hand")
    assert first["stages"] == second["stages"] == ["TRAINING", "TRAINING", "PRUNED"]
    assert first["pruned"] == second["pruned"] == [2, "by hand"]
    assert (first["kept"], second["kept"]) == (True, False)


def test_a_peer_that_died_leaves_the_rank_its_own(two_ranks):
    survivor, _ = of_case(two_ranks, "a_peer_that_died")
    assert survivor["local"]
    assert len(survivor["said"]) == 1
