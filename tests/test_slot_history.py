"""What is looked up for a seed's own screen, and how alerts and entries are found."""

import math
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from journals import PATIENCE, finished_run
from sanctum_events import epoch, event, explosion, sample, seed
from sapflow.sanctum import slot_history
from sapflow.sanctum.alert_history import AlertLife, alert_lives
from sapflow.sanctum.chart import Frame
from sapflow.sanctum.log import log_line
from sapflow.sanctum.query import AlertFilter, LogFilter, Query
from sapflow.sanctum.schema import LogLine
from sapflow.sanctum.slot_charts import life_lines
from sapflow.sanctum.slot_history import Pass, SlotHistory, SlotReader, thinned
from sapflow.telemetry.events import (
    ActionTaken,
    AlertCleared,
    AlertRaised,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    TelemetryEvent,
)
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType, SeedStage


def run_of(epochs: int, samples: int = 2) -> list[TelemetryEvent]:
    """One env of two slots; the ratio of slot early in epoch n is n, of its k-th pass n + k / 100."""
    events = []
    for number in range(1, epochs + 1):
        for first in range(0, 2 * samples, 2):
            for slot_id in ("early", "late"):
                ratio = number + first / 100 if slot_id == "early" else 99.0
                events.append(event(sample(number, slot_id, first, ratio), 0, None))
        seeds = [seed(slot_id, float(number), passes=2 * samples) for slot_id in ("early", "late")]
        events.append(event(epoch(number, *seeds), 0, number))
    return events


def history(run_dir: Path, first: int, done: int, columns: int = 80, live: bool = False) -> SlotHistory:
    with Source(run_dir) as source:
        return whole(SlotReader(source, 0, "early"), first, done, columns, live)


def whole(reader: SlotReader, first: int, done: int, columns: int = 80, live: bool = False) -> SlotHistory:
    """What is known after as many looks as it takes."""
    looks = (reader.read(first, done, columns, live) for _ in range(1_000))
    return next(found for found in looks if found.whole)


def ratios_in(found: SlotHistory, epoch: int) -> list[float]:
    return [each.ratio for each in found.passes if epoch - 1 < each.at < epoch]


def test_epochs_and_passes_of_the_slot_alone_in_their_order(tmp_path: Path) -> None:
    found = history(finished_run(tmp_path, *run_of(5)), 2, 4)
    assert [(number, telemetry.grad_ratio) for number, telemetry in found.epochs] == [(2, 2.0), (3, 3.0), (4, 4.0)]
    assert [each.ratio for each in found.passes] == pytest.approx(
        [n + k / 100 for n in (2, 3, 4) for k in (0, 0, 2, 2)]
    )
    assert [each.at for each in found.passes] == pytest.approx(
        [n - 1 + (k + 0.5) / 4 for n in (2, 3, 4) for k in range(4)]
    )


def test_the_running_epoch_is_read_while_it_is_live(tmp_path: Path) -> None:
    run_dir = finished_run(tmp_path, *run_of(3), event(sample(4, "early", 0, 7.0), 0, None))
    assert [each.ratio for each in history(run_dir, 4, 3, live=True).passes] == [7.0, 7.0]
    assert history(run_dir, 3, 3, live=False).last == 3


def test_of_a_long_life_as_many_epochs_are_read_as_there_are_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_history, "MOMENT_LIMIT", 10)
    found = history(finished_run(tmp_path, *run_of(40, samples=1)), 1, 40, columns=5)
    assert [number for number, _ in found.epochs] == [1, 11, 21, 30, 40]
    assert min(each.at for each in found.passes) >= 29


def test_no_more_passes_are_kept_than_a_chart_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_history, "PASS_LIMIT", 40)
    monkeypatch.setattr(slot_history, "LEAST_SHARE", 2)
    found = history(finished_run(tmp_path, *run_of(10, samples=20)), 1, 10)
    assert len(found.passes) <= 40
    by_epoch = [ratios_in(found, n) for n in range(1, 11)]
    assert [(min(ratios), max(ratios)) for ratios in by_epoch] == [
        (pytest.approx(n), pytest.approx(n + 0.38)) for n in range(1, 11)
    ]


