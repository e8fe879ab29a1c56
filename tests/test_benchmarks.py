"""The overhead benchmark, on its smallest model and without the contenders that are no part of the project."""

from pathlib import Path

import pytest


@pytest.fixture
def _one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_overhead_measures_and_shows_a_row_for_each_contender(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import overhead_contenders as ways
    from overhead_measure import EAGER, measure
    from overhead_models import MLP
    from overhead_page import aims, table

    rows = [measure(MLP, EAGER, contender, budget=0.5) for contender in (ways.NOTHING, ways.SAPFLOW)]
    assert all(row.measured and row.pairs and row.percent.low < row.percent.high for row in rows)
    lines = table(MLP, EAGER, rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| nothing (A/A)", "| Sapflow"]
    assert {line.count("|") for line in lines[4:]} == {6}
    assert "MLP, eager, fp32: ≤ 3 %" in aims(rows, [])
