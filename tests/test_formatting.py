"""What a seed's card and a run's header say, as plain spans."""

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len

from sanctum_events import START, demo_run, epoch, event, explosion, seed, slots_of, unmeasured
from sapflow.health.policy import record_band
from sapflow.sanctum import glyphs, panels
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.cells import dense_line, env_card
from sapflow.sanctum.census import Census
from sapflow.sanctum.formatting import card_height, gradient_line, seed_card, seed_row
from sapflow.sanctum.header import header_lines
from sapflow.sanctum.numbers import clock, compact, duration, humanised, ratio
from sapflow.sanctum.plots import accuracy_trend, loss_trend, ratio_plot, sparkline
from sapflow.sanctum.schema import EnvState, EnvStatus, SeedState
from sapflow.sanctum.spans import Line, clean, ends, fit, line, slot_name, width_of
from sapflow.telemetry.events import (
    HISTOGRAM_BINS,
    EnvCompleted,
    EnvFailed,
    GradientHealth,
    Payload,
    RunCompleted,
    RunResumed,
    RunStarted,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunState, RunStatus
from sapflow.telemetry.vocabulary import Measurement, SeedStage
from sapflow.telemetry.wording import describe

WIDTH = 40
numbers = st.floats(allow_nan=True, allow_infinity=True)


def text(spans: Line) -> str:
    return "".join(part for part, _ in spans)


def card(telemetry: SeedTelemetry | None = None, width: int = WIDTH, **fields: object) -> list[str]:
    view = SeedState.from_telemetry(seed("early", **fields) if telemetry is None else telemetry)
    return [text(spans) for spans in seed_card(view, width)]


def styled(lines: list[Line], words: str) -> str:
    """The style of the span with these words."""
    return next(style for spans in lines for part, style in spans if words in part)


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (GradientHealth(), (("Grad: ", ""), ("OK", "green"))),
        (GradientHealth(grad_ratio=0.85), (("Grad: ", ""), ("ratio=0.85", "green"))),
        (GradientHealth(grad_ratio=0.845), (("Grad: ", ""), ("ratio=0.84", "green"))),
        (GradientHealth(grad_ratio=0.1, has_vanishing=True), (("Grad: ", ""), ("▼ VANISHING", "bold yellow"))),
        (GradientHealth(grad_ratio=5.0, has_exploding=True), (("Grad: ", ""), ("▲ EXPLODING", "bold red"))),
        (GradientHealth(has_vanishing=True, has_exploding=True), (("Grad: ", ""), ("▲ EXPLODING", "bold red"))),
        (GradientHealth(grad_ratio=math.nan), (("Grad: ", ""), ("OK", "green"))),
        (GradientHealth(grad_ratio=math.inf), (("Grad: ", ""), ("ratio=inf", "green"))),
    ],
)
def test_the_gradient_line_is_the_records(health: GradientHealth, expected: Line) -> None:
    assert gradient_line(health) == expected


def test_a_card_says_everything_that_is_known_of_a_blending_seed() -> None:
    lines = card(
        ratio=7.31,
        stage=SeedStage.BLENDING,
        alpha=0.4,
        accuracy_delta=0.42,
        leaving_norm=0.23,
        min_ratio=5.02,
        max_ratio=9.9,
        non_finite_passes=2,
    )
    shown = "\n".join(lines)
    for words in (
        "◐ BLENDING",
        "3 epochs in it",
        "Blueprint: conv",
        "Params: 18.4K",
        "Alpha: 0.40 ████░░░░░░",
        "Acc Δ: +0.42 %",
        "Grad: ▲ EXPLODING",
        "entering 3.1e-02",
        "leaving 2.3e-01",
        "64 passes",
        "2 NaN/inf",
        "min 5.02  max 9.90  last 7.31",
        "ratio 7.31 over 64 passes",
    ):
        assert words in shown


