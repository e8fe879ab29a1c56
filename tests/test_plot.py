"""Charts draw what the tables say: values are read back from the axes and compared with what DuckDB says of the run."""

import math
import random
import sys
from itertools import pairwise, product
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import FillBetweenPolyCollection

import sapflow
from commands import finish
from history_runs import HOSTILE, difficult_run, epoch, germinated, hostile_run, run_of, seed
from sapflow.history import plot
from sapflow.history.plot.comparison import interval
from sapflow.history.plot.palette import LOOKS, shown
from sapflow.history.plot.thinning import thinned
from sapflow.telemetry.vocabulary import Measurement, SeedStage

OF_ONE_RUN = (plot.ratio, plot.lives, plot.flow, plot.distribution, plot.alerts, plot.accuracy)


@pytest.fixture(scope="module")
def run(trained):
    with sapflow.open_run(trained) as opened:
        yield opened


def ask(run, sql):
    """What DuckDB says of the run's tables."""
    epochs, seeds, alerts = run.epochs(), run.seeds(), run.alerts()
    assert all(isinstance(table, pa.Table) for table in (epochs, seeds, alerts))
    return duckdb.sql(sql).fetchall()


def line_of(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def marks(axes, marker):
    return sorted(
        (float(x), float(y))
        for line in axes.get_lines()
        if line.get_marker() == marker and line.get_linestyle() == "None"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    )


def tick_at(axes, label):
    labels = [text.get_text() for text in axes.get_yticklabels()]
    return float(axes.get_yticks()[labels.index(label)])


def test_ratio_draws_each_life_with_the_band(run):
    chart = plot.ratio(run)
    chart.canvas.draw()
    assert [axes.get_title(loc="left") for axes in chart.axes] == ["Ratio over time, env 0", "Ratio over time, env 1"]
    for env, axes in enumerate(chart.axes):
        lives = ask(run, f"SELECT DISTINCT seed FROM epochs WHERE env = {env} AND status = 'MEASURED'")
        assert len(lives) >= 3
        for (name,) in lives:
            measured = f"env = {env} AND seed = '{name}' AND status = 'MEASURED'"
            assert line_of(axes, name) == ask(run, f"SELECT epoch, ratio FROM epochs WHERE {measured} ORDER BY 1")
        (band,) = [patch for patch in axes.patches if patch.get_y() == 0.5]
        assert band.get_y() + band.get_height() == 2.0
        assert (axes.get_yscale(), axes.yaxis.get_transform().base) == ("log", 2)
    died = ask(run, "SELECT env, died_epoch, seed FROM seeds WHERE died_epoch IS NOT NULL")
    assert len(died) >= 2
    for env, at, name in died:
        (last,) = ask(run, f"SELECT ratio FROM epochs WHERE env = {env} AND epoch <= {at} AND seed = '{name}' "
                           "AND status = 'MEASURED' ORDER BY epoch DESC LIMIT 1")  # fmt: skip
        assert (float(at), pytest.approx(last[0])) in marks(chart.axes[env], "X")


def test_what_is_no_healthy_number_is_drawn_as_what_it_is(tmp_path):
    with sapflow.open_run(difficult_run(tmp_path / "run")) as run:
        chart = plot.ratio(run)
        chart.canvas.draw()
        flow = plot.flow(run)
    (axes,) = chart.axes
    assert line_of(axes, "well-1") == [(2, 1), (3, 1), (4, 1)]
    assert line_of(axes, "mixed-1") == [(2, 1.5), (3, 1.5), (4, 1.5)]
    for name in ("dead-1", "broken-1", "lost-1"):  # never a number among numbers
        assert all(math.isnan(y) for _, y in line_of(axes, name))
    assert marks(axes, "v") == [(at, tick_at(axes, "0")) for at in (2, 3, 4)]
    assert marks(axes, "*") == sorted([(at, tick_at(axes, "NaN, ∞")) for at in (2, 3, 4)] * 2)
    assert marks(axes, "x") == sorted([(at, tick_at(axes, "not measured")) for at in (2, 3, 4)] * 2)
    assert tick_at(axes, "not measured") < tick_at(axes, "0") < 1 / 8 < 8 < tick_at(axes, "NaN, ∞")
    assert chart.data.num_rows == 15
    drawn = {(row["slot"], row["verdict"]) for row in flow.data.to_pylist()}
    assert drawn == {("well", "not flagged"), ("dead", "vanishing"), ("mixed", "exploding")}
    assert "which have no point: 6." in flow.description


def test_lives_are_bars_from_stage_to_stage(run):
    chart = plot.lives(run)
    (axes,) = chart.axes
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    (last,) = ask(run, "SELECT max(epoch) FROM epochs")
    expected = []
    for stages, died in ask(run, "SELECT stages, died_epoch FROM seeds"):
        alive = [each for each in stages if each["stage"] != "PRUNED"]
        bounds = [each["epoch"] for each in alive] + [last[0] if died is None else died]
        expected += [(begin, end) for begin, end in pairwise(bounds) if end > begin]
    assert bars == sorted(expected)
    assert len(marks(axes, "X")) == len(ask(run, "SELECT 1 FROM seeds WHERE died_epoch IS NOT NULL")) >= 2


def test_flow_has_a_point_for_each_measured_epoch_and_the_lines_of_gain(run):
    (axes,) = plot.flow(run).axes
    points = sorted(
        (float(x), float(y))
        for line in axes.get_lines()
        if line.get_label() in ("exploding", "vanishing", "not flagged")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    )
    expected = ask(run, "SELECT entering, leaving FROM epochs WHERE status = 'MEASURED' AND seed <> '' ORDER BY 1, 2")
    assert points == expected
    gains = [line.get_ydata()[0] / line.get_xdata()[0] for line in axes.get_lines()[:3]]
    assert gains == pytest.approx([0.5, 1, 2])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_distribution_counts_every_pass_once(run):
    chart = plot.distribution(run)
    expected = dict(ask(run, "SELECT slot, sum(passes - non_finite) FROM epochs WHERE seed <> '' GROUP BY slot"))
    drawn = dict(duckdb.from_arrow(chart.data).aggregate("slot, sum(passes)").fetchall())
    assert drawn == expected
    shares = {slot: dict(duckdb.from_arrow(chart.data).filter(f"slot = '{slot}'").project("octave, percent").fetchall())
              for slot in expected}  # fmt: skip
    samples = run.gradients(slot="mid")["ratio"].to_numpy()
    inside = np.count_nonzero((samples >= 0.5) & (samples < 1)) / len(samples)  # samples keep every pass, too
    assert shares["mid"].get("1/2 to 1", 0) == pytest.approx(100 * inside, abs=0.5)
    for values in shares.values():
        assert sum(values.values()) == pytest.approx(100)


def test_bins_of_another_layout_are_counted_and_counts_that_are_none_are_not(tmp_path):
    odd = seed("odd", ratio_histogram=(1,) * 40), seed("none", ratio_histogram=(1, -1))
    with sapflow.open_run(run_of(tmp_path / "run", epoch(2, *odd))) as run:
        rows = plot.distribution(run).data.to_pylist()
    assert sum(row["passes"] for row in rows if row["slot"] == "odd") == 40
    assert [(row["octave"], row["passes"]) for row in rows if row["slot"] == "none"] == [("below 2⁻¹⁶", 1)]


def test_alerts_are_bars_from_since_to_cleared(run):
    chart = plot.alerts(run)
    (axes,) = chart.axes
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    (now,) = ask(run, "SELECT max(epoch) FROM epochs")
    expected = ask(run, f"SELECT since_epoch, coalesce(cleared_epoch, {now[0] + 1}) FROM alerts ORDER BY 1, 2")
    assert len(expected) >= 4
    assert bars == expected
    assert all(chart.data["evidence"].to_pylist())


def test_accuracy_is_drawn_with_and_without_each_seed(run):
    chart = plot.accuracy(run)
    for env, axes in enumerate(chart.axes):
        host = ask(run, f"SELECT DISTINCT epoch, accuracy FROM epochs WHERE env = {env} ORDER BY 1")
        assert line_of(axes, "with all") == host
        sql = f"""SELECT seed, epoch, accuracy - accuracy_delta FROM epochs
                  WHERE env = {env} AND stage IN ('BLENDING', 'HOLDING', 'FOSSILIZED') ORDER BY 2"""
        without_one = {}
        for name, at, value in ask(run, sql):
            without_one.setdefault(name, []).append((at, value))
        assert without_one
        for name, points in without_one.items():
            assert line_of(axes, name) == points


def test_a_host_has_an_accuracy_before_anything_grows_in_it(tmp_path):
    empty = {"stage": SeedStage.DORMANT, "seed_id": "", "measurement": Measurement.UNMEASURED}
    run_dir = run_of(tmp_path / "run", *(epoch(at, seed("s", **empty), accuracy=10.0 * at) for at in (1, 2)))
    with sapflow.open_run(run_dir) as opened:
        (axes,) = plot.accuracy(opened).axes
    assert line_of(axes, "with all") == [(1, 10.0), (2, 20.0)]


def risen(accuracy):
    return [epoch(at, seed("s"), accuracy=accuracy + at) for at in (1, 2)]


def test_compare_draws_medians_over_runs_and_their_interval(tmp_path):
    heights = {"a": (10.0, 20.0, 60.0), "b": (1.0, 2.0, 3.0)}
    groups = {
        name: [
            sapflow.open_run(run_of(tmp_path / f"{name}{value}", germinated("s"), *risen(value))) for value in values
        ]
        for name, values in heights.items()
    }
    chart = plot.compare(groups, "accuracy")
    (axes,) = chart.axes
    assert line_of(axes, "a") == [(1, 21), (2, 22)]
    assert line_of(axes, "b") == [(1, 3), (2, 4)]
    bands = [shape for shape in axes.collections if isinstance(shape, FillBetweenPolyCollection)]
    corners = {tuple(vertex) for vertex in bands[0].get_paths()[0].vertices}
    assert {(1, 11), (1, 61), (2, 12), (2, 62)} <= corners
    assert chart.data["coverage"].to_pylist() == [0.75] * 4
    assert plot.compare(groups, "not_flagged").data["median"].to_pylist() == [100] * 4
    fates = plot.fates(groups).data.to_pylist()
    assert {(row["group"], row["fate"]): row["median"] for row in fates if row["median"]} == {
        ("a", "still growing"): 1, ("b", "still growing"): 1,
    }  # fmt: skip
    for run in (*groups["a"], *groups["b"]):
        run.close()


def test_a_seed_that_is_not_measured_counts_as_flagged_ones_do(tmp_path):
    with sapflow.open_run(difficult_run(tmp_path / "run")) as run:
        assert plot.compare({"one": [run]}, "not_flagged").data["median"].to_pylist() == [20.0] * 3


@pytest.mark.parametrize(("count", "low", "high"), [(1, 0, 0), (2, 0, 1), (5, 0, 4), (6, 0, 5), (9, 1, 7), (20, 5, 14)])
def test_intervals_hold_the_median_as_often_as_they_say(count, low, high):
    """The ranks of Conover's table; the coverage is counted over all ways in which values fall below the median."""
    bounds = interval(list(range(count)))
    assert bounds[:2] == (low, high)
    if count <= 9:
        held = sum(low + 1 <= sum(below) <= high for below in product((0, 1), repeat=count)) / 2**count
        assert bounds[2] == pytest.approx(held)
    assert bounds[2] >= 0.95 or (low, high) == (0, count - 1)


def test_thinning_keeps_every_extreme_and_every_kind_of_trouble():
    chance = random.Random(0)
    rows = [
        {"epoch": at, "ratio": chance.lognormvariate(0, 1), "status": "MEASURED", "stage": "TRAINING", "non_finite": 0}
        for at in range(5_000)
    ]
    rows[1234]["ratio"], rows[2345]["ratio"], rows[3456]["non_finite"] = 1e-9, 1e9, 1
    rows[4567].update(ratio=math.nan, status="PROBE_LOST")
    kept = thinned(rows)
    assert len(kept) <= 302
    assert {0, 1234, 2345, 3456, 4567, 4999} <= {row["epoch"] for row in kept}
    assert kept == sorted(kept, key=lambda row: row["epoch"])
    assert thinned(rows[:120]) == rows[:120]


def test_names_are_shown_and_never_obeyed(tmp_path):
    with sapflow.open_run(hostile_run(tmp_path / "run")) as run:
        charts = [
            plot.ratio(run),
            plot.lives(run),
            plot.flow(run),
            plot.distribution(run),
            plot.alerts(run),
            plot.accuracy(run),
        ]
    for chart in charts:
        text = chart.to_svg()
        assert "\u202e" not in text
        assert "<script" not in text
        assert "n" * 100 not in text
    legend = [text.get_text() for axes in charts[0].axes for text in axes.get_legend().get_texts()]
    assert any(label.startswith("_orig_mod.x (") for label in legend)
    assert any(label.startswith("$\\frac{a}{b}$") for label in legend)
    assert "$\\frac{a}{b}$" in charts[0].to_svg()


def test_names_are_cut_in_the_middle_and_keep_their_ends():
    assert shown("model.layers.31.self_attention.adapter") == "model.layers.31.s….adapter"
    assert [len(shown(name, 20)) <= 20 for name in HOSTILE] == [True] * len(HOSTILE)


def test_the_same_run_gives_the_same_picture_whatever_the_reader_s_style(run):
    import matplotlib

    first = plot.ratio(run, envs=[0]).to_svg()
    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "font.size": 30}):
        assert plot.ratio(run, envs=[0]).to_svg() == first


