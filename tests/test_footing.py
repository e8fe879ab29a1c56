"""What a person is told is so: the keys that work, the first frame of a screen, a moment that stands."""

from pathlib import Path

import pytest

from sanctum_events import Recorder, demo_run, epoch, seeds_of
from sanctum_pilot import sanctum, screen_lines
from sanctum_screens import sitting
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.schema import EnvStatus
from sapflow.sanctum.widgets.key_bar import working_keys
from sapflow.sanctum.widgets.request_dialog import RequestDialog
from sapflow.telemetry.events import EnvFailed
from sapflow.telemetry.stream import EventStream


@pytest.mark.parametrize("key", ["p", "o", "x"])  # the seed is not held: r does nothing
async def test_a_key_that_works_brings_no_warning(tmp_path: Path, key: str) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", key)
        assert isinstance(now.app.screen, RequestDialog)
        assert list(now.app._notifications) == []
        await now.press("escape")
        now.let_the_trainer_go()
        await now.write()
        await now.press(key)
        assert [note.message for note in now.app._notifications] != []


async def test_the_key_bar_forgets_what_no_longer_works_when_the_trainer_goes(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (140, 30)) as now:
        await now.press("enter")
        assert "x stop" in now.lines[-1]
        now.let_the_trainer_go()
        await now.write()
        await now.settle()
        assert "x stop" not in now.lines[-1]


async def test_the_palette_has_the_hand_and_copy_for_the_screen_below_it(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter")
        below = now.app.screen
        there = {key.sentence for key in working_keys(below)}
        await now.press("ctrl+p")
        assert now.app.screen is not below
        offered = {command.help: command.title for command in now.app.get_system_commands(below)}
        assert {"Prune the seed in focus", "Stop the env in focus"} <= set(offered.values())
        assert set(offered.values()) == there - {"Open the command palette"}
        await now.press(*"stop the env", "enter", "enter")
        assert isinstance(now.app.screen, RequestDialog)


async def test_a_pause_is_of_one_epoch_of_all_envs_once_they_have_reached_it(tmp_path: Path) -> None:
    events = demo_run(6)
    recorder = Recorder()
    streams = [EventStream(recorder, events[0].run_id, env_id) for env_id in range(2)]
    for env_id, stream in enumerate(streams):
        last = max(each.sequence or 0 for each in events if each.env_id == env_id)
        stream.next_sequence = last + 1
    streams[0].emit(epoch(7, *seeds_of(0, 7)))
    streams[1].emit(epoch(7, *seeds_of(1, 7)))
    first, second = recorder.events
    async with sitting(tmp_path, [*events, first]) as now:
        await now.press("space")
        assert now.app.moment == 7
        assert {env_id: env.epoch for env_id, env in now.app.shown.envs.items()} == {0: 7, 1: 6, 2: 6, 3: 6}
        await now.write(second)
        assert {env_id: env.epoch for env_id, env in now.app.shown.envs.items()} == {0: 7, 1: 7, 2: 6, 3: 6}
        then = now.app.shown.envs
        streams[0].emit(epoch(8, *seeds_of(0, 8)))
        await now.write(recorder.events[-1])
        assert now.app.shown.envs == then


async def test_a_pause_has_what_is_said_at_the_end_of_its_epoch_after_it_was_made(tmp_path: Path) -> None:
    events = demo_run(6)
    stream = EventStream(recorder := Recorder(), events[0].run_id, 0)
    stream.next_sequence = max(each.sequence or 0 for each in events if each.env_id == 0) + 1
    stream.emit(epoch(7, *seeds_of(0, 7)))
    stream.emit(EnvFailed(epoch=7, error="out of memory"))
    async with sitting(tmp_path, [*events, recorder.events[0]]) as now:
        await now.press("space")
        assert now.app.shown.envs[0].status is EnvStatus.TRAINING
        await now.write(recorder.events[1])
        assert now.app.moment == 7
        assert now.app.shown.envs[0].status is EnvStatus.FAILED


async def test_no_frame_of_a_screen_shows_what_is_not_so(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[str] = []
    display = SanctumApp._display

    def seen(app: SanctumApp, screen: object, renderable: object) -> None:
        display(app, screen, renderable)  # type: ignore[arg-type]
        if screen is app.screen and app.screen.size:
            frames.append("\n".join(screen_lines(app)))

    async with sanctum(demo_run()) as (_, _, pilot):
        monkeypatch.setattr(SanctumApp, "_display", seen)
        for key in ("enter", "enter", "e", "escape", "a", "escape"):
            await pilot.press(key)
            await pilot.pause()
    assert len(frames) > 5
    for frame in frames:
        for wrong in ("opening", "0 envs", "nothing yet", "epoch 0"):
            assert wrong not in frame, frame


async def test_the_key_bar_of_a_search_says_what_enter_and_escape_do(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        assert "/ filter" in now.lines[-1]
        await now.press("slash", "n")
        assert "/ filter" not in now.lines[-1]
        assert {"enter keep", "esc clear"} <= set(now.lines[-1].strip().split("  "))
        await now.press("escape", "e")
        assert "esc back" in now.lines[-1]
        await now.press("slash", "n")
        assert "enter keep  " in now.lines[-1]
        assert "/ search" not in now.lines[-1]
        assert "esc clear search" in now.lines[-1]
        await now.press("enter")  # the search is kept, and escape still forgets it first
        assert "esc clear search" in now.lines[-1]
        await now.press("escape")
        assert "esc back" in now.lines[-1]
        await now.press("escape")
        assert "/ filter" in now.lines[-1]


@pytest.mark.parametrize("view", [0, 1, 2])
async def test_a_search_without_hits_says_so_and_moves_nothing(tmp_path: Path, view: int) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press(*"v" * view, "slash")

        def events_at() -> int:
            return next(y for y, line in enumerate(now.lines) if line.startswith(" ─ events"))

        before = events_at()
        await now.press(*"zz")
        assert "no env matches “zz”" in now.text
        assert events_at() == before
        await now.press("z")
        assert "no env matches “zzz”" in now.text
        await now.press("escape", *"9")
        assert events_at() == before


async def test_the_overview_counts_what_is_wrong_once(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (200, 60)) as now:
        assert sum("▲" in line and "⚑" in line for line in now.lines[:4]) == 1
        await now.press("e")
        assert "▲ 1" in now.lines[1]