@pytest.mark.parametrize(
    "stage",
    [SeedStage.DORMANT, SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.PRUNED, SeedStage.EMBARGOED],
)
def test_the_alpha_of_a_seed_that_the_host_does_not_see_is_not_shown(stage: SeedStage) -> None:
    assert any("Alpha: -- " in shown for shown in card(stage=stage, alpha=0.7))


def test_the_worth_of_a_seed_while_it_learns_is_not_a_measured_zero() -> None:
    assert any("Acc Δ: 0.0 (learning)" in shown for shown in card(stage=SeedStage.TRAINING))
    assert any("Acc Δ: -0.11 %" in shown for shown in card(stage=SeedStage.HOLDING, accuracy_delta=-0.11))


@pytest.mark.parametrize("measurement", [kind for kind in Measurement if kind is not Measurement.MEASURED])
def test_what_is_not_measured_is_said_dimly_on_a_line_of_its_own(measurement: Measurement) -> None:
    drawn = seed_card(SeedState.from_telemetry(unmeasured("early", measurement, "a reason")), WIDTH)
    at = next(n for n, spans in enumerate(drawn) if "Grad: " in text(spans))
    assert "Grad: OK" in text(drawn[at])
    assert f"{measurement} a reason" in text(drawn[at + 1])
    assert styled(drawn, str(measurement)) == "dim"


def test_nothing_on_a_card_ever_moves() -> None:
    cards = [
        card(SeedTelemetry(slot_id="early")),
        card(unmeasured("early", Measurement.PROBE_LOST)),
        card(ratio=0.1, stage=SeedStage.PRUNED),
        card(ratio=123456.0, stage=SeedStage.FOSSILIZED, accuracy_delta=-math.inf, alpha=math.nan),
    ]
    labels = ("Blueprint: ", "Params: ", "Alpha: ", "Acc Δ: ", "Grad: ", "entering", "leaving", "min", "4×", "1×", "¼×")
    places = [
        [(n, shown.index(label)) for label in labels for n, shown in enumerate(c) if label in shown] for c in cards
    ]
    assert all(len(place) == len(labels) for place in places)
    assert places[1:] == places[:-1]


@given(ratio=numbers, norm=numbers, alpha=numbers, delta=numbers, count=st.integers(-(2**63), 2**64 - 1))
def test_no_number_breaks_a_card(ratio: float, norm: float, alpha: float, delta: float, count: int) -> None:
    hostile = seed(
        "early",
        grad_ratio=ratio,
        has_vanishing=False,
        has_exploding=False,
        min_ratio=ratio,
        max_ratio=ratio,
        last_ratio=ratio,
        entering_norm=norm,
        leaving_norm=norm,
        alpha=alpha,
        accuracy_delta=delta,
        passes=count,
        seed_params=count,
        epochs_in_stage=count,
        stage=SeedStage.BLENDING,
    )
    drawn = seed_card(SeedState.from_telemetry(hostile, ratio_history=(ratio, norm)), 33)
    assert [width_of(spans) for spans in drawn] == [33] * card_height(3)


@given(words=st.text(max_size=300), width=st.integers(5, 60))
def test_no_text_breaks_a_card(words: str, width: int) -> None:
    hostile = seed(words, seed_id=words, blueprint_id=words, evidence=words, ratio=1.0)
    drawn = seed_card(SeedState.from_telemetry(hostile), max(width, 20))
    assert {width_of(spans) for spans in drawn} == {max(width, 20)}
    assert len(drawn) == card_height(3)


@given(words=st.text(max_size=100), limit=st.integers(0, 40))
def test_clean_text_is_printable_and_bounded(words: str, limit: int) -> None:
    shown = clean(words, limit)
    assert cell_len(shown) <= limit
    assert shown.isprintable()


