"""Time travel: any moment of the run, by keys and clicks, while the run goes on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanctum_events import demo_run, epoch, event, seed
from sanctum_screens import Sitting, sitting
from sapflow.sanctum.time_line import HEIGHT, TimeLine, time_lines
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen, SeedCard
from sapflow.sanctum.widgets.time_bar import SPEEDS, TimeBar
from sapflow.telemetry.events import RunCompleted, TelemetryEvent

SIZES = [(80, 24), (100, 30), (200, 60)]


def run_of(epochs: int) -> list[TelemetryEvent]:
    """One env whose slot has ratio n / 10 in epoch n."""
    return [event(epoch(n, seed("a", n / 10), epochs=epochs), 0, n) for n in range(1, epochs + 1)]


def bars(now: Sitting) -> int:
    return len(now.app.screen.query(TimeBar))


def shown_ratio(now: Sitting) -> float:
    (card,) = now.app.screen.query(SeedCard)
    return card.seed.grad_ratio


@pytest.mark.parametrize("size", SIZES)
async def test_steps_show_the_run_as_it_was_and_live_shows_it_as_it_is(tmp_path: Path, size: tuple[int, int]) -> None:
    async with sitting(tmp_path, run_of(20), size) as now:
        await now.press("enter", "t")
        assert "● live" in now.lines[-2]
        walked = []
        for key in ("left", "left", "comma", "right", "full_stop", "h", "l"):
            await now.press(key)
            walked.append((now.app.moment, shown_ratio(now)))
        assert walked == [(n, n / 10) for n in (19, 18, 17, 18, 19, 18, 19)]
        assert "◆ epoch 19 of " in now.lines[-2]
        await now.press("home")
        assert now.app.moment == 0
        await now.press("pagedown")
        assert (now.app.moment, shown_ratio(now)) == (10, 1.0)
        await now.press("end")
        assert (now.app.moment, shown_ratio(now)) == (None, 2.0)


async def test_the_past_stands_still_while_the_run_goes_on(tmp_path: Path) -> None:
    async with sitting(tmp_path, run_of(20)) as now:
        await now.press("enter", "t", "pageup")
        assert shown_ratio(now) == 1.0
        await now.write(event(epoch(21, seed("a", 9.0)), 0, 21))
        assert shown_ratio(now) == 1.0
        await now.press("L")
        assert shown_ratio(now) == 9.0


async def test_it_plays_at_several_speeds_and_goes_live_at_the_end(tmp_path: Path) -> None:
    async with sitting(tmp_path, run_of(200)) as now:
        await now.press("enter", "t", "home")
        assert "‖ still" in now.lines[-2]
        speeds = []
        for key in ("plus", "plus", "minus", "minus", "minus", "minus", *["plus"] * 6):
            await now.press(key)
            speeds.append(now.app.speed)
        assert speeds == [2.0, 4.0, 2.0, 1.0, 0.5, 0.5, 1.0, 2.0, 4.0, 8.0, SPEEDS[-1], SPEEDS[-1]]
        assert "▶ 16 epochs/s" in now.lines[-2]
        while not now.app.moment:
            await now.pilot.pause(0.02)
        await now.press("space")
        assert now.app.speed == 0.0
        assert 0 < (now.app.moment or 0) < 200
        await now.press("end", "left", "left", "plus")
        while now.app.moment is not None:
            await now.pilot.pause(0.02)
        await now.pilot.pause()
        assert (now.app.speed, shown_ratio(now)) == (0.0, 20.0)


async def test_a_click_goes_to_the_epoch_below_it(tmp_path: Path) -> None:
    async with sitting(tmp_path, run_of(40), (100, 30)) as now:
        await now.press("enter", "t")
        bar = now.app.screen.query_one(TimeBar)
        await now.pilot.click(bar, offset=(1, 1))
        await now.pilot.pause()
        assert now.app.moment == 0
        await now.pilot.click(bar, offset=(1 + 97 // 2, 1))
        await now.pilot.pause()
        assert now.app.moment in (19, 20, 21)
        at = now.lines[-3].index("◆")
        assert abs(at - (1 + 97 // 2)) <= 1


async def test_marks_stand_at_their_epochs_and_can_be_walked(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(epochs=14)) as now:
        await now.press("t")
        marks, bar = now.lines[-4], now.lines[-3]
        assert marks.index("✕") == bar.index("◆")  # pruned, and an alert raised, in the last epoch
        await now.press("home", "right_square_bracket")
        assert now.app.moment == 14
        await now.press("left", "left_square_bracket")
        assert now.app.moment == 13  # nothing is marked before


async def test_it_closes_by_the_key_that_opened_it_and_by_escape(tmp_path: Path) -> None:
    async with sitting(tmp_path, run_of(3)) as now:
        await now.press("enter", "t", "t")
        assert bars(now) == 0
        await now.press("t", "escape")
        assert bars(now) == 0
        assert isinstance(now.app.screen, EnvDetailScreen)
        await now.press("right")
        assert now.app.moment is None  # the arrows are the cards' again


async def test_every_screen_shows_the_moment(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*demo_run(), event(RunCompleted(completed_envs=4), None, 1)], live=False) as now:
        await now.press("t")
        assert "■ the end" in now.text
        await now.press(*["left"] * 4, "t")
        assert now.app.moment == 10
        await now.press("enter")
        assert "epoch 10/40" in now.lines[2]
        await now.press("enter")
        assert "epochs 1 – 10" in now.text
        await now.press("escape", "a")
        assert "exploding seed" not in now.text  # it was raised later
        await now.press("escape", "c")
        assert "epoch 10" in now.text
        await now.press("escape", "e")
        assert "pruned" not in "".join(now.lines[3:-1])


@given(last=st.integers(0, 10**6), expected=st.integers(0, 10**6), share=st.floats(0, 1), width=st.integers(2, 250))
def test_the_bar_is_of_one_mind_about_places(last: int, expected: int, share: float, width: int) -> None:
    moment = round(share * last)
    time = TimeLine(last=last, expected=expected, moment=moment, speed=1.0)
    lines = ["".join(text for text, _ in spans) for spans in time_lines(time, (), width)]
    assert [len(shown) for shown in lines] == [width] * HEIGHT
    at = lines[1].index("◆")
    assert abs(time.epoch_at(at, width) - moment) <= time.total / (width - 1) / 2 + 1
    assert all(0 <= time.epoch_at(cell, width) <= last for cell in range(width))