@given(ratios=st.lists(st.one_of(st.floats(0, 1e6), st.just(math.nan)), max_size=300), most=st.integers(4, 50))
def test_thinning_keeps_order_and_extremes(ratios: list[float], most: int) -> None:
    passes = [Pass(n / 300, 1.0, ratio) for n, ratio in enumerate(ratios)]
    kept = thinned(passes, most)
    assert len(kept) <= max(1.5 * most + 3, 0) or len(kept) == len(passes) <= most
    assert [each.at for each in kept] == sorted({each.at for each in kept})
    assert set(kept) <= set(passes)
    assert any(math.isnan(each.ratio) for each in kept) is any(math.isnan(ratio) for ratio in ratios)
    finite = [ratio for ratio in ratios if not math.isnan(ratio)]
    if finite:
        left = [each.ratio for each in kept if not math.isnan(each.ratio)]
        assert (min(left), max(left)) == (min(finite), max(finite))


def test_what_is_finished_is_read_once_however_many_epochs_are_shown(tmp_path: Path) -> None:
    with Source(finished_run(tmp_path, *run_of(12))) as source:
        reader = SlotReader(source, 0, "early")
        before = whole(reader, 1, 6)
        asked: list[int] = []
        look_up = source.places_between

        def asks(kind: EventType, env_id: int, epoch: int, *rest: int) -> list[int]:
            asked.append(epoch)
            return look_up(kind, env_id, epoch, *rest)

        source.places_between = asks  # type: ignore[method-assign]
        assert reader.read(1, 6, 80, live=False) == before
        for done in range(7, 13):
            whole(reader, 1, done)
        whole(reader, 5, 6)
        assert asked == [7, 8, 9, 10, 11, 12]


def test_a_look_reads_a_few_samples_those_of_the_newest_epochs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = finished_run(tmp_path, *run_of(6, samples=5))
    at_once = history(run_dir, 1, 6)
    monkeypatch.setattr(slot_history, "LOOK_COSTS", 0)
    monkeypatch.setattr(slot_history, "READ_AT_ONCE", 16)  # of 10 an epoch
    with Source(run_dir) as source:
        reader = SlotReader(source, 0, "early")
        first = reader.read(1, 6, 80, live=False)
        assert not first.whole
        assert first.passes == at_once.passes[-16:]
        assert whole(reader, 1, 6) == at_once
    assert at_once.whole


def test_a_long_epoch_keeps_its_beginning_and_its_extremes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("READ_AT_ONCE", 50), ("PARTS", 8), ("MOST_KEPT", 30)):
        monkeypatch.setattr(slot_history, name, value)
    ratios = [100.0 if n == 3 else 0.01 if n == 31 else 1 + n / 1e4 for n in range(400)]
    samples = [event(sample(1, "early", 2 * n, ratio), 0, None) for n, ratio in enumerate(ratios)]
    found = history(finished_run(tmp_path, *samples, event(epoch(1, seed("early", 1.0, passes=800)), 0, 1)), 1, 1)
    assert len(found.passes) <= 30
    assert (min(ratios_in(found, 1)), max(ratios_in(found, 1))) == (0.01, 100.0)
    for part in range(4):  # none of it is left out
        assert [each for each in found.passes if part / 4 < each.at < (part + 1) / 4]


