"""The terminal app as a person meets it: keys in, rendered strips out."""

import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.segment import Segment
from rich.style import Style
from textual.pilot import Pilot

from sanctum_events import START, FakeSource, demo_run, epoch, event, explosion, sample, seed, unmeasured
from sanctum_pilot import arrive, focused, sanctum, screen_lines, screen_text, shown_envs
from sapflow.errors import JournalError
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.following import BATCH, SHARE, rest_after
from sapflow.sanctum.widgets import env_grid
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen, SeedCard
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.sanctum.widgets.help_screen import HelpScreen, HelpText
from sapflow.sanctum.widgets.span_view import SpanView
from sapflow.telemetry.events import (
    AlertRaised,
    EnvFailed,
    EnvStarted,
    Payload,
    RunStarted,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.records import all_records
from sapflow.telemetry.source import RunState, RunStatus, Source
from sapflow.telemetry.vocabulary import Measurement, SeedStage

SIZES = [(80, 24), (100, 30), (200, 60)]
HOSTILE = ["[bold]x[/]", "[/]", "\x1b[31mred\x1b[0m", "\u202eevil", "a" * 10_000, "漢字" * 5_000, "\n\n\r\t\x00", ""]


def rendered(widget: SpanView) -> list[list[Segment]]:
    """The widget's strips, in the styles that it asks for."""
    return [list(widget.render_line(y)) for y in range(widget.size.height)]


def words(line: Iterable[Segment]) -> str:
    return "".join(segment.text for segment in line)


def style_of(line: Iterable[Segment], text: str) -> Style:
    """The style of the segment that is exactly `text`."""
    (style,) = [segment.style for segment in line if segment.text == text]
    assert style is not None
    return style


def one_env(*seeds: SeedTelemetry, **fields: object) -> list[TelemetryEvent]:
    return [event(epoch(1, *seeds, **fields), 0, 0)]


async def card_of(pilot: Pilot[None], app: SanctumApp, slot_id: str = "early") -> SeedCard:
    """Opens the focused env and finds the card of the slot."""
    await pilot.press("enter")
    await pilot.pause()
    assert isinstance(app.screen, EnvDetailScreen)
    return next(card for card in app.screen.query(SeedCard) if card.seed.slot_id == slot_id)


@pytest.mark.parametrize("size", SIZES)
async def test_the_overview_shows_every_env_worst_first(size: tuple[int, int]) -> None:
    async with sanctum(demo_run(), size) as (app, _, _):
        shown = screen_text(app)
        places = [shown.index(f" env {env_id:02} ─") if f" env {env_id:02} ─" in shown else -1 for env_id in (1, 2, 0)]
        assert -1 not in places
        assert shown.index("env 03") < min(places)
        assert places == sorted(places)
        for what in ("digits-cnn", "● live", "epoch 14/40", "exploder", "7.31", "sigmoid"):
            assert what in shown
        assert "q quit" in screen_lines(app)[-1]


@pytest.mark.parametrize("elapsed", [0.0, 59.0, 3_600.0, 86_400.0 * 365])
@pytest.mark.parametrize("size", SIZES)
async def test_the_task_and_the_epoch_are_shown_however_long_the_run_goes_on(
    size: tuple[int, int], elapsed: float
) -> None:
    async with sanctum(demo_run(), size, elapsed=elapsed) as (app, _, _):
        head = screen_lines(app)[0]
        assert "digits-cnn" in head
        assert "epoch 14/40" in head
        assert "…" not in head.split("epoch")[1]


@pytest.mark.parametrize("size", SIZES)
async def test_enter_opens_the_env_and_escape_goes_back(size: tuple[int, int]) -> None:
    async with sanctum(demo_run(), size) as (app, _, pilot):
        card = await card_of(pilot, app)
        assert isinstance(app.screen, EnvDetailScreen)
        assert app.screen.env_id == 3
        assert card.region.width >= 33
        for what in ("Grad: ▲ EXPLODING", "entering 3.1e-02", "leaving 2.3e-01", "min 5.85  max 8.77  last 7.31", "4×"):
            assert what in screen_text(app)
        assert "open      ⚑ early" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert shown_envs(app) == [3, 1, 2, 0]


@pytest.mark.parametrize("size", SIZES)
async def test_every_card_of_an_env_can_be_reached(size: tuple[int, int]) -> None:
    async with sanctum(demo_run(), size) as (app, _, pilot):
        card = await card_of(pilot, app, "late")
        tops = 0
        for _ in range(40):
            tops += any("─ late" in line for line in screen_lines(app))
            await pilot.press("down")
            await pilot.pause()
        assert tops > 0
        assert card.region.bottom <= size[1]


@pytest.mark.parametrize(
    ("telemetry", "text", "colour", "bold"),
    [
        (seed("early", 0.85), "ratio=0.85", "green", False),
        (seed("early", 0.1), "▼ VANISHING", "yellow", True),
        (seed("early", 5.0), "▲ EXPLODING", "red", True),
        (seed("early", 5.0, has_vanishing=True), "▲ EXPLODING", "red", True),
        (seed("early", 0.0), "▼ VANISHING", "yellow", True),
        (unmeasured("early", Measurement.NO_GRADIENT), "OK", "green", False),
        (SeedTelemetry(slot_id="early"), "OK", "green", False),
    ],
)
@pytest.mark.parametrize("size", SIZES)
async def test_the_gradient_line_is_rendered_as_the_record_has_it(
    telemetry: SeedTelemetry, text: str, colour: str, bold: bool, size: tuple[int, int]
) -> None:
    async with sanctum(one_env(telemetry), size) as (app, _, pilot):
        card = await card_of(pilot, app)
        (line,) = [line for line in rendered(card) if "Grad: " in words(line)]
        assert f"Grad: {text} " in words(line)
        style = style_of(line, text)
        assert style.color is not None
        assert (style.color.name, bool(style.bold)) == (colour, bold)
        label = style_of(line, "Grad: ")
        assert label.color == card.rich_style.color
        assert not label.bold
        assert not label.dim


async def test_what_reaches_the_terminal_is_clearly_red_yellow_and_green() -> None:
    seeds = seed("early", 0.85), seed("mid", 0.1), seed("late", 5.0)
    async with sanctum(one_env(*seeds)) as (app, _, pilot):
        await card_of(pilot, app)
        segments = [segment for strip in app.screen._compositor.render_strips() for segment in strip]
        hues = {}
        for segment in segments:
            if segment.text in ("ratio=0.85", "▼ VANISHING", "▲ EXPLODING"):
                assert segment.style is not None
                assert segment.style.color is not None
                hues[segment.text] = segment.style.color.get_truecolor()
        red, green, yellow = hues["▲ EXPLODING"], hues["ratio=0.85"], hues["▼ VANISHING"]
        assert red.red > 2 * max(red.green, red.blue)
        assert green.green > 1.3 * max(green.red, green.blue)
        assert min(yellow.red, yellow.green) > 3 * yellow.blue


@pytest.mark.parametrize("measurement", [kind for kind in Measurement if kind is not Measurement.MEASURED])
async def test_what_is_not_measured_stands_on_a_dim_line_of_its_own(measurement: Measurement) -> None:
    async with sanctum(one_env(unmeasured("early", measurement, "the reason"))) as (app, _, pilot):
        lines = rendered(await card_of(pilot, app))
        at = next(n for n, line in enumerate(lines) if "Grad: " in words(line))
        assert style_of(lines[at + 1], f"{measurement} the reason").dim


async def test_a_measured_seed_has_no_such_line() -> None:
    async with sanctum(one_env(seed("early", 0.85))) as (app, _, pilot):
        lines = rendered(await card_of(pilot, app))
        at = next(n for n, line in enumerate(lines) if "Grad: " in words(line))
        assert words(lines[at + 1]).strip("│┃ ") == ""


async def test_the_open_card_follows_the_run() -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        card = await card_of(pilot, app)
        await arrive(app, source, pilot, event(sample(15, "early", 0, 1.07), 3, None))
        assert any("Grad: ratio=1.07" in words(line) for line in rendered(card))
        last = app.snapshot.envs[3].last_sequence
        await arrive(app, source, pilot, event(epoch(15, seed("early", 0.2), seed("fourth", 1.0)), 3, last + 1))
        assert "Grad: ▼ VANISHING" in screen_text(app)
        assert [card.seed.slot_id for card in app.screen.query(SeedCard)] == ["early", "fourth"]


async def test_the_overview_follows_the_run_and_the_focus_stays_with_its_env() -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        await pilot.press("l")
        assert focused(app) == 1
        worse = event(EnvFailed(epoch=14, error="out of memory"), 0, app.snapshot.envs[0].last_sequence + 1)
        await arrive(app, source, pilot, worse)
        assert shown_envs(app) == [0, 3, 1, 2]
        assert focused(app) == 1
        assert "failed: out of memory" in screen_text(app)


async def test_only_the_cards_of_changed_envs_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        drawn: list[int] = []
        build = EnvGrid._build
        monkeypatch.setattr(
            EnvGrid, "_build", lambda grid, env, on: (drawn.append(env.env_id), build(grid, env, on))[1]
        )
        await arrive(app, source, pilot, event(sample(15, "early", 0, 0.9), 2, None))
        assert drawn == [2]


async def test_going_back_shows_what_happened_meanwhile() -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        await card_of(pilot, app)
        await arrive(app, source, pilot, event(sample(15, "early", 0, 1.23), 2, None))
        await pilot.press("escape")
        await pilot.pause()
        assert "1.23" in screen_text(app)


@pytest.mark.parametrize("keys", [("right", "left"), ("l", "h"), ("down", "up"), ("j", "k")])
async def test_the_focus_moves_and_stops_at_the_edges(keys: tuple[str, str]) -> None:
    async with sanctum(demo_run(), (80, 24)) as (app, _, pilot):
        forth, back = keys
        await pilot.press(back)
        assert focused(app) == 3
        await pilot.press(forth)
        assert focused(app) == (1 if forth in ("right", "l") else 2)
        await pilot.press(forth, forth, forth, forth)
        assert focused(app) in (2, 0)
        await pilot.press(back, back, back, back)
        assert focused(app) in (3, 1)


async def test_a_click_opens_the_env() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.click(EnvGrid, offset=(20, 8))
        await pilot.pause()
        assert isinstance(app.screen, EnvDetailScreen)
        assert app.screen.env_id == 2


async def test_the_palette_offers_what_works_now_and_does_it() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {"What the glyphs, the numbers and the keys mean", "Leave Sanctum; the run goes on"} <= titles
        assert "Back to what happens now" not in titles  # it is shown already
        await pilot.press("ctrl+p")
        await pilot.press(*"glyphs")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)


