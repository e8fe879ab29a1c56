"""The pruning benchmark, small: arms that differ in what they prune, on the same pools."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from few_digits import load_few

pytestmark = pytest.mark.usefixtures("_benchmarks")
EPOCHS = 16


@pytest.fixture(scope="module")
def _benchmarks():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(_benchmarks):
    import pruning
    from pruning import ARMS, trial

    pruning.TASK = replace(pruning.TASK, load=load_few)
    return {(0.6, name): [trial(name, 0.6, number, 0.05, EPOCHS) for number in range(2)] for name in ARMS}


def wasted(results, arm):
    return sum(one.wasted for one in results[0.6, arm.name])


def test_acting_on_gradient_flow_frees_the_slots_of_what_cannot_learn(results):
    from pruning import ACCURACY, CALIBRATED, NEVER, ORACLE, OURS, OURS_AND_ACCURACY

    assert wasted(results, ORACLE) == 0
    for arm in (OURS, OURS_AND_ACCURACY, CALIBRATED):
        assert wasted(results, arm) < wasted(results, ACCURACY) / 2
        assert wasted(results, arm) < wasted(results, NEVER) / 2
    assert all(one.pruned == 0 for one in results[0.6, NEVER.name])
    assert all(one.healthy_pruned == 0 for one in results[0.6, OURS.name])


def test_a_repetition_is_the_same_again_and_its_pool_is_that_of_every_arm(results):
    from pruning import NAMES, OURS, pool_of, trial

    assert trial(OURS.name, 0.6, 1, 0.05, EPOCHS) == results[0.6, OURS.name][1]
    pool = pool_of(0.6, 1)
    assert sum(one.blueprint_id in NAMES for one in pool) == 6
    assert [one.blueprint_id for one in pool] == [one.blueprint_id for one in pool_of(0.6, 1)]


def test_the_page_has_a_row_for_each_arm_and_each_aim(results):
    from pruning import ARMS, page

    text = page([0.6], 2, EPOCHS, 60.0, results)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert set(ARMS) <= set(rows)
    assert sum(row.startswith("60% faulty:") for row in rows) == 3