def test_what_comes_while_an_epoch_is_being_read_is_shown_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_history, "READ_AT_ONCE", 4)
    with closing(Journal(tmp_path)) as journal:
        for n in range(10):
            journal.emit(event(sample(1, "early", 2 * n, 1.0 + n), 0, None))
        assert journal.flush(PATIENCE)
        with Source(tmp_path) as source:
            reader = SlotReader(source, 0, "early")
            assert [each.ratio for each in reader.read(1, 0, 80).passes[::2]] == [7.0, 8.0, 9.0, 10.0]
            for n in range(10, 12):
                journal.emit(event(sample(1, "early", 2 * n, 1.0 + n), 0, None))
            assert journal.flush(PATIENCE)
            assert [each.ratio for each in reader.read(1, 0, 80).passes[::2]] == [5.0, *map(float, range(6, 13))]
            assert [each.ratio for each in whole(reader, 1, 0, live=True).passes[::2]] == list(map(float, range(1, 13)))


@pytest.mark.parametrize("index", [-1, 2**62])
def test_a_pass_from_nowhere_stays_within_its_epoch(tmp_path: Path, index: int) -> None:
    odd = replace(sample(1, "early", 0, 2.0), pass_index=(index, 1), entering=(math.nan, 0.0))
    found = history(finished_run(tmp_path, event(odd, 0, None), event(epoch(1, seed("early", 1.0)), 0, 1)), 1, 1)
    assert all(0 <= each.at <= 1 and math.isnan(each.ratio) for each in found.passes)


def told(*payloads: object) -> list[TelemetryEvent]:
    return [event(payload, 0, n) for n, payload in enumerate(payloads)]  # type: ignore[arg-type]


FIRST, SECOND = explosion(3), replace(explosion(9), value=8.0)
DONE = ActionTaken(epoch=5, alert=FIRST, action="prune", done=False, outcome="it is fossilised")


def test_an_alert_has_what_was_done_about_it_and_why_it_was_closed() -> None:
    (life,) = alert_lives(
        told(AlertRaised(epoch=5, alert=FIRST), DONE, AlertCleared(epoch=7, alert=FIRST, reason="back to normal"))
    )
    assert (life.raised_epoch, life.actions, life.cleared_epoch) == (5, (DONE,), 7)
    assert life.cleared_reason == "back to normal"
    assert not life.is_open


def test_a_rule_that_is_raised_again_is_another_alert_and_the_open_one_comes_first() -> None:
    again = told(
        AlertRaised(epoch=5, alert=FIRST), AlertCleared(epoch=7, alert=FIRST), AlertRaised(epoch=11, alert=SECOND)
    )
    lives = alert_lives(again, [(0, SECOND)])
    assert [(life.alert.since_epoch, life.is_open) for life in lives] == [(9, True), (3, False)]


def test_what_stands_in_the_snapshot_decides_what_is_open() -> None:
    raised = told(AlertRaised(epoch=5, alert=FIRST))
    assert [life.is_open for life in alert_lives(raised, [(0, FIRST)])] == [True]
    assert [life.is_open for life in alert_lives(raised, [])] == [False]
    (unheard,) = alert_lives([], [(0, FIRST)])
    assert (unheard.is_open, unheard.raised_epoch) == (True, None)


ENTRY = LogLine(
    time=1.0, env_id=3, sequence=1, kind=EventType.SEED_PRUNED, parts=("pruned", "Sigmoid", "ratio 0.01"),
    slot_id="mid", blueprint_id="Sigmoid",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", True),
        ("sigmoid", True),
        ("PRUNED sigmoid", True),
        ("pruned nothing", False),
        ('"ratio 0.01"', True),
        ('"0.01 ratio"', False),
        ("env:3", True),
        ("env:4", False),
        ("env:x", False),
        ("slot:MI", True),
        ("slot:late", False),
        ("env:3 slot:mid pruned", True),
        ("env:3 slot:mid nothing", False),
        ("mid", True),
        ('slot:"mid"', True),
        ("blueprint:sigm", True),
        ("blueprint:conv", False),
        ("blueprint: slot: env:", True),  # not typed to its end
        ("3", True),
        ("03", True),
        ("4", False),
        ('"4"', False),
        ('"0"', True),
        ("9" * 5_000, False),
    ],
)
def test_a_search_finds_what_has_all_that_is_asked_for(text: str, found: bool) -> None:
    assert LogFilter(query=Query.parse(text)).lets_through(ENTRY) is found


