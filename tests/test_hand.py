"""The operator's hand: from a key to a seed that is gone, and every way in which that may not be."""

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from textual.pilot import Pilot

from commands import ENDLESS, SAPFLOW, Forked, wait_until
from journals import PATIENCE
from sanctum_events import START, demo_run, epoch, event, seeds_of
from sanctum_screens import Sitting, sitting
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.hand import new_request, question_lines
from sapflow.sanctum.schema import EnvState, SeedState
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen, SeedCard
from sapflow.sanctum.widgets.request_dialog import RequestDialog
from sapflow.telemetry.events import RequestAnswered, RunCompleted, SeedPruned, SeedStageChanged
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.run_directory import JOURNAL_NAME
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import EventType, SeedStage

ACTIONS = {"p": "prune", "o": "hold", "r": "resume", "x": "stop"}


def answer(request: Request, done: bool, outcome: str) -> RequestAnswered:
    return RequestAnswered(
        epoch=15, slot_id=request.slot_id, seed_id=request.seed_id, request_id=request.request_id,
        action=request.action, done=done, outcome=outcome,
    )  # fmt: skip


def dialog(now: Sitting) -> RequestDialog:
    assert isinstance(now.app.screen, RequestDialog)
    return now.app.screen


async def let_mid_be(now: Sitting, **fields: object) -> None:
    """Another epoch of env 3 passes, at the end of which its seed in mid is like that."""
    early, mid, late = seeds_of(3, 15)
    mid = replace(mid, **fields)
    await now.write(event(epoch(15, early, mid, late), 3, now.app.snapshot.envs[3].last_sequence + 1, START + 1_000))


async def look(now: Sitting) -> str:
    """What the dialog shows, once it has looked again."""
    dialog(now).look()
    await now.pilot.pause()
    return now.words


@pytest.mark.parametrize(("key", "action"), ACTIONS.items())
async def test_a_key_asks_and_only_yes_posts(tmp_path: Path, key: str, action: str) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        mailbox = Mailbox(tmp_path)
        await let_mid_be(now, paused=action == "resume")
        await now.press("enter", "right", key)
        assert f"{action.capitalize()} " in now.words
        assert ("norm mid-1 in mid of env 03?" in now.words) is (action != "stop")
        await now.press("enter", "space", "escape")
        assert isinstance(now.app.screen, EnvDetailScreen)
        await now.press(key, "n")
        assert mailbox.pending() == []
        await now.press(key, "y", "y")
        (request,) = mailbox.pending()
        asked = (3, "", "") if action == "stop" else (3, "mid", "mid-1")
        assert (request.action, request.env_id, request.slot_id, request.seed_id) == (action, *asked)
        assert "the trainer answers at the end of epoch 16" in await look(now)


@pytest.mark.parametrize(
    ("done", "outcome", "shown"),
    [(True, "pruned in TRAINING", "✓ done"), (False, "it is a part of its host", "✕ refused")],
)
async def test_the_answer_is_shown_when_it_comes(tmp_path: Path, done: bool, outcome: str, shown: str) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        mailbox = Mailbox(tmp_path)
        await now.press("enter", "right", "p", "y")
        (request,) = mailbox.pending()
        other = answer(new_request("prune", 3, "late", "late-1", 0.0), not done, "of another")
        await now.write(event(other, 3, 900))
        assert "ago; the trainer answers" in await look(now)
        await now.write(event(answer(request, done, outcome), 3, 901))
        assert f"{shown}: {outcome}" in await look(now)
        await now.press("escape")
        assert outcome in now.words


async def test_what_was_done_is_seen_before_the_next_epoch_ends(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (200, 60)) as now:
        await now.press("enter", "right", "o", "y")
        (request,) = Mailbox(tmp_path).pending()
        number = now.app.snapshot.envs[3].last_sequence + 1
        await now.write(event(answer(request, True, "held in TRAINING"), 3, number))
        await now.press("escape")
        assert "TRAINING held" in now.words
        assert "r resume" in now.lines[-1]
        assert "o hold" not in now.lines[-1]