async def test_a_screen_that_fails_says_so_and_the_app_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        with monkeypatch.context() as broken:
            broken.setattr(type(app.screen), "show", lambda *_: 1 // 0)
            await arrive(app, source, pilot, event(sample(15, "early", 0, 1.23), 2, None))
            while "this cannot be shown: ZeroDivisionError" not in screen_text(app):
                await pilot.pause()
        await arrive(app, source, pilot, event(sample(15, "early", 2, 1.24), 2, None))
        assert "1.24" in screen_text(app)


async def test_q_quits() -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running


@pytest.mark.parametrize("size", SIZES)
async def test_the_help_explains_glyphs_keys_and_every_number_in_the_records_words(size: tuple[int, int]) -> None:
    async with sanctum(demo_run(), size) as (app, _, pilot):
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        assert "Is this seed's gradient flow healthy?" in screen_text(app)
        text = app.screen.query_one(HelpText)
        lines = [words(line) for line in rendered(text)]
        page = " ".join(" ".join(lines).split())
        assert "…" not in page
        for what in ("◐ blending", "the healthy band, 0.5 to 2.0", "q Leave Sanctum", "y Copy", "s Sort"):
            assert what in page
        for record in all_records():
            assert f"{record.field} {record.id}" in page
            assert record.purpose.question in page
        await pilot.press("end" if size[1] > 30 else "j")
        await pilot.press("escape")
        await pilot.pause()
        assert "env 03" in screen_text(app)


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_hostile_texts_are_shown_and_do_nothing(hostile: str) -> None:
    evil = seed(hostile, 1.0, blueprint_id=hostile, evidence=hostile, measurement_reason=hostile, seed_id=hostile)
    lost = unmeasured("lost", Measurement.PROBE_LOST, hostile)
    alert = replace(explosion(1), rule=hostile, actions=(hostile,))
    payloads: list[Payload] = [
        EnvStarted(host=hostile, host_params=1, slot_ids=(hostile,), epochs=2),
        epoch(1, evil, lost),
        AlertRaised(epoch=1, alert=alert),
        EnvFailed(epoch=1, error=hostile),
    ]
    events = [event(RunStarted(task=hostile, envs=1, epochs=2, rng_seed=0), None, 0)]
    events += [event(payload, 0, n) for n, payload in enumerate(payloads)]
    status = RunStatus(state=RunState.LIVE, notice=hostile)
    async with sanctum(events, status=status) as (app, _, pilot):
        for key in ("escape", "enter"):
            await pilot.press(key)
            await pilot.pause()
            lines = screen_lines(app)
            assert len(lines) == 30
            assert all(line.isprintable() for line in lines)
            assert "cannot draw" not in "\n".join(lines)
        assert "PROBE_LOST" in screen_text(app)


async def test_markup_is_shown_as_it_was_written() -> None:
    async with sanctum(one_env(seed("[red]s[/]", 1.0, blueprint_id="[bold]x[/]"))) as (app, _, pilot):
        assert "[bold]x[/]" in screen_text(app)
        await card_of(pilot, app, "[red]s[/]")
        assert "Blueprint: [bold]x[/]" in screen_text(app)
        assert "━ [red]s[/] ━" in screen_text(app)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 5e-324])