def test_control_characters_lose_their_power_and_stay_visible() -> None:
    assert clean("\x1b[31mred\x07\u202egnp.exe\n", 40) == "�[31mred��gnp.exe�"
    assert clean("[bold]x[/]", 40) == "[bold]x[/]"
    assert clean("a" * 10_000, 10) == "aaaaaaaaa…"
    assert clean("漢字漢字", 5) == "漢字…"


def test_lines_are_cut_by_cells() -> None:
    assert text(fit(line("漢字漢字", ("b", "red")), 5)) == "漢字…"
    assert text(fit(line("ab"), 4)) == "ab  "
    assert text(ends(line("left"), line("right"), 12)) == "left   right"
    assert text(ends(line("a long left"), line("right"), 10)) == "a lo…right"
    assert text(fit(line("abc"), 0)) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"), (0.97, "0.97"), (7.31, "7.31"), (99.99, "99.99"), (123.4, "123"), (1e5, "1e+05"),
        (0.0003, "3e-04"), (1e308, "1e+308"), (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_compact_numbers(value: float, shown: str) -> None:
    assert compact(value) == shown


@given(numbers)
def test_compact_numbers_stay_in_their_column(value: float) -> None:
    assert len(compact(abs(value))) <= 6


def test_counts_spans_and_times_are_read_by_people() -> None:
    assert [humanised(n) for n in (0, 950, 999, 1000, 18_400, 999_949, 3_200_000)] == [
        "0", "950", "999", "1.0K", "18.4K", "999.9K", "3.2M",
    ]  # fmt: skip
    assert [duration(s) for s in (42, 119.9, 3 * 3600 + 309, -1, math.nan)] == [
        "0:42", "1:59", "3:05:09", "--:--", "--:--",
    ]  # fmt: skip
    assert clock(None) == clock(math.nan) == clock(1e300) == clock(-math.inf) == "--:--:--"


def test_a_sparkline_runs_from_the_least_to_the_greatest() -> None:
    assert sparkline([1, 2, 3, 8], 4) == "▁▂▃█"
    assert sparkline([5, 5], 4) == "  ▄▄"
    assert sparkline([1, math.nan, math.inf, 2], 4) == "▁  █"
    assert sparkline([], 3) == "   "
    assert sparkline([-1.7e308, 1.7e308], 2) == "▄▄"  # the distance is not finite


def test_the_middle_row_of_the_plot_is_the_healthy_band() -> None:
    history = [0.5, 1.0, 2.0, 2.01, 7.9, 0.49, 0.0, 1e300, math.inf, math.nan]
    top, band, bottom = [text(spans)[-len(history) :] for spans in ratio_plot(history, 30, 3)]
    assert band == "▁▅█───────"
    assert top == "┈┈┈▁█┈┈██┈"
    assert bottom == "┈┈┈┈┈█▁┈┈┈"


def test_the_plots_band_is_the_records() -> None:
    band = record_band()
    edges = [band.lower, band.upper, math.nextafter(band.lower, 0), math.nextafter(band.upper, 3)]
    assert [point != "─" for point in text(ratio_plot(edges, 20, 3)[1])[-4:]] == [True, True, False, False]


def test_a_taller_plot_has_two_octaves_a_row() -> None:
    rows = [text(spans) for spans in ratio_plot([1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64], 20, 7)]
    assert [row.strip("┈─ ").split("×")[0] for row in rows] == ["64", "16", "4", "1", "¼", "1/16", "1/64"]
    assert ["▅" in row[-7:] and row[-7:].index("▅") for row in rows] == [6, 5, 4, 3, 2, 1, 0]


def test_every_glyph_has_an_ascii_one_of_the_same_width() -> None:
    fold = SanctumAggregator()
    for each in demo_run():
        fold.apply(each)
    snapshot = fold.snapshot()
    drawn = [
        *header_lines(snapshot, 0.0, "a notice", 100),
        *panels.log_lines(snapshot.log, 100),
        *(spans for env in snapshot.envs.values() for spans in env_card(env, 40, 3, focused=True)),
        *(spans for env in snapshot.envs.values() for s in env.seeds.values() for spans in seed_card(s, 40, 7)),
    ]
    for spans in drawn:
        plain = glyphs.to_ascii(text(spans))
        assert plain.isascii()
        assert len(plain) == len(text(spans))
    stages = [glyphs.to_ascii(glyph) for glyph in glyphs.STAGE_GLYPHS.values()]
    conditions = [glyphs.to_ascii(glyph) for glyph in glyphs.CONDITION_GLYPHS.values()]
    assert "?" not in stages
    assert len(set(stages)) == len(stages)
    assert len(set(conditions)) == len(conditions)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.50"), (0.497, "0.497"), (0.4999, "<0.50"), (0.494, "0.49"), (0.504, "0.50"), (2.0, "2.00"),
     (2.004, "2.004"), (2.0001, ">2.00"), (2.01, "2.01"), (1.996, "2.00"), (math.inf, "inf"), (math.nan, "nan"),
     (0.0, "0.00"), (-1.0, "-1.00")],
)  # fmt: skip
def test_rounding_never_hides_on_which_side_of_the_band_a_ratio_lies(value: float, shown: str) -> None:
    assert ratio(value) == shown
    row = text(seed_row(SeedState.from_telemetry(seed("early", value)), 40, 5))
    assert row.endswith(f" {shown} ")


