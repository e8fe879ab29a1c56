"""benchmarks/history.py on its smallest run: it measures, and its two ways of asking agree."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sapflow.telemetry.run_directory import JOURNAL_NAME


@pytest.fixture
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.usefixtures("_benchmarks")
def test_history_measures_sizes_and_times(tmp_path):
    import history

    page = history.measure(tmp_path / "run", 1)
    assert "6,400 samples (rows of `gradients`)\nin 640 sample events" in page
    assert "MB of Parquet a million samples" in page
    with closing(sqlite3.connect(tmp_path / "run" / JOURNAL_NAME)) as connection:
        (sampled,) = connection.execute("SELECT count(*) FROM events WHERE type = 'GRADIENT_SAMPLED'").fetchone()
    assert sampled == 640
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(rows) == 16
    assert all(row.count("|") in (4, 5) for row in rows)


@pytest.mark.usefixtures("_benchmarks")
def test_the_answers_that_are_timed_are_compared(tmp_path, monkeypatch):
    import history
    import history_run

    history_run.write(tmp_path / "run", 1)
    history.check(tmp_path / "run")
    monkeypatch.setattr(history, "QUANTILES", history.QUANTILES.replace("0.95", "0.9"))
    with pytest.raises(AssertionError):
        history.check(tmp_path / "run")