async def test_numbers_that_are_none_do_not_break_the_screen(value: float) -> None:
    norms = {"entering_norm": value, "leaving_norm": value, "last_ratio": value, "max_ratio": value}
    odd = seed("early", 1.0, **norms, accuracy_delta=value, alpha=value, stage=SeedStage.BLENDING)
    other = seed("mid", value, has_exploding=False, has_vanishing=False)
    events = one_env(odd, other, accuracy=value, train_loss=value, validation_loss=value)
    events.append(event(epoch(2, odd, other, accuracy=1.0, validation_loss=0.5), 0, 1, time=value))
    async with sanctum(events) as (app, _, pilot):
        assert "cannot draw" not in screen_text(app)
        await card_of(pilot, app)
        shown = screen_text(app)
        assert "cannot draw" not in shown
        assert "Blueprint: conv" in shown


async def test_a_damaged_journal_is_said_in_the_header_and_the_app_stays_usable() -> None:
    async with sanctum(demo_run()) as (app, source, pilot):
        source.error = JournalError("run.journal is damaged: restore it from a copy")
        await arrive(app, source, pilot)
        assert "⚑ run.journal is damaged: restore it from a copy" in screen_lines(app)[2]
        await card_of(pilot, app)
        assert "run.journal is damaged" in screen_lines(app)[2]
        source.error = None
        await arrive(app, source, pilot)
        assert "damaged" not in screen_text(app)


