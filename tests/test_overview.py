"""The overview's own keys: sorting, filtering, searching, the two densities, and what its parts say."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from textual.widgets import Input

from sanctum_events import SLOTS, demo_run, epoch, event, explosion, sample, seed, seeds_of, slots_of, unmeasured
from sanctum_pilot import arrive, focused, sanctum, screen_lines, screen_text, shown_envs
from sapflow.sanctum.arrangement import Order, arranged
from sapflow.sanctum.census import Census, Kind
from sapflow.sanctum.schema import EnvState, SanctumSnapshot, SeedState
from sapflow.sanctum.themes import THEMES
from sapflow.sanctum.widgets.count_strip import CountStrip
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.telemetry.events import EnvStarted, SeedPruned, SeedTelemetry, TelemetryEvent
from sapflow.telemetry.source import RunState, RunStatus
from sapflow.telemetry.vocabulary import Measurement, SeedStage


def many(envs: int) -> list[TelemetryEvent]:
    """So many envs, a quarter of them exploding, a quarter vanishing."""
    events = []
    for env_id in range(envs):
        events.append(event(EnvStarted(host="h", host_params=1, slot_ids=SLOTS, epochs=40), env_id, 0))
        events.append(event(epoch(5, *seeds_of(env_id % 4, 9)), env_id, 1))
    return events


def bottom(seen: list[str]) -> str:
    """The key bar."""
    return seen[-1]


async def test_s_sorts_by_each_order_in_turn() -> None:
    values = [(1.0, 90.0, 0.1), (1.9, 70.0, 0.2), (0.6, 80.0, 0.9)]
    events = [
        event(epoch(1, seed("a", ratio), accuracy=accuracy, validation_loss=loss), env_id, 0)
        for env_id, (ratio, accuracy, loss) in enumerate(values)
    ]
    async with sanctum(events) as (app, _, pilot):
        seen = {}
        for _ in Order:
            (line,) = [line for line in screen_lines(app) if "3 envs  " in line and "passes" not in line]
            seen[line.split("3 envs  ")[1].strip()] = shown_envs(app)
            await pilot.press("s")
            await pilot.pause()
        assert seen == {
            "worst first": [0, 1, 2],
            "by env": [0, 1, 2],
            "by accuracy": [1, 2, 0],
            "by loss": [2, 1, 0],
            "by ratio": [1, 2, 0],
        }


async def test_the_ratio_of_a_seed_that_was_pruned_brings_no_env_to_the_front() -> None:
    cut = SeedPruned(epoch=1, slot_id="a", seed_id="a-1", stage=SeedStage.TRAINING, rule="dying seed", grad_ratio=0.001)
    events = [event(epoch(1, seed("a", ratio)), env_id, 0) for env_id, ratio in enumerate((0.001, 1.9))]
    async with sanctum([*events, event(cut, 0, 1)]) as (app, _, pilot):
        await pilot.press("s", "s", "s", "s")
        await pilot.pause()
        assert "2 envs  by ratio" in screen_text(app)
        assert shown_envs(app) == [1, 0]


@pytest.mark.parametrize(
    ("key", "envs"),
    [
        ("1", [3]),
        ("2", [1]),
        ("3", []),
        ("4", [2]),
        ("5", [3]),
        ("6", [3, 1, 2]),
        ("7", [1, 0]),
        ("8", [0]),
        ("9", [1]),
    ],
)
async def test_a_number_shows_only_those_envs_and_escape_all_again(key: str, envs: list[int]) -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        assert "esc clear" not in bottom(screen_lines(app))
        await pilot.press(key)
        await pilot.pause()
        assert shown_envs(app) == envs
        assert "only " in screen_text(app)
        assert "esc clear" in bottom(screen_lines(app))
        await pilot.press("escape")
        await pilot.pause()
        assert shown_envs(app) == [3, 1, 2, 0]
        await pilot.press(key, key)
        await pilot.pause()
        assert shown_envs(app) == [3, 1, 2, 0]


@pytest.mark.parametrize("width", [80, 100, 200])
async def test_a_click_on_a_count_does_what_its_key_does(width: int) -> None:
    async with sanctum(demo_run(), (width, 30)) as (app, _, pilot):
        line = screen_lines(app)[2]
        await pilot.click(CountStrip, offset=(line.index("▼"), 0))
        await pilot.pause()
        assert shown_envs(app) == [1]
        await pilot.click(CountStrip, offset=(line.index("●"), 0))
        await pilot.pause()
        assert shown_envs(app) == [0]


@pytest.mark.parametrize(
    ("words", "envs"),
    [
        ("env:3", [3]),
        ("env:03", [3]),
        ("env 02", [2]),
        ("slot:late", [3, 1, 2, 0]),
        ("blueprint:SIGM", [1]),
        ("exploder", [3]),
        ("vanishing seed", [1]),
        ("attention ratio", [0]),
        ("nothing like it", []),
        ("[bold]", []),
    ],
)
async def test_slash_searches_while_typing_and_enter_keeps_what_is_found(words: str, envs: list[int]) -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("slash")
        app.screen.query_one(Input).value = words[:-1]
        await pilot.pause()
        await pilot.press({" ": "space", "]": "right_square_bracket"}.get(words[-1], words[-1]))
        await pilot.pause()
        assert shown_envs(app) == envs
        await pilot.press("enter")
        await pilot.pause()
        assert shown_envs(app) == envs
        assert app.screen.query_one(EnvGrid).has_focus
        await pilot.press("escape")
        await pilot.pause()
        assert shown_envs(app) == [3, 1, 2, 0]


async def test_keys_are_letters_while_a_search_is_typed() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("slash", *"q1s")
        await pilot.pause()
        assert app.is_running
        assert app.screen.query_one(Input).value == "q1s"
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.query_one(EnvGrid).has_focus
        assert shown_envs(app) == [3, 1, 2, 0]


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60)])
async def test_envs_are_cards_while_they_fit_and_lines_beyond(size: tuple[int, int]) -> None:
    async with sanctum(demo_run(), size) as (app, _, _):
        assert "┏━ env 03 ━" in screen_text(app)
    async with sanctum(many(200), size) as (app, _, _):
        shown = screen_text(app)
        assert "─ env " not in shown.split("─ events")[0]
        grid = app.screen.query_one(EnvGrid)
        assert sum(" ○▲ ○" in line for line in screen_lines(app)) > 0
        assert grid.size.height <= 0.7 * size[1]


@pytest.mark.parametrize("size", [(80, 24), (80, 20), (60, 12)])
async def test_the_keys_are_seen_however_little_room_there_is(size: tuple[int, int]) -> None:
    status = RunStatus(state=RunState.LIVE, notice="a word on the journal")
    async with sanctum(many(200), size, status) as (app, source, pilot):
        await arrive(app, source, pilot)
        assert "q quit" in bottom(screen_lines(app))
        await pilot.press("slash", "0")
        await pilot.pause()
        assert "enter keep" in bottom(screen_lines(app))
        assert any(line.strip() == "0" for line in screen_lines(app))
        assert not app.screen.show_vertical_scrollbar


async def test_v_forces_cards_or_lines() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("v")
        await pilot.pause()
        assert "┏━ env 03 ━" in screen_text(app)
        await pilot.press("v")
        await pilot.pause()
        assert "┏━ env 03 ━" not in screen_text(app)
        assert " 03 ▲ ○▲ ○✓ ·  91.46 " in screen_text(app)
        await pilot.press("v")
        await pilot.pause()
        assert "┏━ env 03 ━" in screen_text(app)


async def test_every_env_of_a_thousand_can_be_reached_and_opened() -> None:
    async with sanctum(many(1_000), (100, 30)) as (app, _, pilot):
        order = shown_envs(app)
        await pilot.press("end")
        await pilot.pause()
        assert focused(app) == order[-1]
        assert f" {order[-1]:03} " in screen_text(app)
        await pilot.press("home", "pagedown", "pagedown", "pageup", "j", "l")
        await pilot.pause()
        columns = app.screen.query_one(EnvGrid).shape.columns
        at = order.index(focused(app) or -1)
        assert at % columns == 1
        assert f" {order[at]:03} " in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, EnvDetailScreen)
        assert app.screen.env_id == order[at]


@pytest.mark.parametrize("density", ["cards", "lines"])
async def test_a_click_opens_what_is_drawn_there_after_scrolling_too(density: str) -> None:
    async with sanctum(many(300), (100, 30)) as (app, _, pilot):
        if density == "cards":
            await pilot.press("v")
        grid = app.screen.query_one(EnvGrid)
        grid.scroll_to(y=12, animate=False)
        await pilot.pause()
        line = screen_lines(app)[grid.region.y + 3] if density == "lines" else ""
        await pilot.click(EnvGrid, offset=(4, 3))
        await pilot.pause()
        assert isinstance(app.screen, EnvDetailScreen)
        place = (12 + 3) // grid.shape.height * grid.shape.columns
        assert app.screen.env_id == grid.envs[place].env_id
        assert density == "cards" or f" {app.screen.env_id:03} " in line[:6]


async def test_only_what_is_seen_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sanctum(many(1_000), (100, 30)) as (app, source, pilot):
        built: list[int] = []
        build = EnvGrid._build
        monkeypatch.setattr(EnvGrid, "_build", lambda *args: (built.append(args[1].env_id), build(*args))[1])
        await arrive(app, source, pilot, *(event(epoch(6, *seeds_of(n % 4, 9)), n, 2) for n in range(1_000)))
        grid = app.screen.query_one(EnvGrid)
        assert 0 < len(built) <= grid.shape.columns * grid.size.height


async def test_a_card_stays_in_its_place_while_its_env_gets_better_within_an_epoch() -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        await arrive(app, source, pilot, event(sample(15, "early", 0, 1.0), 3, None))
        assert shown_envs(app) == [3, 1, 2, 0]


async def test_a_resize_keeps_the_cursor_and_draws_all() -> None:
    async with sanctum(many(64), (200, 60)) as (app, _, pilot):
        await pilot.press("down", "right")
        before = focused(app)
        for size in ((80, 24), (20, 8), (100, 30)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert focused(app) == before
            assert len(screen_lines(app)) == size[1]
        assert " 03 " in screen_text(app)


async def test_the_key_bar_shows_what_works_and_does_it_when_clicked() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        bar = bottom(screen_lines(app))
        for words in ("enter detail", "/ filter", "s sort", "? help", "q quit"):
            assert words in bar
        await pilot.click(KeyBar, offset=(bar.index("s sort"), 0))
        await pilot.pause()
        assert "by env" in screen_text(app)
        await pilot.click(KeyBar, offset=(bar.index("q quit"), 0))
        await pilot.pause()
        assert not app.is_running


async def test_a_narrow_key_bar_still_says_how_to_leave() -> None:
    async with sanctum(demo_run(), (30, 12)) as (app, _, _):
        assert bottom(screen_lines(app)).rstrip().endswith("? help  q quit")


STATES = (
    seed("a", 5.0),
    seed("a", 0.1),
    seed("a", 1.0),
    unmeasured("a", Measurement.NON_FINITE),
    unmeasured("a", Measurement.PROBE_LOST),
    seed("a", 1.0, stage=SeedStage.BLENDING),
    seed("a", 1.0, stage=SeedStage.FOSSILIZED),
    seed("a", 0.0, stage=SeedStage.EMBARGOED),
    seed("a", 0.0, stage=SeedStage.DORMANT),
)
envs = st.dictionaries(
    st.integers(0, 9),
    st.tuples(st.lists(st.sampled_from(STATES), max_size=4), st.integers(0, 2)),  # seeds, and how many alerts stand
    max_size=6,
)


def snapshot_of(chosen: Mapping[int, tuple[list[SeedTelemetry], int]]) -> SanctumSnapshot:
    return SanctumSnapshot(
        envs={
            env_id: EnvState(
                env_id=env_id,
                seeds=slots_of(
                    *(SeedState.from_telemetry(replace(each, slot_id=str(n))) for n, each in enumerate(seeds))
                ),
                open_alerts=(explosion(3),) * alerts,
            )
            for env_id, (seeds, alerts) in chosen.items()
        }
    )


@given(st.lists(envs, min_size=1, max_size=4))
def test_a_census_that_follows_counts_what_one_that_starts_anew_counts(
    moments: list[dict[int, tuple[list[SeedTelemetry], int]]],
) -> None:
    following = Census()
    for moment in moments:
        snapshot = snapshot_of(moment)
        following.take(snapshot.envs)
        anew = Census()
        anew.take(snapshot.envs)
        assert +following.total == +anew.total
        assert following.total[Kind.EXPLODING] == sum(
            each is STATES[0] for seeds, _ in moment.values() for each in seeds
        )
        for kind in Kind:
            only = arranged(snapshot, following, Order.WORST, kind)
            assert {env.env_id for env in only} == {n for n in snapshot.envs if anew.has(n, kind)}


@given(envs, st.sampled_from(Order))
def test_every_order_keeps_every_env(chosen: dict[int, tuple[list[SeedTelemetry], int]], order: Order) -> None:
    snapshot = snapshot_of(chosen)
    census = Census()
    census.take(snapshot.envs)
    assert sorted(env.env_id for env in arranged(snapshot, census, order)) == sorted(chosen)


async def test_y_copies_the_card_in_focus_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("l", "y")
        await pilot.pause()
        lines = app.clipboard.splitlines()
        assert lines[0].startswith("╭─ env 01 ─")
        assert "mid" in app.clipboard
        assert "sigmoid" in app.clipboard
        assert lines[-1].startswith("╰─ epoch 14/40 ─")
    async with sanctum([]) as (app, _, pilot):
        assert "Copy the card in focus as text" not in [
            command.title for command in app.get_system_commands(app.screen)
        ]


async def test_s_saves_a_picture_and_never_in_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("S")
        first = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
        await pilot.press("j", "S")
        await pilot.pause()
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["sanctum-2026-11-22-1910-a3f-2.svg", "sanctum-2026-11-22-1910-a3f.svg"]
        (name, svg) = next(iter(first.items()))
        assert (tmp_path / name).read_text(encoding="utf-8") == svg
        assert "exploder" in svg
        assert re.findall(r"https?://[^\s\"'>]+", svg.replace("http://www.w3.org/2000/svg", "")) == []
        while "saved " not in screen_text(app):
            await pilot.pause()


async def test_a_picture_that_cannot_be_saved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("S")
        while "no picture could be saved" not in screen_text(app):
            await pilot.pause()


async def test_capital_t_changes_every_colour_and_no_text() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("l")
        looks = []
        for _ in THEMES:
            app.clear_notifications()
            await pilot.pause()
            strips = app.screen._compositor.render_strips()
            colours = {segment.style.color.name for strip in strips for segment in strip if segment.style.color}
            looks.append((app.theme, frozenset(colours), [strip.text for strip in strips]))
            await pilot.press("T")
            await pilot.pause()
        themes, colours, texts = zip(*looks, strict=True)
        assert set(themes) == set(THEMES)
        assert len(set(colours)) == len(THEMES)
        assert texts[0] == texts[1] == texts[2]
