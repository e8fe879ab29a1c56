"""Journals from strangers on every screen: no text and no number leaves its place, or stops the app."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sanctum_events import epoch, event, explosion, sample, seed
from sanctum_screens import Sitting, sitting
from sapflow.sanctum.alert_history import AlertLife
from sapflow.sanctum.alert_panels import alert_details, alert_row
from sapflow.sanctum.comparison import Side, comparison_lines, side_line
from sapflow.sanctum.event_panels import alert_filter_line, log_filter_line
from sapflow.sanctum.hand import pending_lines
from sapflow.sanctum.panels import log_row
from sapflow.sanctum.query import AlertFilter, LogFilter, Query
from sapflow.sanctum.schema import EnvState, LogLine, SeedState
from sapflow.sanctum.slot_charts import spread_lines
from sapflow.sanctum.slot_history import Pass, SlotHistory
from sapflow.sanctum.slot_panels import history_lines, slot_line, story_lines
from sapflow.sanctum.spans import Line, width_of
from sapflow.telemetry.events import (
    ActionTaken,
    AlertCleared,
    AlertRaised,
    EnvStarted,
    EpochCompleted,
    Payload,
    RunStarted,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.mailbox import Request
from sapflow.telemetry.vocabulary import EventType, Measurement, SeedStage

numbers = st.floats(allow_nan=True, allow_infinity=True)
epochs = st.integers(-(2**40), 2**62)
texts = st.text(max_size=120)
widths = st.integers(12, 150)
HOSTILE = [
    "[bold]x[/]",
    "\x1b[31mred\x1b[0m\x1b]0;t\x07",
    "\u202eevil\u200d",
    "a" * 10_000,
    "漢字" * 5_000,
    "\n\r\t\x00",
    "",
]


def harmless(lines: list[Line] | tuple[Line, ...], width: int | None = None) -> None:
    for spans in lines:
        assert all(text.isprintable() for text, _ in spans)
        assert width is None or width_of(spans) <= width


@given(words=texts, value=numbers, since=epochs, cleared=st.none() | epochs, width=widths)
def test_no_alert_breaks_its_row_or_its_details(
    words: str, value: float, since: int, cleared: int | None, width: int
) -> None:
    alert = replace(
        explosion(1), rule=words, slot_id=words, seed_id=words, blueprint_id=words, evidence=words, value=value,
        since_epoch=since, actions=(words,),
    )  # fmt: skip
    taken = ActionTaken(epoch=since, alert=alert, action=words, done=False, outcome=words)
    life = AlertLife(env_id=since, alert=alert, cleared_epoch=cleared, cleared_reason=words, raised_at=value)
    for each in (life, replace(life, actions=(taken, taken))):
        harmless([alert_row(each, width, 8)], width)
        harmless(alert_details(each, max(width, 40)))


@given(words=texts, moment=numbers, width=widths)
def test_no_entry_and_no_search_breaks_its_line(words: str, moment: float, width: int) -> None:
    entry = LogLine(time=moment, env_id=-5, sequence=1, kind=EventType.ENV_FAILED, parts=(words,) * 3, slot_id=words)
    query = Query.parse(words)
    harmless([log_row(entry, width, 8)], width)
    for cursor in (-1, 10**9):
        harmless([log_filter_line(LogFilter(query=query), cursor, 10**9, False, width)], width)
        harmless([alert_filter_line(AlertFilter(query=query), cursor, 10**9, width)], width)
    request = Request(request_id="a", env_id=1, action="prune", slot_id=words, seed_id=words, asked_at=moment, by=words)
    harmless(pending_lines([request], EnvState(env_id=1)))


@settings(max_examples=60)
@given(
    first=epochs, length=st.integers(0, 2**60), ratios=st.lists(numbers, max_size=12), words=texts, width=widths,
    height=st.integers(1, 60), norms=st.booleans(),
)  # fmt: skip
def test_no_history_breaks_a_seeds_screen(
    first: int, length: int, ratios: list[float], words: str, width: int, height: int, norms: bool
) -> None:
    telemetry = seed(words, 1.0, ratio_histogram=(0, -3, 10**12), blueprint_id=words, seed_id=words)
    told: list[Payload] = [
        SeedGerminated(
            epoch=first, slot_id=words, seed_id=words, blueprint_id=words, seed_params=-1, birth_gain=math.nan
        ),
        SeedStageChanged(
            epoch=first, slot_id=words, from_stage=SeedStage.DORMANT, to_stage=SeedStage.PRUNED, reason=words
        ),
        AlertRaised(epoch=first + length, alert=replace(explosion(1), slot_id=words, rule=words)),
    ]
    history = SlotHistory(
        first=first,
        last=first + length,
        epochs=tuple((first + n, replace(telemetry, grad_ratio=ratio)) for n, ratio in enumerate(ratios)),
        passes=tuple(Pass(first + n / 2, ratio, 1.0) for n, ratio in enumerate(ratios)),
        turns=tuple(event(payload, 0, n) for n, payload in enumerate(told)),
    )
    harmless(history_lines(history, width, height, norms))
    harmless([slot_line(-1, SeedState.from_telemetry(telemetry), "epochs 1 – 2", width)])
    harmless(story_lines(0, history, [explosion(1)], max(width, 40)))
    harmless(spread_lines([telemetry], width, height))


@settings(max_examples=40)
@given(values=st.lists(st.tuples(epochs, numbers), max_size=8), words=texts, width=widths, rows=st.integers(2, 20))
def test_no_epoch_breaks_a_comparison(values: list[tuple[int, float]], words: str, width: int, rows: int) -> None:
    ended = tuple(
        EpochCompleted(epoch=n, epochs=1, seeds=(seed(words, value),), accuracy=value, validation_loss=value)
        for n, value in sorted(values, key=lambda pair: pair[0])
    )
    side = Side(run=words, env_id=3, epochs=ended)
    harmless(comparison_lines(side, side, width, rows))
    harmless([side_line(1, side, True, width)], width)


def strangers(words: str) -> list[TelemetryEvent]:
    """A run whose every text is `words`, and whose numbers are no less odd."""
    alert = replace(explosion(1), rule=words, slot_id=words, seed_id=words, evidence=words, actions=(words,))
    odd = seed(words, math.nan, has_vanishing=False, has_exploding=False, seed_id=words, evidence=words, passes=2**62)
    lost = SeedTelemetry(slot_id="lost", measurement=Measurement.PROBE_LOST, measurement_reason=words, alpha=math.nan)
    huge = replace(sample(2, words, 0, 1.0, seed_id=words), pass_index=(-7, 2**62), entering=(math.nan, 0.0))
    told: list[Payload] = [
        EnvStarted(host=words, host_params=-1, slot_ids=(words, "lost"), epochs=2**62),
        SeedGerminated(epoch=1, slot_id=words, seed_id=words, blueprint_id=words, seed_params=-1, birth_gain=math.inf),
        epoch(1, odd, lost, open_alerts=(alert,), accuracy=math.nan, validation_loss=math.inf, train_loss=-math.inf),
        AlertRaised(epoch=1, alert=alert),
        ActionTaken(epoch=1, alert=alert, action=words, done=False, outcome=words),
        AlertCleared(epoch=1, alert=replace(alert, value=math.nan), reason=words),
        SeedPruned(epoch=1, slot_id=words, seed_id=words, stage=SeedStage.TRAINING, rule=words, grad_ratio=math.nan),
    ]
    events = [event(RunStarted(task=words, envs=-1, epochs=-1), None, 0)]
    events += [event(payload, 0, n, time=math.inf if n % 2 else -1e300) for n, payload in enumerate(told)]
    return [*events, event(huge, 0, None), event(epoch(3, odd, lost), 1, 1)]


async def walk(now: Sitting) -> list[str]:
    """Every line of every screen."""
    seen = list(now.lines)
    walk = ("enter", "enter", "n", "plus", "tab", "escape", "escape", "e", "up", "end", "escape", "a", "down", "end",
            "escape", "c", "right", "pagedown", "escape", "t", "left", "plus", "space", "L", "t", "enter", "x", "y",
            "escape", "p", "y")  # fmt: skip
    for key in walk:
        await now.press(key)
        seen += now.lines
    return seen


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_strangers_walk_through_every_screen(tmp_path: Path, hostile: str) -> None:
    async with sitting(tmp_path, strangers(hostile), (80, 24)) as now:
        for line in await walk(now):
            assert line.isprintable()
            assert "cannot draw" not in line
        assert not [note.message for note in now.app._notifications if "cannot be shown" in note.message]
        assert now.app.is_running