async def test_what_was_read_before_a_journal_breaks_is_not_lost() -> None:
    class Torn(FakeSource):
        """What follows its first event cannot be read, nor can it say how it stands."""

        def stream(self, limit: int = 5_000) -> Iterator[TelemetryEvent]:
            for each in super().stream(limit):
                yield each
                raise JournalError("run.journal is damaged: restore it from a copy")

        def status(self) -> RunStatus:
            raise JournalError("trainer.lock cannot be read: check its permissions")

    async with SanctumApp(Torn(one_env(seed("early", 1.0))), poll_seconds=3600).run_test() as pilot:
        assert isinstance(pilot.app, SanctumApp)
        assert pilot.app.snapshot.envs[0].epoch == 1
        assert pilot.app.notice.startswith("run.journal is damaged")
        pilot.app.read_batch()
        assert pilot.app.notice.startswith("trainer.lock cannot be read")


async def test_a_cut_off_run_is_shown_as_ended_without_completion() -> None:
    events = demo_run()
    status = RunStatus(state=RunState.ENDED, last_event_time=events[-1].time, dropped_events=2)
    async with sanctum(events, status=status) as (app, _, _):
        line = screen_lines(app)[1]
        assert "✕ trainer gone since" in line
        assert "2 dropped" in line


@pytest.mark.parametrize(
    ("state", "quiet", "known"), [(RunState.LIVE, 2, True), (RunState.LIVE, 90, False), (RunState.ENDED, 2, False)]
)
async def test_the_pace_of_a_trainer_that_hangs_or_is_gone_is_not_known(
    state: RunState, quiet: float, known: bool
) -> None:
    events = demo_run()
    last = events[-1].time
    status = RunStatus(state=state, last_event_time=last)
    async with sanctum(events, size=(200, 30), status=status, elapsed=last - START + quiet) as (app, _, _):
        assert ("-- passes/s" not in screen_lines(app)[1]) is known


