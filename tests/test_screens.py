"""The screens that lie upon the overview, as a person meets them: a real journal, keys in, text out."""

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from textual import events
from textual.widgets import Input

from journals import finished_run
from sanctum_events import EPOCHS, demo_run, epoch, event, explosion, sample, seed
from sanctum_screens import Sitting, sitting
from sapflow.errors import JournalError
from sapflow.sanctum import slot_history
from sapflow.sanctum.log_book import LogBook
from sapflow.sanctum.numbers import clock
from sapflow.sanctum.query import LogFilter
from sapflow.sanctum.slot_history import SlotHistory
from sapflow.sanctum.widgets.alert_screen import AlertScreen
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen, SeedCard
from sapflow.sanctum.widgets.env_grid import EnvGrid
from sapflow.sanctum.widgets.env_overview import OverviewScreen
from sapflow.sanctum.widgets.event_screen import EventScreen
from sapflow.sanctum.widgets.panel import Panel
from sapflow.sanctum.widgets.row_list import RowList
from sapflow.sanctum.widgets.seed_detail_screen import SeedDetailScreen
from sapflow.sanctum.widgets.shell import Subject
from sapflow.telemetry.events import (
    ActionTaken,
    AlertCleared,
    AlertRaised,
    EnvStarted,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    TelemetryEvent,
)
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType, SeedStage

SIZES = [(80, 24), (100, 30), (200, 60)]


def chosen_card(now: Sitting) -> SeedCard:
    """The one with the heavy frame."""
    return next(card for card in now.app.screen.query(SeedCard) if "┏" in card.render_line(0).text)


def chosen_slot(now: Sitting) -> str:
    return chosen_card(now).seed.slot_id


def next_of(now: Sitting, env_id: int) -> int:
    """The sequence of the env's next event."""
    return now.app.snapshot.envs[env_id].last_sequence + 1


def pruning(number: int) -> TelemetryEvent:
    """A seed of env 3 is pruned."""
    cut = SeedPruned(
        epoch=number, slot_id="late", seed_id="late-9", blueprint_id="conv", stage=SeedStage.TRAINING,
        rule="dying seed", grad_ratio=0.001, evidence=f"cut in epoch {number}",
    )  # fmt: skip
    return event(cut, 3, 100 + number, time=1_795_375_000.0 + number)


# An env's own screen