async def test_a_trainer_that_is_gone_is_said_at_once(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right", "p")
        now.let_the_trainer_go()
        await now.press("y")
        assert "not asked: no trainer is at work" in await look(now)
        assert Mailbox(tmp_path).pending() == []


async def test_a_trainer_that_goes_without_an_answer_is_said(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right", "p", "y")
        now.let_the_trainer_go()
        await now.write()
        assert "the trainer is gone: nobody will answer" in await look(now)


def notes(now: Sitting) -> list[str]:
    """What was said to the person in passing."""
    return [note.message for note in now.app._notifications]


async def test_a_run_that_takes_no_requests_says_so_and_offers_none(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (200, 60), takes_requests=False) as now:
        await now.press("enter", "right")
        assert not any(f"{key} {action}" in now.lines[-1] for key, action in ACTIONS.items())
        for key, action in ACTIONS.items():
            await now.press(key)
            assert isinstance(now.app.screen, EnvDetailScreen)
            assert notes(now)[-1] == f"cannot {action} here: this run takes no requests: nothing grows in it"
        Mailbox(tmp_path).open()
        await now.write()
        assert "x stop" in now.lines[-1]


async def test_nothing_is_asked_about_a_module_that_is_only_watched(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run(), (200, 60)) as now:
        await now.press("enter", "right")
        await let_mid_be(now, stage=SeedStage.WATCHED)
        for key in "por":
            await now.press(key)
            assert notes(now)[-1].endswith("here: a watched module is measured, and nothing else is done to it")
        assert "x stop" in now.lines[-1]


async def test_a_question_about_a_seed_that_has_gone_meanwhile_is_not_asked_about_the_next_one(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        await now.press("enter", "right", "p")
        await let_mid_be(now, seed_id="mid-2", blueprint_id="lora")
        shown = await look(now)
        assert "Prune norm mid-1 in mid of env 03?" in shown
        assert "it cannot be asked: the seed is gone" in shown
        assert "mid-2 in mid of env" not in shown
        assert "yes, ask the trainer" not in now.words
        await now.press("y")
        assert Mailbox(tmp_path).pending() == []


@pytest.mark.parametrize("key", ACTIONS)
@pytest.mark.parametrize(
    ("read_only", "live", "why"), [(True, True, "read-only"), (False, False, "the trainer is gone")]
)
async def test_where_nothing_can_be_asked_the_key_says_why(
    tmp_path: Path, key: str, read_only: bool, live: bool, why: str
) -> None:
    async with sitting(tmp_path, demo_run(), live=live, read_only=read_only) as now:
        await now.press("enter", "right", key)
        assert isinstance(now.app.screen, EnvDetailScreen)
        (note,) = now.app._notifications
        assert f"cannot {ACTIONS[key]} here: " in note.message
        assert why in note.message
        assert f"{key} {ACTIONS[key]}" not in now.lines[-1]


async def test_a_completed_run_and_an_empty_slot_say_why(tmp_path: Path) -> None:
    async with sitting(tmp_path, [*demo_run(), event(RunCompleted(completed_envs=4), None, 1)]) as now:
        await now.press("enter", "right", "p")
        assert "the run is completed" in next(iter(now.app._notifications)).message
    async with sitting(tmp_path / "other", demo_run()) as now:
        await now.press("enter", "right", "right", "p")
        assert "no seed is in focus" in next(iter(now.app._notifications)).message


@pytest.mark.parametrize(
    ("fields", "offered", "why"),
    [
        ({}, "po", {"r": "the seed is not held"}),
        ({"paused": True}, "pr", {"o": "the seed is held already"}),
        ({"stage": SeedStage.GERMINATED}, "po", {}),
        *(
            ({"stage": stage}, "", dict.fromkeys("por", f"the seed is gone: the slot is {stage.lower()}"))
            for stage in (SeedStage.PRUNED, SeedStage.EMBARGOED)
        ),
        ({"stage": SeedStage.FOSSILIZED}, "", dict.fromkeys("por", "the seed is fossilized, a part of its host")),
    ],
)
@pytest.mark.parametrize("keys", [("enter", "right"), ("enter", "right", "enter")], ids=["env", "seed"])
async def test_what_a_seed_cannot_be_asked_is_not_offered_and_says_why(
    tmp_path: Path, keys: tuple[str, ...], fields: dict[str, object], offered: str, why: dict[str, str]
) -> None:
    async with sitting(tmp_path, demo_run(), (200, 60)) as now:
        await now.press(*keys)
        await let_mid_be(now, **fields)
        assert "".join(key for key in "por" if f"{key} {ACTIONS[key]}  " in now.lines[-1]) == offered
        for key, words in why.items():
            await now.press(key)
            assert not isinstance(now.app.screen, RequestDialog)
            assert any(note.startswith(f"cannot {ACTIONS[key]} here: {words}") for note in notes(now))


async def test_what_is_pending_is_seen_by_everybody_who_looks_at_the_env(tmp_path: Path) -> None:
    async with sitting(tmp_path, demo_run()) as now:
        mailbox = Mailbox(tmp_path)
        await now.press("enter")
        mailbox.post(Request(request_id="a", env_id=3, action="hold", slot_id="late", seed_id="late-1", by="ann"))
        mailbox.post(Request(request_id="b", env_id=1, action="stop", by="bob"))
        await now.write()
        assert "hold late asked for by ann" in now.words
        assert "bob" not in now.words
        await now.press("comma")
        assert "ann" not in now.words
        await now.press("L")
        assert "ann" in now.words
        mailbox.remove("a")
        await now.write()
        assert "ann" not in now.words


@given(words=st.text(max_size=200), action=st.sampled_from(list(ACTIONS.values())))
def test_no_text_breaks_the_question(words: str, action: str) -> None:
    seed = SeedState(slot_id=words, seed_id=words, blueprint_id=words, stage=SeedStage.FOSSILIZED)
    for spans in question_lines(action, EnvState(env_id=1), seed, 60):
        assert all(text.isprintable() for text, _ in spans)


# In earnest: a trainer of its own


@contextlib.contextmanager
def trainer(cwd: Path) -> Iterator[tuple[Path, Forked]]:
    """`sapflow train` at work in another process, on one env with seeds in its slots."""
    run_dir = cwd / "run"
    trainer = Forked((*ENDLESS[len(SAPFLOW) :], "--run-dir", str(run_dir), "--checkpoint-every", "0"), cwd)
    try:
        wait_until((run_dir / JOURNAL_NAME).exists, "a journal")
        yield run_dir, trainer
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.finish()


def stop_when_a_seed_learns(run_dir: Path, trainer: Forked) -> None:
    """Let it run for moments only: it would be past that before a viewer has looked, where the machine is busy."""

    def learns() -> bool:
        trainer.send_signal(signal.SIGCONT)
        time.sleep(0.02)
        trainer.send_signal(signal.SIGSTOP)
        changes = [told.payload for told in source.events([EventType.SEED_STAGE_CHANGED], 0)]
        return any(isinstance(one, SeedStageChanged) and one.to_stage is SeedStage.TRAINING for one in changes)

    with Source(run_dir) as source:
        wait_until(learns, "a seed that learns")


@asynccontextmanager
async def watching(run_dir: Path) -> AsyncIterator[tuple[SanctumApp, Pilot[None]]]:
    with Source(run_dir) as source:
        app = SanctumApp(source, poll_seconds=0.05)
        async with app.run_test(size=(100, 30)) as pilot:
            yield app, pilot


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        await pilot.pause(0.05)


def ended(app: SanctumApp) -> bool:
    return app.snapshot.status is not None and app.snapshot.status.state is RunState.COMPLETED


async def focus_slot(app: SanctumApp, pilot: Pilot[None], slot_id: str) -> None:
    """Goes to the slot's card, from the one on the left of it or of one before."""
    slots = [card.seed.slot_id for card in app.screen.query(SeedCard)]
    at = slots.index(app.subject.slot_id)
    await pilot.press(*["right"] * (slots.index(slot_id) - at), *["left"] * (at - slots.index(slot_id)))


async def test_a_seed_is_pruned_by_hand_and_a_fossil_is_not(tmp_path: Path) -> None:
    with trainer(tmp_path) as (run_dir, process):
        stop_when_a_seed_learns(run_dir, process)
        async with watching(run_dir) as (app, pilot):
            seeds = lambda: app.snapshot.envs[0].seeds if 0 in app.snapshot.envs else {}  # noqa: E731

            answers = lambda: [told.payload for told in app.source.events([EventType.REQUEST_ANSWERED], 0)]  # noqa: E731

            def first_in(stage: SeedStage) -> str:
                return next((slot_id for slot_id, seed in seeds().items() if seed.stage is stage), "")

            await until(pilot, lambda: bool(first_in(SeedStage.TRAINING)))
            await pilot.press("enter")
            slot_id = first_in(SeedStage.TRAINING)
            await focus_slot(app, pilot, slot_id)
            doomed = app.subject.seed_id
            await pilot.press("p", "y")
            asked = app.screen
            assert isinstance(asked, RequestDialog)
            process.send_signal(signal.SIGCONT)
            await until(pilot, lambda: asked.answer is not None)
            assert asked.answer is not None
            assert (asked.answer.done, asked.answer.seed_id) == (True, doomed)
            await pilot.press("escape")
            await until(pilot, lambda: seeds()[slot_id].stage is SeedStage.PRUNED or seeds()[slot_id].seed_id != doomed)
            with Source(run_dir) as source:
                (cut,) = source.events([EventType.SEED_PRUNED], 0)
            assert isinstance(cut.payload, SeedPruned)
            assert (cut.payload.seed_id, cut.payload.rule) == (doomed, "by hand")

            await until(pilot, lambda: bool(first_in(SeedStage.FOSSILIZED)))
            fossil = first_in(SeedStage.FOSSILIZED)
            await focus_slot(app, pilot, fossil)
            await pilot.press("p")
            assert not isinstance(app.screen, RequestDialog)
            # As one that was asked before the seed was a fossil, or by another program.
            asked_late = new_request("prune", 0, fossil, seeds()[fossil].seed_id, time.time())
            Mailbox(run_dir).post(asked_late)
            await until(pilot, lambda: any(a.request_id == asked_late.request_id for a in answers()))
            (refused,) = [a for a in answers() if a.request_id == asked_late.request_id]
            assert not refused.done
            assert "fossilized" in refused.outcome
            assert seeds()[fossil].stage is SeedStage.FOSSILIZED

            async with watching(run_dir) as (other, its_pilot):  # a second person at the same run
                await until(its_pilot, lambda: 0 in other.snapshot.envs)
                await its_pilot.press("x", "y")
                await until(its_pilot, lambda: ended(other))
            await until(pilot, lambda: ended(app))
            assert Mailbox(run_dir).pending() == []