async def test_a_long_run_is_read_in_batches_to_its_end() -> None:
    events = [event(epoch(n + 1, seed("early", 1.0)), 0, n) for n in range(2 * BATCH + 10)]
    async with sanctum(events) as (app, source, pilot):
        while source.events:
            await pilot.pause()
        await pilot.pause()
        assert app.snapshot.envs[0].epoch == 2 * BATCH + 10


async def test_a_run_that_always_says_something_is_looked_at_no_oftener_than_any() -> None:
    class Talkative(FakeSource):
        reads = 0

        def stream(self, limit: int = 5_000) -> Iterator[TelemetryEvent]:
            self.reads += 1
            yield event(epoch(self.reads, seed("early", 1.0)), 0, self.reads)

    source = Talkative([])
    async with SanctumApp(source, poll_seconds=3600).run_test() as pilot:
        for _ in range(5):
            await pilot.pause()
        assert source.reads == 1


@given(st.floats(0, 1e6))
def test_looks_that_take_long_rest_long_enough_for_their_share_of_a_core(used: float) -> None:
    assert used <= SHARE * (used + rest_after(used)) * (1 + 1e-12)


async def test_a_run_without_events_yet_is_an_empty_overview() -> None:
    async with sanctum([]) as (app, source, pilot):
        assert "nothing yet" in screen_text(app)
        await pilot.press("right", "enter")
        await arrive(app, source, pilot, *one_env(seed("early", 1.0)))
        assert "env 00" in screen_text(app)


async def test_a_card_that_cannot_be_drawn_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sanctum(demo_run()) as (app, _, pilot):
        card = env_grid.env_card
        monkeypatch.setattr(env_grid, "env_card", lambda env, *rest: card(None if env.env_id == 1 else env, *rest))
        app.screen.query_one(EnvGrid).redraw()
        await pilot.pause()
        assert "cannot draw this" in screen_text(app)
        assert "env 00" in screen_text(app)


async def test_a_journal_on_disk_is_followed_and_drawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for each in demo_run(completed=True):
        journal.emit(each)
    journal.close()
    with Source(tmp_path) as source:
        app = SanctumApp(source, poll_seconds=3600)
        async with app.run_test(size=(100, 30)) as pilot:
            while "■ completed" not in screen_text(app):
                await pilot.pause()
            await pilot.pause()
            assert screen_lines(app)[1].startswith(" ■ completed ")
            card = await card_of(pilot, app, "mid")
            assert card.seed.grad_ratio == app.snapshot.envs[3].seeds["mid"].grad_ratio
            assert any(f"Grad: ratio={card.seed.grad_ratio:.2f}" in words(line) for line in rendered(card))


def test_the_screenshots_name_no_host(tmp_path: Path) -> None:
    run_dir, out_dir = tmp_path / "run", tmp_path / "out"
    run_dir.mkdir()
    journal = Journal(run_dir)
    for each in demo_run():
        journal.emit(each)
    journal.close()
    script = Path(__file__).parent.parent / "scripts" / "screenshots.py"
    subprocess.run([sys.executable, script, run_dir, out_dir], check=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in out_dir.iterdir()}
    screens = ("alerts", "compare", "dense", "detail", "events", "overview", "seed")
    large = ("detail", "overview", "seed")
    assert set(drawn) == {*(f"{screen}-100x30.svg" for screen in screens), *(f"{one}-200x60.svg" for one in large)}
    for name, svg in drawn.items():
        assert re.findall(r"https?://[^\s\"'>]+", svg.replace("http://www.w3.org/2000/svg", "")) == []
        assert ("EXPLODING" in svg) is name.startswith(("detail", "seed-200"))


def test_the_app_is_imported_without_torch() -> None:
    check = "import sapflow.sanctum.app, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