@given(numbers)
def test_ratios_stay_in_their_column(value: float) -> None:
    assert len(ratio(abs(value))) <= 6


@pytest.mark.parametrize("width", range(28, 60))
def test_the_blend_of_a_row_is_whole_and_its_blueprint_is_what_is_cut(width: int) -> None:
    blending = seed("early", 1.0, blueprint_id="depthwise", stage=SeedStage.BLENDING, alpha=0.93)
    row = text(seed_row(SeedState.from_telemetry(blending), width, 5))
    assert " 93% " in row
    assert ("depthwise" in row) is (width >= 8 + 13 + 10)
    held = text(seed_row(SeedState.from_telemetry(replace(blending, paused=True)), width, 5))
    assert " 93% held " in held or " 93% ‖ " in held
    assert len(row) == len(held) == width


def test_of_a_long_name_the_end_is_shown_and_the_model_itself_has_a_name_too() -> None:
    assert slot_name("transformer.h.11.mlp.c_proj", 12) == "….mlp.c_proj"
    assert slot_name("mid", 3) == "mid"
    assert slot_name("", 20) == "the model"
    for cells in range(1, 12):
        assert cell_len(slot_name("層" * 9, cells)) <= cells
    titles = [card(seed(f"transformer.h.11.attn.adapter.{part}"), 33)[0] for part in ("up", "down")]
    assert titles[0] != titles[1]
    assert "─ the model ─" in card(seed(""), 33)[0]


@pytest.mark.parametrize("stage", list(SeedStage))
@pytest.mark.parametrize("epochs", [1, 12, 1234])
def test_a_held_seed_says_so_on_the_narrowest_card(stage: SeedStage, epochs: int) -> None:
    shown = card(width=33, stage=stage, paused=True, epochs_in_stage=epochs)[1]
    assert f"{stage} held " in shown
    assert f"{epochs} epoch" in shown
    assert "…" not in shown


def test_a_held_seed_is_seen_in_the_dense_canvas() -> None:
    env = EnvState(env_id=1, seeds=slots_of(SeedState.from_telemetry(seed("a", 1.0, paused=True))))
    free = EnvState(env_id=1, seeds=slots_of(SeedState.from_telemetry(seed("a", 1.0))))
    assert text(dense_line(env, 2, 1)) == text(dense_line(free, 2, 1)).replace("○✓ ", "○✓‖")