def test_a_run_that_has_nothing_yet_gives_pictures_that_say_so(tmp_path):
    with sapflow.open_run(run_of(tmp_path / "run")) as run:
        for draw in OF_ONE_RUN:
            chart = draw(run)
            (text,) = chart.axes[0].texts
            assert text.get_text()
            assert chart.data.num_rows == 0
            assert chart._repr_png_().startswith(b"\x89PNG")


def test_many_modules_are_shared_out_over_panels(tmp_path):
    slots = [f"layers.{number}" for number in range(200)]
    faults = {"layers.100": 64.0}
    modules = [seed(slot, faults.get(slot, 1.0)) for slot in slots]
    path = run_of(tmp_path / "run", epoch(1, *modules), epoch(2, *modules))
    with sapflow.open_run(path) as run:
        chart = plot.ratio(run)
        few = plot.ratio(run, slots=slots[:7])
    assert len(chart.axes) == 24
    assert any(line.get_label() == "layers.100-1" for axes in chart.axes for line in axes.get_lines())
    assert "Panels not drawn, which have less trouble: 10." in chart.description
    assert [axes.get_title(loc="left") for axes in few.axes] == [f"Ratio over time, env 0, {n} of 2" for n in (1, 2)]


def test_every_series_differs_by_more_than_its_colour():
    assert len({look.marker for look in LOOKS}) == len({look.dash for look in LOOKS}) == len(LOOKS)


def test_without_matplotlib_the_error_says_what_to_install():
    code = "import sapflow\ntry:\n sapflow.plot\nexcept sapflow.errors.MissingExtraError as error:\n print(error)"
    script = f"import sys; sys.modules['matplotlib'] = None\nimport sapflow.errors\n{code}"
    done = finish([sys.executable, "-c", script], Path.cwd())
    assert "pip install 'sapflow[report]'" in done.stdout, done.stderr