async def test_the_focus_goes_from_card_to_card_and_enter_opens_the_seed(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter")
        assert isinstance(now.app.screen, EnvDetailScreen)
        assert chosen_slot(now) == "early"
        walked = []
        for key in ("right", "l", "l", "left", "h", "h", "shift+tab", "tab"):
            await now.press(key)
            walked.append(chosen_slot(now))
        assert walked == ["mid", "late", "late", "mid", "early", "early", "late", "early"]
        await now.press("right", "enter")
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert (now.app.screen.env_id, now.app.screen.slot_id) == (3, "mid")
        await now.press("escape")
        assert chosen_slot(now) == "mid"
        await now.press("escape")
        assert isinstance(now.app.screen, OverviewScreen)


async def test_a_click_on_a_card_opens_the_seed(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter")
        await now.pilot.click(list(now.app.screen.query(SeedCard))[2])
        await now.pilot.pause()
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert now.app.screen.slot_id == "late"


async def test_many_cards_are_walked_row_by_row_and_each_is_seen_whole(tmp_path: Path) -> None:
    slots = [seed(f"slot{n}", 1.0) for n in range(7)]
    async with sitting(tmp_path, [event(epoch(1, *slots), 0, 0)]) as now:
        await now.press("enter")
        await now.press(*["down"] * 40)
        assert chosen_slot(now) == "slot6"
        card = chosen_card(now)
        view = card.parent.parent.content_region  # type: ignore[union-attr]
        assert card.region.bottom == view.bottom
        await now.press(*["k"] * 40)
        assert chosen_slot(now) == "slot0"
        assert next(iter(now.app.screen.query(SeedCard))).region.y == view.y


async def test_the_help_names_every_key_once(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (100, 60)) as now:
        await now.press("enter", "question_mark")
        assert "←↓↑→ " in now.text
        assert "←↓↑→ ←↓↑→" not in now.text


async def test_the_chosen_card_stays_chosen_while_another_window_is_in_front(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right")
        now.app.post_message(events.AppBlur())
        await now.write(event(sample(15, "early", 0, 4.0), 3, None))
        assert (chosen_slot(now), now.app.subject.slot_id) == ("mid", "mid")
        now.app.post_message(events.AppFocus())
        await now.press("right")
        assert (chosen_slot(now), now.app.subject.slot_id) == ("late", "late")


async def test_the_keys_of_the_chosen_card_work_while_the_time_bar_has_the_arrows(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right", "t", "t")
        assert chosen_slot(now) == "mid"
        await now.press("t", "y")
        assert "mid" in now.app.clipboard
        await now.press("tab", "tab", "shift+tab", "shift+tab", "left")  # the arrows are the bar's
        assert (chosen_slot(now), now.app.moment) == ("mid", 13)
        await now.press("end", "enter")
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert now.app.screen.slot_id == "mid"


async def test_the_time_bar_gives_the_keys_back_to_what_had_them(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        for opens, has_them in (("s", EnvGrid), ("e", RowList)):
            await now.press(opens, "t", "t")
            assert isinstance(now.app.focused, has_them)


async def test_the_subject_is_the_seed_in_focus(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right")
        assert now.app.subject == Subject(3, "mid", "mid-1")
        await now.press("enter")
        assert now.app.subject == Subject(3, "mid", "mid-1")


@pytest.mark.parametrize("size", SIZES)
async def test_an_env_of_which_nothing_is_known_is_an_empty_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    async with sitting(tmp_path, demo_run(), size) as now:
        await now.app.open(EnvDetailScreen(77))
        await now.pilot.pause()
        assert "env 77" in now.text
        assert "nothing yet" in now.text


# A seed's own screen


async def open_seed(now: Sitting, env_id: int, slot_id: str) -> SeedDetailScreen:
    await now.app.open(SeedDetailScreen(env_id, slot_id))
    await now.pilot.pause()
    assert isinstance(now.app.screen, SeedDetailScreen)
    return now.app.screen


def shown_history(now: Sitting) -> SlotHistory:
    assert isinstance(now.app.screen, SeedDetailScreen)
    return now.app.screen.history


@pytest.mark.parametrize("size", SIZES)
async def test_a_seeds_screen_says_all_of_it_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    async with sitting(tmp_path, demo_run(), size) as now:
        await open_seed(now, 3, "early")
        for what in ("env 03 › early", "TRAINING", "exploder", "7.31", "epochs 1 – 15"):
            assert what in now.lines[2]
        for what in ("2×", "1/2×", "stage", "spread"):
            assert what in now.text
        assert "cannot draw" not in now.text
        scrolled = now.text
        for _ in range(3):
            await now.press(*["down"] * 6)
            scrolled += now.text
        for what in ("alert open", "exploding seed (critical)", "ratio 7.31 for 3 epochs", "germinated", "its life"):
            assert what in scrolled
        assert ("Grad: ▲ EXPLODING" in now.text) is (size[0] >= 140)
        assert ("entering" in now.text) is (size[1] > 30)


async def test_the_norms_have_the_place_of_the_ratio_where_only_one_has_room(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (80, 24)) as now:
        await open_seed(now, 3, "early")
        await now.press("n")
        assert "entering" in now.text
        assert "ratio of each pass" not in now.text
        await now.press("n")
        assert "ratio of each pass" in now.text


async def test_zooming_and_panning_change_the_epochs_shown(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(epochs=30)) as now:
        await open_seed(now, 3, "early")
        assert "epochs 1 – 31" in now.text
        await now.press("plus")
        assert "epochs 24 – 31" in now.text  # windows that are longer than the run are passed over
        await now.press("left")
        assert "epochs 20 – 27" in now.text
        assert {math.ceil(each.at) for each in shown_history(now).passes} <= set(range(20, 28))
        await now.press("right", "right", "right")
        assert "epochs 24 – 31" in now.text
        await now.press(*["h"] * 20)
        assert "epochs 1 – 8" in now.text
        await now.press("minus")
        assert "epochs 1 – 31" in now.text
        await now.press("plus")
        assert "epochs 24 – 31" in now.text  # all of them were shown: what had been panned to is over


async def test_what_was_panned_to_stands_while_the_run_goes_on_and_time_is_travelled(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(epochs=30)) as now:
        await open_seed(now, 3, "early")
        await now.press("plus", "left")
        assert "epochs 20 – 27" in now.text
        await now.write(event(epoch(31, seed("early", 4.0)), 3, next_of(now, 3)))
        assert "epochs 20 – 27" in now.text
        for moment, shown in ((23, "16 – 23"), (4, "1 – 4"), (28, "20 – 27")):
            now.app.go_to(moment)
            await now.settle()
            assert f"epochs {shown} " in now.text
            assert shown_history(now).epochs[-1][0] == min(moment, 27)
        await now.press("L", "right", "right")
        assert "epochs 25 – 32" in now.text
        await now.write(event(epoch(32, seed("early", 4.0)), 3, next_of(now, 3)))
        assert "epochs 26 – 33" in now.text


@pytest.mark.parametrize(
    ("epochs", "size", "keys", "offered"),
    [
        (1, (200, 60), (), {"tab slot"}),
        (30, (200, 60), (), {"+- zoom", "tab slot"}),
        (30, (200, 60), ("plus",), {"+- zoom", "←→ pan", "tab slot"}),
        (30, (200, 60), ("plus", "minus"), {"+- zoom", "tab slot"}),
        (1, (130, 24), (), {"tab slot", "n norms"}),
    ],
)
async def test_only_keys_that_change_something_are_offered(
    tmp_path: Path, epochs: int, size: tuple[int, int], keys: tuple[str, ...], offered: set[str]
) -> None:
    async with sitting(tmp_path, demo_run(epochs=epochs), size) as now:
        await open_seed(now, 3, "early")
        await now.press(*keys)
        bar = now.lines[-1]
        assert {key for key in ("+- zoom", "←→ pan", "tab slot", "n norms") if key in bar} == offered


async def test_the_card_is_copied_from_the_envs_and_from_the_seeds_screen(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right", "y")
        copied = now.app.clipboard
        for words in ("mid", "TRAINING", "Blueprint: norm", "Grad: ratio=", "64 passes"):
            assert words in copied
        now.app.copy_to_clipboard("")
        await now.press("enter", "y")
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert now.app.clipboard.splitlines()[1:] == copied.splitlines()[1:]  # but for the frame of what is in focus


async def test_tab_goes_on_to_the_next_slot(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await open_seed(now, 3, "early")
        await now.press("tab")
        assert "env 03 › mid" in now.text
        await now.press("tab", "tab", "shift+tab")
        assert "env 03 › late" in now.text


async def test_new_passes_are_drawn_while_it_is_open(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await open_seed(now, 3, "early")
        before = len(shown_history(now).passes)
        await now.write(event(sample(15, "early", 0, 4.0), 3, None))
        passes = shown_history(now).passes
        assert len(passes) == before + 2
        assert [each.ratio for each in passes[-2:]] == [4.0, 4.0]
        await now.write(event(epoch(15, seed("early", 4.0)), 3, next_of(now, 3)))
        assert shown_history(now).epochs[-1][0] == 15
        assert "epochs 1 – 16" in now.text


async def test_stage_changes_and_alerts_are_marked_at_their_epoch(tmp_path: Path) -> None:
    def turn(number: int, stage: SeedStage) -> SeedStageChanged:
        return SeedStageChanged(
            epoch=number, slot_id="a", seed_id="a-1", from_stage=SeedStage.TRAINING, to_stage=stage, reason="because"
        )

    alert = explosion(1).__class__(
        rule="exploding seed", severity=explosion(1).severity, slot_id="a", seed_id="a-1", blueprint_id="conv",
        since_epoch=5, value=3.0,
    )  # fmt: skip
    payloads = [
        EnvStarted(host="h", host_params=1, slot_ids=("a",), epochs=EPOCHS),
        SeedGerminated(epoch=2, slot_id="a", seed_id="a-1", blueprint_id="conv", seed_params=1, birth_gain=1.0),
        turn(4, SeedStage.BLENDING),
        *(epoch(number, seed("a", 1.0)) for number in range(1, 11)),
        AlertRaised(epoch=6, alert=alert),
        turn(8, SeedStage.HOLDING),
    ]
    async with sitting(tmp_path, [event(each, 0, n) for n, each in enumerate(payloads)], live=False) as now:
        await open_seed(now, 0, "a")
        rows = {row.split()[0]: row for row in now.lines if row.split()[:1] in (["stage"], ["marks"], ["epoch"])}
        begin = {number: rows["epoch"].index(f" {number} ") for number in (3, 5, 7, 9)}
        assert begin[3] - 6 < rows["stage"].index("◌") < begin[3]
        assert begin[5] - 6 < rows["stage"].index("◐") < begin[5]
        assert begin[9] - 6 < rows["stage"].index("◕") < begin[9]
        assert begin[7] - 6 < rows["marks"].index("⚑") < begin[7]


async def test_a_long_life_is_read_a_little_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_history, "READ_AT_ONCE", 30)
    async with sitting(tmp_path, demo_run(epochs=14)) as now:
        await open_seed(now, 3, "early")
        looks = 1
        while "the journal is being read" in now.text:
            assert len(shown_history(now).passes) < 28
            await now.app.show()
            await now.settle()
            looks += 1
        assert len(shown_history(now).passes) == 28
        assert 3 < looks < 28


async def test_a_slot_that_is_not_there_is_an_empty_screen(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await open_seed(now, 3, "no such slot")
        assert "cannot draw" not in now.text
        assert "no pass with a finite ratio" in now.text
        await now.press("tab", "plus", "left", "n")
        assert "cannot draw" not in now.text


# The log of events


def entries(now: Sitting) -> list[str]:
    """The rows of the list, without the header, the filter and the footer."""
    above = next(n for n, row in enumerate(now.lines) if "1 all" in row)
    return [row for row in now.lines[above + 1 : -1] if row.strip()]


@pytest.mark.parametrize("size", SIZES)
async def test_the_log_is_followed_until_somebody_scrolls_up_and_then_says_so(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with sitting(tmp_path, demo_run(), size) as now:
        await now.press("e")
        assert isinstance(now.app.screen, EventScreen)
        assert "●" in now.lines[2]
        await now.write(pruning(15))
        assert "pruned" in entries(now)[-1]
        await now.press("up")
        assert "‖ paused" in now.text
        chosen = next(row for row in entries(now) if "▌" in row)
        await now.write(*(pruning(number) for number in range(16, 100)))
        assert next(row for row in entries(now) if "▌" in row) == chosen
        assert f"{clock(pruning(99).time)}" not in now.text
        await now.press("end")
        assert "●" in now.lines[2]
        assert clock(pruning(99).time) in entries(now)[-1]


async def test_the_log_of_the_env_in_focus_and_of_all(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "e")
        assert {row.split("env ")[1][:2] for row in entries(now)} == {"03"}
        await now.press("0")
        assert {row.split("env ")[1][:2] for row in entries(now) if "env " in row} == {"00", "01", "02", "03"}


@pytest.mark.parametrize(
    ("key", "kind", "marks"), [("2", "growth", "◌→●"), ("3", "pruned", "✕"), ("4", "alerts", "⚑✓")]
)
async def test_a_key_shows_one_kind(tmp_path: Path, key: str, kind: str, marks: str) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("e", key)
        rows = entries(now)
        assert rows
        assert all(any(mark in row for mark in marks) for row in rows)
        await now.press("1")
        assert len(entries(now)) > len(rows)


async def test_search_narrows_while_it_is_typed_and_escape_forgets_it(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("e")
        everything = entries(now)
        await now.press("slash", *"vanish")
        assert len(entries(now)) == 2  # the search itself, and what it found
        assert "vanishing seed" in entries(now)[-1]
        await now.press("q", "space", "a")  # letters, not commands
        assert now.app.screen.query_one(Input).value == "vanishq a"
        await now.press("escape")
        assert entries(now) == everything
        assert isinstance(now.app.screen, EventScreen)
        await now.press("slash", *"env:1 slot:late", "enter")
        assert isinstance(now.app.focused, RowList)
        assert "pruned  vanisher" in entries(now)[-1]
        await now.press("escape", "escape")
        assert isinstance(now.app.screen, OverviewScreen)


async def test_entries_that_the_snapshot_has_lost_come_from_the_journal(tmp_path: Path) -> None:
    cuts = [pruning(number) for number in range(15, 1_915)]
    async with sitting(tmp_path, [*demo_run(), *cuts]) as now:
        assert len(now.app.snapshot.log) == 500
        await now.press("e")
        for _ in range(4):
            await now.press("home")
        assert "run started" in entries(now)[0]
        await now.press("slash", *'"birth gain"', "enter")
        assert len(entries(now)) == 5


async def test_what_came_while_another_screen_lay_on_top_is_in_the_log_and_in_the_alerts(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        for key, more in (("e", 600), ("a", 0)):
            await now.press(key)
            list_of = now.app.screen.query_one(RowList)
            before = len(list_of.rows)
            await now.press("c")
            if more:
                await now.write(*(pruning(number) for number in range(15, 15 + more)))
            else:
                await now.write(*story())
            await now.press("escape")
            assert len(list_of.rows) - before == (more or 3)
            await now.press("escape")


@pytest.mark.parametrize("unreadable", ["id % 2", "id > (SELECT max(id) - 600 FROM events)"])
def test_what_cannot_be_read_is_not_taken_for_the_end_of_the_log(tmp_path: Path, unreadable: str) -> None:
    run_dir = finished_run(tmp_path, *demo_run(), *(pruning(number) for number in range(15, 1_015)))
    with closing(sqlite3.connect(run_dir / JOURNAL_NAME)) as connection, connection:
        connection.execute(f"UPDATE events SET body = x'c1' WHERE type = 'SEED_PRUNED' AND {unreadable}")
    with Source(run_dir) as source:
        source.skip_to_end()
        book = LogBook(source, LogFilter())
        while not book.complete:
            book.want_more()
            book.look()
        assert book.shown[0].kind is EventType.RUN_STARTED


def test_what_is_said_after_the_clock_was_set_back_stands_at_the_end_of_the_log(tmp_path: Path) -> None:
    told = [replace(pruning(number), time=1e9 - number) for number in range(700)]
    with Source(finished_run(tmp_path, *told)) as source:
        source.read(limit=650)
        book = LogBook(source, LogFilter())
        book.look()
        source.read()
        book.want_more(700)
        book.look()
        assert [entry.sequence for entry in book.shown] == [event.sequence for event in told]
        book.search(LogFilter(kind="pruned"))  # of what is known already
        assert [entry.sequence for entry in book.shown] == [event.sequence for event in told]


async def test_enter_opens_the_seed_that_an_entry_is_about(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("e", "3", "enter")
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert (now.app.screen.env_id, now.app.screen.slot_id) == (1, "late")


async def test_enter_opens_the_model_itself_where_that_is_watched(tmp_path: Path) -> None:
    steep = replace(explosion(1), slot_id="", seed_id="")
    told = EnvStarted(host="Net", host_params=9, slot_ids=("", "body"), epochs=0)
    modules = [seed(name, 7.0, seed_id=name, stage=SeedStage.WATCHED) for name in ("", "body")]
    payloads = told, AlertRaised(epoch=1, alert=steep), epoch(1, *modules, open_alerts=(steep,))
    async with sitting(tmp_path, [event(payload, 0, number) for number, payload in enumerate(payloads)]) as now:
        await now.press("a")
        assert "env 00 the model" in now.text
        await now.press("enter")
        assert isinstance(now.app.screen, SeedDetailScreen)
        assert "env 00 › the model" in now.text


async def test_a_click_moves_the_cursor_and_the_wheel_too(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("e")
        await now.pilot.click(RowList, offset=(10, 2))
        await now.pilot.pause()
        assert "▌" in now.lines[5]
        rows = now.app.screen.query_one(RowList)
        await now.press("pagedown", "G")
        assert rows.following
        rows.action_move(-3)
        assert not rows.following


# A journal that cannot be looked up


def torn(*told: object, **how: object) -> None:
    raise JournalError("journal.sqlite is truncated or damaged: restore it from a copy")


@pytest.mark.parametrize(
    ("keys", "look_up"),
    [
        (("e",), "places_before"),
        (("a",), "places_before"),
        (("t",), "places_before"),
        (("enter", "enter"), "moments"),
        (("c",), "envs"),
    ],
    ids=["events", "alerts", "time bar", "seed", "compare"],
)
async def test_a_look_up_that_fails_is_told_until_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], look_up: str
) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        with monkeypatch.context() as broken:
            broken.setattr(now.app.source, look_up, torn)
            await now.press(*keys)
            await now.write()
            assert "⚑ journal.sqlite is truncated or damaged" in now.lines[2]
        await now.write()
        await now.write()
        assert "damaged" not in now.text


async def test_what_could_not_be_looked_up_is_not_told_once_nobody_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        monkeypatch.setattr(now.app.source, "places_before", torn)
        await now.press("a")
        await now.write()
        assert "damaged" in now.lines[2]
        await now.press("escape")
        await now.write()
        assert "damaged" not in now.text


async def test_the_run_beside_is_named_where_it_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Source(finished_run(tmp_path / "beside", *demo_run(5))) as other:
        async with sitting(tmp_path / "run", demo_run(), other=other) as now:
            monkeypatch.setattr(other, "moment", torn)
            await now.write()
            await now.write()
            assert "⚑ beside: journal.sqlite is truncated or damaged" in now.lines[2]


# Alerts


def story() -> list[TelemetryEvent]:
    """An alert that led to nothing, one that was acted upon, and one that stands."""
    acted, closed, opened = explosion(3), explosion(5), explosion(13)
    failed = ActionTaken(epoch=5, alert=acted, action="prune", done=False, outcome="it is fossilised")
    held = ActionTaken(epoch=5, alert=acted, action="hold", done=True, outcome="held")
    told = [
        AlertRaised(epoch=4, alert=acted),
        failed,
        held,
        AlertCleared(epoch=6, alert=acted, reason="back to normal"),
        AlertRaised(epoch=7, alert=closed),
        AlertCleared(epoch=8, alert=closed, reason="the seed was pruned"),
        AlertRaised(epoch=15, alert=opened),
    ]
    return [event(each, 2, 500 + n, time=1_795_376_000.0 + n) for n, each in enumerate(told)]


@pytest.mark.parametrize("size", SIZES)
async def test_alerts_stand_there_with_value_evidence_action_and_outcome(tmp_path: Path, size: tuple[int, int]) -> None:
    async with sitting(tmp_path, [*demo_run(), *story()], size) as now:
        await now.press("a")
        assert isinstance(now.app.screen, AlertScreen)
        rows = [row for row in now.lines if "exploding seed  " in row]
        assert [row.split()[1 if "▌" not in row else 2] for row in rows] == ["open", "open", "closed", "closed"]
        assert "exploding seed" in rows[0]
        assert "7.31" in rows[0]
        assert "→ prune" in rows[0]
        await now.press("end")
        assert "prune ✕  hold ✓" in now.text
        details = now.text
        fits = "evidence" in details and "back to normal" in details
        assert ("[ ] scroll" in now.lines[-1]) is not fits
        for _ in range(8):
            await now.press("]")
            details += now.text
        for what in ("it is fossilised", "held (epoch 5)", "back to normal", "evidence  ratio 7.31 for 3 epochs"):
            assert what in details
        await now.press("[")
        assert ("evidence" in now.text) is fits
        await now.press("up")  # another alert is read from its beginning
        assert "evidence" in now.text


async def test_an_entry_of_the_log_offers_what_can_be_asked_about_its_seed(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*demo_run(), *story()]) as now:
        await now.press("e")
        entry = now.app.looked_at.rows.chosen
        assert now.app.subject == (entry.env_id, entry.slot_id, entry.seed_id)
        assert entry.seed_id
        assert "prune" in now.text


async def test_open_and_closed_alerts_and_a_search(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*demo_run(), *story()]) as now:
        await now.press("a", "2")
        assert "1 of 2" in now.text
        await now.press("3")
        assert "1 of 2" in now.text
        await now.press("1", "slash", *"fossilised")
        assert "1 of 1" in now.text
        await now.press("escape", "slash", *"env:3")
        assert "1 of 1" in now.text


async def test_a_new_alert_appears_at_the_top_and_the_cursor_stays(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*demo_run(), *story()]) as now:
        await now.press("a", "end")
        chosen = next(row for row in now.lines if "▌" in row)
        another = explosion(15)
        await now.write(event(AlertRaised(epoch=15, alert=another), 0, next_of(now, 0), time=1_795_377_000.0))
        assert next(row for row in now.lines if "▌" in row) == chosen
        assert "5 of 5" in now.text
        await now.press("home", "enter")
        assert isinstance(now.app.screen, SeedDetailScreen)


async def test_a_run_without_alerts_says_so(tmp_path: Path) -> None:
    async with sitting(tmp_path, [event(epoch(1, seed("a", 1.0)), 0, 0)]) as now:
        await now.press("a")
        assert "no alert like that" in now.text
        await now.press("down", "enter", "escape")
        assert isinstance(now.app.screen, OverviewScreen)


def test_a_panel_draws_again_only_for_another_state() -> None:
    panel, drawn = Panel(), list[int]()
    panel.redraw = lambda: drawn.append(1)  # type: ignore[method-assign]
    panel.show((1, "a"), lambda width, height: ())
    panel.show((1, "a"), lambda width, height: ())
    panel.show((2, "a"), lambda width, height: ())
    assert len(drawn) == 2