def test_norms_that_were_not_measured_are_dim_placeholders_where_the_numbers_would_be() -> None:
    drawn = seed_card(SeedState.from_telemetry(unmeasured("early", Measurement.UNMEASURED)), WIDTH)
    for words in ("entering --", " leaving --"):
        assert styled(drawn, words) == "dim"
    assert not any("0.0e+00" in text(spans) for spans in drawn)


def test_what_hardly_moves_is_drawn_as_hardly_moving() -> None:
    noisy = [91.0 + 0.3 * (-1) ** n for n in range(20)]
    assert set(accuracy_trend(noisy, 20)) <= set("▃▄▅")
    assert set(loss_trend([0.31, 0.311, 0.309], 3)) <= set("▃▄▅")
    assert accuracy_trend([10, 50, 90], 3) == "▁▄█"
    assert set(sparkline(noisy, 20)) == {"▁", "█"}  # what the floor is there against


def test_a_trend_is_that_of_all_epochs_however_narrow() -> None:
    assert sparkline(range(64), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([math.nan] * 4 + [1.0, math.nan, 3.0, 3.0], 4) == "  ▁█"
    assert sparkline(range(64), 0) == ""


@pytest.mark.parametrize(("width", "octaves"), [(33, 2), (36, 1), (60, 1)])
def test_the_spread_on_a_card_leaves_no_octave_out(width: int, octaves: int) -> None:
    """Passes of which nothing came through stand far from all others."""
    counts = [0] * HISTOGRAM_BINS
    counts[0], counts[17] = 1, 100
    (spread,) = [shown for shown in card(width=width, ratio_histogram=tuple(counts)) if "spread" in shown]
    assert spread.strip("│ ") == f"spread 0× ▂{' ' * (18 // octaves - 2)}█ 2×"


@pytest.mark.parametrize(("width", "cells"), [(32, 6), (33, 7), (50, 12), (66, 20)])
def test_trends_take_the_room_that_a_card_has(width: int, cells: int) -> None:
    env = EnvState(env_id=1, accuracy=91.2, validation_loss=0.31,
                   accuracy_history=tuple(range(64)), loss_history=tuple(range(64)))  # fmt: skip
    shown = text(env_card(env, width, 1)[1])
    blocks = [part for part in re.split("[^▁▂▃▄▅▆▇█]+", shown) if part]
    assert len(blocks[0]) == cells
    assert len(blocks) == (2 if width >= 50 else 1)


def test_the_line_of_an_env_tells_all_of_how_far_it_is_at_100_cells() -> None:
    env = EnvState(env_id=3, status=EnvStatus.COMPLETED, epoch=30, epochs=30, accuracy=91.23, train_loss=0.05,
                   validation_loss=0.31, accuracy_history=tuple(range(64)), loss_history=tuple(range(64)))  # fmt: skip
    shown = text(panels.env_line(env, 100))
    assert "epoch 30/30 completed" in shown
    assert "back" not in shown


def test_one_env_is_one_env() -> None:
    assert describe(RunStarted(task="t", envs=1, epochs=1)) == ("run started", "t", "1 env", "1 epoch")
    assert describe(RunStarted(task="t", envs=2, epochs=0))[2:] == ("2 envs", "any number of epochs")
    assert describe(RunCompleted(completed_envs=1)) == ("run completed", "1 env")


def header(
    state: RunState,
    width: int = 100,
    notice: str = "",
    quiet: float = 5.0,
    lag: float = 0.0,
    moment: int | None = None,
    gaps: int = 0,
    trouble: bool = True,
    **fields: object,
) -> list[str]:
    fold = SanctumAggregator()
    for each in demo_run():
        fold.apply(each)
    last = fold.snapshot().log[-1].time
    fold.apply_status(RunStatus(state=state, last_event_time=last, **fields))
    census = Census()
    census.take(fold.snapshot().envs)
    snapshot = replace(fold.snapshot(), gaps=gaps)
    lines = header_lines(snapshot, last + quiet, notice, width, census.total, 12.0, lag, moment, trouble)
    return [text(spans) for spans in lines]


def test_the_header_tells_a_live_a_completed_and_a_cut_off_run_apart() -> None:
    assert header(RunState.LIVE)[1].startswith("● live   ")
    assert header(RunState.COMPLETED)[1].startswith("■ completed ")
    cut_off = header(RunState.ENDED)[1]
    assert re.match(r"✕ trainer gone since \d\d:\d\d:\d\d  ", cut_off)
    assert re.match(r"✕ trainer gone since \d{4}-\d\d-\d\d \d\d:", header(RunState.ENDED, quiet=86_400)[1])


def test_the_header_says_when_it_lags_when_it_is_quiet_and_when_it_is_not_of_now() -> None:
    assert header(RunState.LIVE, lag=7.4)[1].startswith("◐ live, lagging by 7 s")
    assert header(RunState.LIVE, quiet=75)[1].startswith("● live, quiet for 1:15")
    assert header(RunState.COMPLETED, moment=3)[1].startswith("▶ epoch 3, not now  ■ completed")


@pytest.mark.parametrize("width", [78, 98, 198])  # a header has a blank at each side
@pytest.mark.parametrize("moment", [None, 7])
@pytest.mark.parametrize("trouble", [True, False])
@pytest.mark.parametrize(
    ("state", "lag", "quiet", "words"),
    [
        (RunState.ENDED, 0.0, 5.0, "✕ trainer gone"),
        (RunState.COMPLETED, 0.0, 5.0, "■ completed"),
        (RunState.LIVE, 12.0, 5.0, "lagging by 12 s"),
        (RunState.LIVE, 0.0, 75.0, "quiet for 1:15"),
    ],
)
def test_what_is_urgent_is_in_the_header_at_every_width(
    state: RunState, lag: float, quiet: float, words: str, trouble: bool, moment: int | None, width: int
) -> None:
    lost = {"dropped_events": 30, "dropped_samples": 8, "skipped": 2}
    line = header(state, width, quiet=quiet, lag=lag, moment=moment, gaps=3, trouble=trouble, **lost)[1]
    assert "…" not in line
    assert words in line
    assert (f"▶ epoch {moment}" in line) is (moment is not None)
    whole = "3 gaps" in line and "2 skipped" in line and ("38 dropped" in line or "30 dropped  8 samples" in line)
    assert whole or "43 lost" in line
    assert whole or (width == 78 and trouble and moment)
    for glyph, count in (("▲", 1), ("▼", 1), ("?", 2), ("⚑", 1)):
        assert (f"{glyph} {count} " in line) is trouble


def run_line(now: float, events: Sequence[TelemetryEvent]) -> str:
    """How far the run of these events is, said at `now`."""
    fold = SanctumAggregator()
    for each in events:
        fold.apply(each)
    fold.apply_status(RunStatus(state=RunState.LIVE, last_event_time=now))
    return text(header_lines(fold.snapshot(), now, "", 200)[0])


def epochs_of(env_id: int, begin: float, first: int, last: int) -> list[TelemetryEvent]:
    """An env's epochs, ten seconds each, the first ending at `begin`."""
    return [
        event(epoch(n, epochs=100), env_id, n, begin + 10 * (n - first)) for n in range(first, last + 1)
    ]  # fmt: skip


ASKED = event(RunStarted(task="digits", envs=2, epochs=100, rng_seed=7), None, 0, START)


@pytest.mark.parametrize("end", [EnvCompleted(epoch=3), EnvFailed(epoch=4, error="out of memory")])
def test_an_env_that_ended_early_holds_back_neither_the_epoch_nor_the_share(end: Payload) -> None:
    told = [ASKED, *epochs_of(0, START + 10, 1, 3), event(end, 0, 4, START + 30), *epochs_of(1, START + 10, 1, 50)]
    line = run_line(START + 510, told)
    assert "epoch 50/100" in line
    assert " 75%" in line
    # 53 epochs took 510 s; the 50 that are still to come are those of one env.
    assert "8:01 left" in line
    over = [*told, *epochs_of(1, START + 520, 51, 100), event(EnvCompleted(epoch=100), 1, 101, START + 1_010)]
    assert "epoch 100/100" in run_line(START + 1_020, over)
    assert "100%" in run_line(START + 1_020, over)


def test_the_time_left_is_taken_from_what_was_trained_since_the_run_last_went_on() -> None:
    night = START + 36_000
    before = [ASKED, *(each for env_id in (0, 1) for each in epochs_of(env_id, START + 10, 1, 50))]
    resumed = [*before, event(RunResumed(from_epoch=48), None, 1, night)]
    assert "--:-- left" in run_line(night + 15, resumed)  # it lives through epochs 49 and 50 once more
    later = [*resumed, *(each for env_id in (0, 1) for each in epochs_of(env_id, night + 30, 51, 58))]
    line = run_line(night + 100, later)
    assert "10:01:40 elapsed" in line
    assert "7:00 left" in line  # ten epochs took 100 s, and 42 are to come


def test_the_time_left_is_said_of_now_alone() -> None:
    assert " left" in header(RunState.LIVE, 198)[0]
    assert " left" not in header(RunState.LIVE, 198, moment=7)[0]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_header_counts_what_is_wrong_and_what_is_lost(width: int) -> None:
    run, state = header(RunState.LIVE, width, dropped_events=3, skipped=2)
    assert "epoch 14/40" in run
    assert "35%" in run
    for glyph, count in (("▲", 1), ("▼", 1), ("!", 0), ("?", 2), ("⚑", 1)):
        assert f"{glyph} {count} " in state
    assert "3 dropped" in state
    assert "2 skipped" in state


def test_there_is_room_for_everything_on_a_wide_terminal() -> None:
    _, state = header(RunState.LIVE, 200, dropped_events=3, dropped_samples=1)
    for words in ("12.00 passes/s", "4 envs  9 seeds", "0 gaps  3 dropped  1 samples dropped  0 skipped"):
        assert words in state


def test_what_came_twice_is_said_where_there_is_room() -> None:
    once, twice = story_of_demo = demo_run()[:2]
    fold = SanctumAggregator()
    for each in (*story_of_demo, once, twice, twice):
        fold.apply(each)
    told = "".join(text for text, _ in header_lines(fold.snapshot(), START, "", 200)[1])
    assert "3 came twice" in told
    assert "came twice" not in header(RunState.LIVE, 200)[1]


def test_losses_are_shown_even_where_a_cut_off_run_leaves_little_room() -> None:
    assert "3 dropped" in header(RunState.ENDED, 100, dropped_events=3)[1]


def test_an_env_that_failed_says_why() -> None:
    env = EnvState(env_id=1, status=EnvStatus.FAILED, error="out of\nmemory", seeds=slots_of(SeedState(slot_id="a")))
    foot = text(env_card(env, 50, 1)[-1])
    assert "failed: out of�memory" in foot


def test_open_alerts_name_slot_rule_value_and_action() -> None:
    env = EnvState(env_id=3, open_alerts=(explosion(12),))
    (shown,) = (text(spans) for spans in panels.alert_lines(env, 140))
    for words in ("early", "exploding seed", "7.31", "since epoch 12", "→ prune"):
        assert words in shown


def test_a_row_of_the_overview_keeps_its_columns() -> None:
    states = [
        SeedState.from_telemetry(seed("early", ratio)) for ratio in (0.12, 1.0, 7.31, 123456.0, 1e300, math.inf, 0.0)
    ]
    rows = [text(seed_row(state, 30, 5)) for state in states]
    assert {width_of(line(row)) for row in rows} == {30}
    assert {next(row.index(glyph) for glyph in "▲▼✓" if glyph in row) for row in rows} == {21}
