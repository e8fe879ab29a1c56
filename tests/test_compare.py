"""Two envs, or two runs, on one axis."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from journals import finished_run
from sanctum_events import demo_run, epoch, event, seed, unmeasured
from sanctum_screens import Sitting, sitting
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.comparison import comparison_lines, read_side
from sapflow.sanctum.spans import width_of
from sapflow.sanctum.widgets.compare_screen import CompareScreen
from sapflow.sanctum.widgets.env_overview import OverviewScreen
from sapflow.telemetry.events import TelemetryEvent
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import Measurement

SIZES = [(80, 24), (100, 30), (200, 60)]


def learning(epochs: int, env_id: int, accuracy: float, ratio: float) -> list[TelemetryEvent]:
    """An env that reaches `accuracy` in a line, with one slot at a constant ratio."""
    return [
        event(epoch(n, seed("a", ratio), accuracy=accuracy * n / epochs, validation_loss=1 / n), env_id, n)
        for n in range(1, epochs + 1)
    ]


def sides(now: Sitting) -> tuple[int, int]:
    assert isinstance(now.app.screen, CompareScreen)
    a, b = now.app.screen.sides
    return a.env_id, b.env_id


@pytest.mark.parametrize("size", SIZES)
async def test_accuracy_loss_and_the_ratio_of_every_slot_are_compared(tmp_path: Path, size: tuple[int, int]) -> None:
    async with sitting(tmp_path, [*learning(10, 0, 90.0, 1.0), *learning(10, 1, 80.0, 0.6)], size) as now:
        await now.press("c")
        shown = now.words
        await now.press(*["pagedown"] * 3)
        shown += now.words
        for what in (
            "A ─── env 00 epoch 10", "B ─ ─ env 01 epoch 10", "accuracy, % A 90.00 B 80.00 A − B +10 at epoch 10",
            "validation loss A 0.10 B 0.10 A − B +0", "ratio in a A 1.00 B 0.60 A − B +0.4",
        ):  # fmt: skip
            assert what in shown
        await now.press("escape")
        assert isinstance(now.app.screen, OverviewScreen)


async def test_each_side_turns_through_the_envs(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("c")
        assert sides(now) == (3, 0)  # the env in focus, and the next one
        walked = []
        for key in ("right", "l", "left", "h", "left", "right_square_bracket", "left_square_bracket"):
            await now.press(key)
            walked.append(sides(now))
        assert walked == [(3, 1), (3, 2), (3, 1), (3, 0), (3, 2), (0, 2), (3, 2)]  # never an env with itself


async def test_an_env_is_taken_by_its_number(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("c", "slash", "2", "enter")
        assert sides(now) == (3, 2)
        await now.press("backslash", "0", "1", "enter")
        assert sides(now) == (1, 2)
        for number in ("7", "1", ""):  # none; A itself; nothing
            await now.press("slash", *number, "enter")
            assert sides(now) == (1, 2)
        assert {note.message for note in now.app._notifications} >= {"there is no env 7", "env 01 is A"}
        await now.press("slash", "0", "escape")
        assert sides(now) == (1, 2)
        await now.press("right")
        assert sides(now) == (1, 3)
        await now.press("escape")
        assert isinstance(now.app.screen, OverviewScreen)


async def test_the_difference_is_that_at_the_last_epoch_of_both(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*learning(10, 0, 90.0, 1.0), *learning(4, 1, 80.0, 0.5)]) as now:
        await now.press("c")
        assert "A 90.00 B 80.00 A − B -44 at epoch 4" in now.words  # 90 · 4/10 - 80


def test_the_last_common_epoch_of_long_runs_is_read_whole(tmp_path: Path) -> None:
    with journal_of(tmp_path, *learning(1_000, 0, 90.0, 1.0), *learning(777, 1, 77.7, 1.0)) as source:
        a, b = read_side(source, 0, 1_000, 777), read_side(source, 1, 777, 777)
        lines = ["".join(text for text, _ in spans) for spans in comparison_lines(a, b, 100, 7)]
        assert f"A − B {90 * 0.777 - 77.7:+.3g} at epoch 777" in lines[0]


async def test_what_comes_is_compared_too(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*learning(3, 0, 90.0, 1.0), *learning(3, 1, 80.0, 1.0)]) as now:
        await now.press("c")
        await now.write(event(epoch(4, seed("a", 1.0), accuracy=12.5), 1, 4))
        assert "B 12.50" in now.words
        assert "env 01 epoch 4" in now.words


async def test_one_env_alone_is_compared_with_itself(tmp_path: Path) -> None:
    async with sitting(tmp_path, learning(3, 5, 90.0, 1.0)) as now:
        await now.press("c", "right", "right_square_bracket", "down", "up")
        assert sides(now) == (5, 5)


async def test_a_run_without_epochs_has_empty_charts(tmp_path: Path) -> None:
    async with sitting(tmp_path, []) as now:
        await now.press("c", "right")
        assert "accuracy, % A -- B -- A − B --" in now.words
        assert "cannot draw" not in now.text


async def test_two_runs_are_opened_side_by_side(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "first", *learning(10, 0, 90.0, 1.0))
    second = finished_run(tmp_path / "second", *learning(20, 0, 60.0, 1.0), *learning(5, 1, 50.0, 1.0))
    with Source(first) as source, Source(second) as other:
        app = SanctumApp(source, poll_seconds=3600, other=other)
        async with app.run_test(size=(100, 30)) as pilot:
            now = await settled(app, pilot)
            assert "A ─── first env 00 epoch 10" in now.words
            assert "B ─ ─ second env 00 epoch 20" in now.words
            assert "A 90.00 B 60.00" in now.words
            await now.press("right")
            assert "B ─ ─ second env 01 epoch 5" in now.words
            await now.press("escape")
            assert isinstance(app.screen, OverviewScreen)


async def settled(app: SanctumApp, pilot: Pilot[None]) -> Sitting:
    await pilot.pause()
    await app.show()
    await pilot.pause()
    return Sitting(app, pilot, None, lambda: None)  # type: ignore[arg-type]  # nobody writes


@contextmanager
def journal_of(run_dir: Path, *events: TelemetryEvent) -> Iterator[Source]:
    with Source(finished_run(run_dir, *events)) as source:
        yield source


def test_a_long_run_is_read_in_as_many_epochs_as_are_drawn(tmp_path: Path) -> None:
    with journal_of(tmp_path, *learning(1_000, 0, 90.0, 1.0)) as source:
        side = read_side(source, 0, 1_000, 1_000)
        assert len(side.epochs) == 200
        assert (side.epochs[0].epoch, side.last) == (1, 1_000)


def test_what_was_not_measured_is_a_gap(tmp_path: Path) -> None:
    ratios = [seed("a", 1.0), unmeasured("a", Measurement.NO_GRADIENT), seed("a", 1.0)]
    with journal_of(tmp_path, *(event(epoch(n, each), 0, n) for n, each in enumerate(ratios, 1))) as source:
        side = read_side(source, 0, 3, 3)
        lines = ["".join(text for text, _ in spans) for spans in comparison_lines(side, side, 70, 7)]
        at = next(n for n, shown in enumerate(lines) if "ratio in a" in shown)
        dots = "".join(sorted({glyph for shown in lines[at:] for glyph in shown if ord(glyph) >= 0x2800}))
        assert len(dots) <= 4  # two points, and no line between them
        assert {len(shown) for shown in lines[:-1]} == {69}


@pytest.mark.parametrize("ratio", [2.0**-20, 1.0, 2.0**30])
def test_charts_stand_on_one_axis_however_long_its_labels_are(tmp_path: Path, ratio: float) -> None:
    with journal_of(tmp_path, *learning(10, 0, 90.0, ratio)) as source:
        side = read_side(source, 0, 10, 10)
        assert {width_of(spans) for spans in comparison_lines(side, side, 100, 13)} == {99}
