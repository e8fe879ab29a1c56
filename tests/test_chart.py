"""Charts: every dot stands where its point belongs, and nothing that is no number draws one."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.health.policy import record_band
from sapflow.sanctum import glyphs
from sapflow.sanctum.chart import (
    BRAILLE,
    Axis,
    Curve,
    Frame,
    Guide,
    chart,
    decades,
    epoch_axis,
    linear,
    margin_of,
    octaves,
)
from sapflow.sanctum.slot_charts import frame_of, life_lines, norm_chart, norm_legend, ratio_chart, spread_lines
from sapflow.sanctum.slot_history import Pass, SlotHistory
from sapflow.sanctum.spans import Line, width_of
from sapflow.telemetry.events import HISTOGRAM_BINS, HISTOGRAM_LOWEST_OCTAVE, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement

numbers = st.floats(allow_nan=True, allow_infinity=True)


def text(spans: Line) -> str:
    return "".join(part for part, _ in spans)


def dots(lines: list[Line], margin: int) -> set[tuple[int, int]]:
    """The dots that are drawn, by column and row of dots from the top left, read from the Braille patterns block."""
    order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # Unicode's dots 1 to 8
    found = set()
    for row, spans in enumerate(lines):
        for column, glyph in enumerate(text(spans)[margin:]):
            if BRAILLE <= ord(glyph) < BRAILLE + 256:
                bits = ord(glyph) - BRAILLE
                found |= {(2 * column + x, 4 * row + y) for n, (x, y) in enumerate(order) if bits >> n & 1}
    return found


@given(x=st.floats(0, 1), y=st.floats(-1e6, 1e6), rows=st.integers(1, 30), columns=st.integers(1, 120))
def test_a_point_is_one_dot_where_it_belongs(x: float, y: float, rows: int, columns: int) -> None:
    axis, frame = Axis(-1e6, 1e6), Frame(0, 1, columns, 8)
    lines = chart([Curve([(x, y)], lambda _: "red")], (), axis, frame, rows)
    ((column, row),) = dots(lines, 8)
    assert (column + 0.5) / (2 * columns) == pytest.approx(x, abs=0.5 / (2 * columns) + 1e-9)
    from_bottom = 1 - (row + 0.5) / (4 * rows)
    assert from_bottom == pytest.approx((y + 1e6) / 2e6, abs=0.5 / (4 * rows) + 1e-9)


def test_a_doubling_is_as_far_everywhere_on_an_axis_of_octaves() -> None:
    axis = octaves([1 / 8, 8], least=0)
    frame = Frame(0, 7, 70, 8)
    points = [(n + 0.5, 2.0 ** (n - 3)) for n in range(7)]
    rows = [row for _, row in sorted(dots(chart([Curve(points, lambda _: "")], (), axis, frame, 20), 8))]
    steps = [before - after for before, after in pairwise(rows)]
    assert len(steps) == 6
    assert max(steps) - min(steps) <= 1


def test_a_line_has_no_hole_and_breaks_at_what_is_not_measured() -> None:
    axis, frame = Axis(0, 1), Frame(0, 4, 40, 6)

    def drawn(*values: float) -> set[int]:
        points = [(n + 0.5, value) for n, value in enumerate(values)]
        return {column for column, _ in dots(chart([Curve(points, lambda _: "", joined=True)], (), axis, frame, 5), 6)}

    assert drawn(0.1, 0.9, 0.1, 0.9) == set(range(10, 71))
    assert drawn(0.1, 0.1, math.nan, 0.9) == {*range(10, 31), 70}


@pytest.mark.parametrize(("ratio", "row"), [(math.inf, 0), (1e300, 0), (0.0, 9), (-1.0, 9)])
def test_what_is_beyond_the_axis_is_drawn_at_its_edge(ratio: float, row: int) -> None:
    lines = chart([Curve([(0.5, ratio)], lambda _: "")], (), octaves([]), Frame(0, 1, 10, 8), 10)
    assert {at // 4 for _, at in dots(lines, 8)} == {row}


def test_nan_is_not_drawn() -> None:
    assert dots(chart([Curve([(0.5, math.nan)], lambda _: "")], (), octaves([]), Frame(0, 1, 10, 8), 10), 8) == set()


@given(values=st.lists(numbers, max_size=20), rows=st.integers(1, 20), make=st.sampled_from([octaves, decades, linear]))
def test_no_number_breaks_a_chart(values: list[float], rows: int, make: object) -> None:
    axis = make(values)  # type: ignore[operator]
    frame = Frame(0, max(len(values), 1), 30, margin_of([axis], rows))
    points = [(n + 0.5, value) for n, value in enumerate(values)]
    lines = chart([Curve(points, lambda _: "", joined=True)], [Guide(0.0, "")], axis, frame, rows)
    assert [width_of(spans) for spans in lines] == [frame.margin + 30] * rows


@given(first=st.integers(0, 5_000), length=st.integers(1, 3_000), columns=st.integers(10, 180))
def test_the_number_of_an_epoch_stands_below_its_middle(first: int, length: int, columns: int) -> None:
    frame = Frame(first, first + length, columns, 8)
    shown = text(epoch_axis(frame))[8:]
    assert len(shown) == columns
    labels = [(int(label), shown.index(label)) for label in dict.fromkeys(shown.split())]
    assert labels
    for epoch, at in labels:
        if shown.split().count(str(epoch)) == 1 and f" {epoch} " in f" {shown} ":
            at = f" {shown} ".index(f" {epoch} ")
            assert frame.column(epoch - 0.5) == at


def test_charts_have_an_ascii_look_of_the_same_width() -> None:
    passes = tuple(Pass(n / 40, 1.0, 2.0 ** math.sin(n / 9)) for n in range(200))
    history = SlotHistory(first=1, last=5, passes=passes)
    frame = frame_of(history, 60, 9)
    for spans in [*ratio_chart(history, frame, 9), *life_lines(history, frame)]:
        plain = glyphs.to_ascii(text(spans))
        assert plain.isascii()
        assert len(plain) == len(text(spans))
        assert "?" not in plain


@pytest.mark.parametrize("of_passes", [True, False])
def test_the_norms_are_told_apart_without_colour(of_passes: bool) -> None:
    passes = tuple(Pass(n / 40, 1.0, 100.0) for n in range(200))
    measured = SeedTelemetry(
        slot_id="a", measurement=Measurement.MEASURED, passes=1, entering_norm=1.0, leaving_norm=100.0
    )
    epochs = tuple((n, measured) for n in range(1, 6))
    history = SlotHistory(first=1, last=5, epochs=epochs, passes=passes if of_passes else ())
    frame = frame_of(history, 60, 9)
    rows = [text(spans)[frame.margin :] for spans in norm_chart(history, frame, 9)]
    leaving, entering = (row for row in rows if row.strip())
    shapes = [set(row.strip()) for row in (leaving, entering)]
    legend = text(norm_legend(history))
    if of_passes:
        assert shapes[0] == {"×"}
        assert "×" not in shapes[1]
        assert "××× leaving" in legend
    else:
        assert leaving.count(" ") > entering.count(" ")  # dashed
        assert "─ ─ leaving" in legend
    assert not shapes[0] & shapes[1] - {" "}


def test_dots_and_marks_may_meet_in_a_cell() -> None:
    dot, mark = Curve([(0.5, 0.5)], lambda _: "a"), Curve([(0.5, 0.5)], lambda _: "b", mark="×")
    frame = Frame(0, 1, 1, 1)
    assert chart([dot, mark], (), Axis(0, 1), frame, 1)[0][-1] == ("×", "b")
    (met,) = chart([mark, dot], (), Axis(0, 1), frame, 1)
    assert met[-1] == chart([dot], (), Axis(0, 1), frame, 1)[0][-1]


def test_the_band_is_drawn_where_its_ends_are() -> None:
    band = record_band()
    history = SlotHistory(first=1, last=2)
    frame = frame_of(history, 60, 15)
    lines = [text(spans) for spans in ratio_chart(history, frame, 15)]
    ruled = [shown for shown in lines if "───" in shown]
    assert [shown.split("×")[0].strip() for shown in ruled] == [f"{band.upper:g}", f"1/{1 / band.lower:g}"]


@given(counts=st.lists(st.integers(0, 10_000), min_size=HISTOGRAM_BINS, max_size=HISTOGRAM_BINS))
def test_the_spread_counts_every_pass_once(counts: list[int]) -> None:
    seed = SeedTelemetry(slot_id="a", ratio_histogram=tuple(counts))
    lines = [text(spans) for spans in spread_lines([seed, seed], 80, HISTOGRAM_BINS)]
    if not any(counts):
        assert lines == ["no pass with a finite ratio"]
        return
    shown = [2 * count for count in counts]
    while not shown[0]:
        shown.pop(0)
    while not shown[-1]:
        shown.pop()
    assert len(lines) == len(shown)
    small = [int(line.split()[-1]) for line, count in zip(reversed(lines), shown, strict=True) if count < 1000]
    assert small == [count for count in shown if count < 1000]


@pytest.mark.parametrize("rows", [1, 4, 5, 9, 17, 18])
def test_no_pass_is_left_out_of_a_spread_over_more_octaves_than_there_are_rows(rows: int) -> None:
    counts = [0] * HISTOGRAM_BINS
    counts[0], counts[5], counts[17] = 3, 20, 100
    lines = [
        text(spans) for spans in spread_lines([SeedTelemetry(slot_id="a", ratio_histogram=tuple(counts))], 60, rows)
    ]
    assert len(lines) <= rows
    assert sum(int(line.split()[-1]) for line in lines) == 123
    assert "– 2×" in lines[0]
    assert lines[-1].strip().startswith("0 –")


def test_a_bar_of_the_spread_names_its_octave() -> None:
    counts = [0] * HISTOGRAM_BINS
    counts[1 - HISTOGRAM_LOWEST_OCTAVE - 1] = 5  # 2**-1 up to 1
    (line,) = [
        text(spans) for spans in spread_lines([SeedTelemetry(slot_id="a", ratio_histogram=tuple(counts))], 60, 9)
    ]
    assert line.split("█")[0].strip() == "1/2 – 1×"
    assert line.split()[-1] == "5"