@given(text=st.text(max_size=80))
def test_any_text_may_be_searched_for(text: str) -> None:
    query = Query.parse(text)
    assert query.names(query.env_id, query.slot, query.blueprint)
    assert query.reads(query.words)


def test_the_events_of_the_log_have_their_blueprints() -> None:
    born = SeedGerminated(epoch=1, slot_id="mid", seed_id="mid-1", blueprint_id="conv", seed_params=1, birth_gain=1.0)
    for payload, blueprint in ((born, "conv"), (AlertRaised(epoch=5, alert=FIRST), FIRST.blueprint_id)):
        entry = log_line(event(payload, 0, 1))
        assert entry is not None
        assert entry.blueprint_id == blueprint


def test_the_alerts_are_searched_by_blueprint_too() -> None:
    (life,) = alert_lives(told(AlertRaised(epoch=5, alert=FIRST)), [(0, FIRST)])
    assert AlertFilter(query=Query.parse(f"blueprint:{FIRST.blueprint_id}")).lets_through(life)
    assert not AlertFilter(query=Query.parse("blueprint:another")).lets_through(life)


def test_kinds_and_states_are_told_apart() -> None:
    assert LogFilter(kind="pruned").lets_through(ENTRY)
    assert not LogFilter(kind="alerts").lets_through(ENTRY)
    (life,) = alert_lives(told(AlertRaised(epoch=5, alert=FIRST), DONE), [(0, FIRST)])
    by_state = {state: AlertFilter(state=state).lets_through(life) for state in ("all", "open", "closed")}
    assert by_state == {"all": True, "open": True, "closed": False}
    assert AlertFilter(query=Query.parse("fossilised exploder")).lets_through(life)
    assert isinstance(life, AlertLife)


def test_another_slots_alert_that_comes_and_goes_does_not_push_out_what_became_of_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_history, "TURN_LIMIT", 10)
    born = SeedGerminated(epoch=2, slot_id="late", seed_id="late-1", blueprint_id="c", seed_params=1, birth_gain=1.0)
    flapping = [told_of(epoch=3 + n // 2, alert=FIRST) for n in range(30) for told_of in (AlertRaised, AlertCleared)]
    with Source(finished_run(tmp_path, *told(born, *flapping))) as source:
        turns = SlotReader(source, 0, "late").read(1, 20, 80, live=False).turns
    assert [turn.payload for turn in turns] == [born]


def test_before_the_first_change_that_is_known_the_stage_is_that_of_the_epochs() -> None:
    blending = SeedStageChanged(
        epoch=6, slot_id="a", seed_id="a-1", from_stage=SeedStage.TRAINING, to_stage=SeedStage.BLENDING
    )
    epochs = tuple((n, seed("a", 1.0, stage=SeedStage.TRAINING)) for n in range(1, 7))
    past = SlotHistory(first=1, last=10, epochs=epochs, turns=(event(blending, 0, 1),))
    stages, _, _ = life_lines(past, Frame(0, 10, 20, 8))
    drawn = "".join(text for text, _ in stages)[8:]
    assert drawn == "○" + "─" * 11 + "◐" + "─" * 7


def test_the_turns_of_a_slot_are_its_own(tmp_path: Path) -> None:
    def pruned(slot_id: str) -> SeedPruned:
        return SeedPruned(epoch=2, slot_id=slot_id, seed_id="x", stage=SeedStage.TRAINING, rule="r", grad_ratio=0.0)

    events = [event(pruned("early"), 0, 1), event(pruned("late"), 0, 2), event(pruned("early"), 1, 1)]
    turns = history(finished_run(tmp_path, *events), 1, 3).turns
    assert [turn.payload for turn in turns] == [pruned("early")]
