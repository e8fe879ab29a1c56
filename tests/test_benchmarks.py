"""The overhead benchmark, on its smallest model and without the contenders that are no part of the project."""

from dataclasses import replace
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


@pytest.mark.usefixtures("_one_thread")
def test_what_is_timed_from_within_is_a_part_of_the_step(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from overhead_inside import CYCLES, inside
    from overhead_models import MLP
    from overhead_page import timed_inside

    one = inside(replace(MLP, cycle=4))
    assert len(one.own) == CYCLES
    assert all(0 < own < one.step for own in one.own)
    mean, low, high = one.percent
    assert 0 < low <= mean <= high < 100
    assert [line.count("|") for line in timed_inside([one]).splitlines()] == [4, 4, 4]


def test_sanctum_is_measured_on_a_journal_that_opens(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import sanctum_data

    monkeypatch.setattr(sanctum_data, "ROUNDS", 1)
    monkeypatch.setattr(sanctum_data, "EPOCHS", 4)
    monkeypatch.setattr(sanctum_data, "LOOKS", 3)
    rows = [*sanctum_data.taking_in(), *sanctum_data.looking(), *sanctum_data.opening(5_000)]
    assert all(row.value > 0 for row in rows)
    assert {row.markdown().count("|") for row in rows} == {5}
    assert any("5,000 events" in row.what for row in rows)


@pytest.mark.usefixtures("_one_thread")
def test_exporters_measures_what_it_shows(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import exporters

    monkeypatch.setattr(exporters, "SAYING_SECONDS", 0.5)
    rows = [exporters.beside(name, [], pairs=1, seconds=0.1) for name in (exporters.NOBODY, "jsonlines")]
    owns = [exporters.own("jsonlines", [], events=50)]
    assert rows[1].events > 0
    assert all(row.thread[1] <= row.thread[0] <= row.thread[2] for row in rows)
    assert owns[0].start > 0
    assert 5 < owns[0].memory[0] < 500
    known = [replace(rows[1], name="light", share=0.25), replace(rows[1], name="heavy", share=1.5)]
    assert "within the aim for: light. Beyond it for: heavy." in "\n".join(exporters.verdict(known))
    lines = exporters.page(rows, owns, 1, 0.1, 50).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| nothing", "| jsonlines"))] == [
        "| nothing (A/A)", "| jsonlines", "| jsonlines"
    ]  # fmt: skip
