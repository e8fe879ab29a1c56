"""Events in, snapshots out: order, duplicates, gaps, samples, sharing."""

import math
import random
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanctum_events import (
    RUN_ID,
    START,
    comparable,
    demo_run,
    epoch,
    event,
    explosion,
    random_run,
    sample,
    seed,
    unmeasured,
)
from sapflow.sanctum.aggregator import LOG_LIMIT, SanctumAggregator
from sapflow.sanctum.schema import Condition, EnvStatus, SanctumSnapshot, SeedState
from sapflow.sanctum.slot_view import HISTORY_LIMIT
from sapflow.telemetry.events import (
    ActionTaken,
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    GradientHealth,
    Payload,
    RequestAnswered,
    RunCompleted,
    RunResumed,
    RunStarted,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    SeedTelemetry,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunState, RunStatus
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage

STARTED = EnvStarted(host="mlp", host_params=100, slot_ids=("late", "early"), epochs=40)
BIRTH = SeedGerminated(epoch=1, slot_id="early", seed_id="early-1", blueprint_id="conv", seed_params=10, birth_gain=1.0)


def folded(events: list[TelemetryEvent]) -> SanctumSnapshot:
    aggregator = SanctumAggregator()
    for each in events:
        aggregator.apply(each)
    return aggregator.snapshot()


def story(*payloads: Payload, env_id: int = 0) -> list[TelemetryEvent]:
    """An env's events in order; samples have no sequence."""
    events, sequence = [], 0
    for payload in payloads:
        numbered = payload.type != "GRADIENT_SAMPLED"
        events.append(event(payload, env_id, sequence if numbered else None))
        sequence += numbered
    return events


def moved(to: SeedStage, seed_id: str = "early-1") -> SeedStageChanged:
    return SeedStageChanged(
        epoch=2, slot_id="early", seed_id=seed_id, blueprint_id="conv", from_stage=SeedStage.TRAINING, to_stage=to
    )


def test_the_value_stands_where_the_record_says() -> None:
    snapshot = folded(story(STARTED, epoch(1, seed("early", 0.85))))
    assert snapshot.envs[0].seeds["early"].grad_ratio == 0.85


def test_every_field_of_the_telemetry_arrives() -> None:
    telemetry = seed("early", 0.85, ratio_histogram=(1, 2), output_input_rms=0.3, parameter_liveness=0.9)
    state = folded(story(epoch(1, telemetry))).envs[0].seeds["early"]
    for field in SeedTelemetry.__struct_fields__:
        assert getattr(state, field) == getattr(telemetry, field)


@given(order=st.randoms(use_true_random=False), epochs=st.integers(1, 4))
def test_any_interleaving_with_duplicates_gives_the_same_run(order: random.Random, epochs: int) -> None:
    plain = demo_run(epochs, completed=True)
    waiting = [[e for e in plain if e.env_id == env_id] for env_id in (None, 0, 1, 2, 3)]
    shuffled: list[TelemetryEvent] = []
    while any(waiting):
        queue = order.choice([queue for queue in waiting if queue])
        shuffled.append(queue.pop(0))
        if order.random() < 0.3:  # any earlier event again, samples too
            shuffled.append(order.choice(shuffled))
    expected, got = folded(plain), folded(shuffled)
    assert got.envs == expected.envs
    assert got.log == expected.log
    assert (got.run_id, got.task, got.gaps) == (RUN_ID, "digits-cnn", 0)


def test_duplicates_are_counted_and_leave_the_env_the_same_object() -> None:
    aggregator = SanctumAggregator()
    events = story(STARTED, BIRTH, epoch(1, seed("early", 0.85)))
    for each in events:
        aggregator.apply(each)
    before = aggregator.snapshot()
    for each in events:
        aggregator.apply(each)
    after = aggregator.snapshot()
    assert after.envs[0] is before.envs[0]
    assert (before.duplicates, after.duplicates) == (0, 3)
    assert after.log == before.log


def test_the_runs_own_events_have_duplicates_and_gaps_too() -> None:
    started = event(RunStarted(task="digits", envs=1, epochs=2, rng_seed=0), None, 0)
    snapshot = folded([started, started, event(RunCompleted(completed_envs=1), None, 2)])
    assert (snapshot.duplicates, snapshot.gaps) == (1, 1)
    assert len(snapshot.log) == 2


def test_a_gap_is_counted_once_and_the_env_goes_on() -> None:
    first, second, third, fourth = story(STARTED, BIRTH, epoch(1, seed("early", 0.85)), epoch(2, seed("early", 0.9)))
    snapshot = folded([first, third, second, fourth])
    assert (snapshot.gaps, snapshot.duplicates) == (1, 1)
    assert snapshot.envs[0].seeds["early"].grad_ratio == 0.9


def test_a_stream_that_does_not_begin_at_its_beginning_has_a_gap() -> None:
    assert folded([event(STARTED, 0, 5)]).gaps == 1


def test_unchanged_envs_are_shared_and_an_unchanged_run_is_the_same_snapshot() -> None:
    aggregator = SanctumAggregator()
    for each in demo_run():
        aggregator.apply(each)
    before = aggregator.snapshot()
    assert aggregator.snapshot() is before
    last = before.envs[2].last_sequence
    aggregator.apply(event(epoch(15, seed("early", 1.0)), 2, last + 1))
    after = aggregator.snapshot()
    assert [after.envs[n] is before.envs[n] for n in range(4)] == [True, True, False, True]
    assert before.envs[2].epoch == 14


def test_the_status_of_the_journal_is_a_part_of_the_snapshot() -> None:
    aggregator = SanctumAggregator()
    status = RunStatus(state=RunState.LIVE, dropped_events=3)
    aggregator.apply_status(status)
    snapshot = aggregator.snapshot()
    aggregator.apply_status(RunStatus(state=RunState.LIVE, dropped_events=3))
    assert snapshot.status == status
    assert aggregator.snapshot() is snapshot


def test_a_snapshot_cannot_be_changed() -> None:
    snapshot = folded(demo_run(2))
    env = snapshot.envs[0]
    with pytest.raises(AttributeError):
        snapshot.run_id = "other"
    with pytest.raises(AttributeError):
        env.epoch = 9
    with pytest.raises(AttributeError):
        env.seeds["early"].grad_ratio = 9.0
    with pytest.raises(TypeError):
        snapshot.envs[0] = env
    with pytest.raises(TypeError):
        env.seeds["early"] = SeedState(slot_id="early")


def test_slots_keep_the_hosts_order() -> None:
    env = folded(story(STARTED, BIRTH)).envs[0]
    assert list(env.seeds) == ["late", "early"]
    assert env.seeds["late"] == SeedState(slot_id="late")
    assert (env.seeds["early"].stage, env.seeds["early"].seed_params) == (SeedStage.GERMINATED, 10)


def test_an_epoch_replaces_every_slot() -> None:
    env = folded(story(STARTED, BIRTH, epoch(1, seed("other", 1.0)))).envs[0]
    assert list(env.seeds) == ["other"]


def test_the_life_of_a_seed() -> None:
    pruned = SeedPruned(
        epoch=2, slot_id="early", seed_id="early-1", stage=SeedStage.TRAINING, rule="r", grad_ratio=9.0, evidence="why"
    )
    fossil = SeedFossilized(epoch=2, slot_id="early", seed_id="early-1", seed_params=11, accuracy_delta=1.5)

    def early(*payloads: Payload) -> SeedState:
        return folded(story(STARTED, BIRTH, *payloads)).envs[0].seeds["early"]

    assert early(moved(SeedStage.TRAINING)).stage is SeedStage.TRAINING
    assert early(moved(SeedStage.BLENDING)).blueprint_id == "conv"
    held_and_dying = epoch(1, seed("early", 0.1, paused=True, fault=Fault.VANISHING))
    cut = early(held_and_dying, pruned)
    assert (cut.stage, cut.evidence, cut.fault, cut.paused) == (SeedStage.PRUNED, "r: why", None, False)
    assert (early(fossil).stage, early(fossil).accuracy_delta) == (SeedStage.FOSSILIZED, 1.5)
    assert early(pruned, moved(SeedStage.DORMANT)) == SeedState(slot_id="early")
    assert early(epoch(1, seed("early", 0.9)), moved(SeedStage.HOLDING)).grad_ratio == 0.9
    assert early(epoch(1, seed("early", 0.9)), moved(SeedStage.TRAINING, seed_id="early-2")).grad_ratio == 0.0


def test_a_seed_is_held_and_goes_on_as_soon_as_that_is_said() -> None:
    def asked(action: str, done: bool = True, seed_id: str = "early-1") -> RequestAnswered:
        return RequestAnswered(
            epoch=1, slot_id="early", seed_id=seed_id, request_id=action, action=action, done=done, outcome="why"
        )

    def taken(action: str, done: bool = True) -> ActionTaken:
        return ActionTaken(epoch=1, alert=explosion(1), action=action, done=done)

    def early(*payloads: Payload) -> SeedState:
        return folded(story(STARTED, epoch(1, seed("early", 0.9)), *payloads)).envs[0].seeds["early"]

    for said in (asked, taken):
        assert early(said("hold")).paused
        assert early(said("hold")).ratio_history == (0.9,)
        assert not early(said("hold"), said("resume")).paused
        assert not early(said("hold", done=False)).paused
        assert not early(said("prune")).paused
    assert not early(asked("hold", seed_id="early-0")).paused


def test_totals_count_on_between_epochs_and_the_epoch_has_the_last_word() -> None:
    events = story(STARTED, BIRTH, epoch(1, total_germinated=5))
    totals = [folded(events[:count]).envs[0].totals for count in (1, 2, 3)]
    assert [total.germinated for total in totals] == [0, 1, 5]


def test_alerts_open_and_close() -> None:
    alert = explosion(1)
    raised, cleared = AlertRaised(epoch=1, alert=alert), AlertCleared(epoch=2, alert=alert, reason="pruned")
    assert folded(story(STARTED, raised)).envs[0].open_alerts == (alert,)
    assert folded(story(STARTED, raised, raised)).envs[0].open_alerts == (alert,)
    assert folded(story(STARTED, raised, cleared)).envs[0].open_alerts == ()
    assert folded(story(STARTED, raised, epoch(1))).envs[0].open_alerts == ()


def test_an_env_ends() -> None:
    done = folded(story(STARTED, EnvCompleted(epoch=2, accuracy=91.0))).envs[0]
    failed = folded(story(STARTED, EnvFailed(epoch=2, error="out of memory"))).envs[0]
    assert (done.status, done.accuracy) == (EnvStatus.COMPLETED, 91.0)
    assert (failed.status, failed.error, failed.condition) == (EnvStatus.FAILED, "out of memory", Condition.FAILED)


def test_a_sample_is_the_live_health_of_its_seed() -> None:
    live = sample(2, "early", 0, 3.5)
    state = folded(story(STARTED, BIRTH, epoch(1, seed("early", 0.9)), live)).envs[0].seeds["early"]
    assert [getattr(state, f) for f in GradientHealth.__struct_fields__] == [
        getattr(live.health, f) for f in GradientHealth.__struct_fields__
    ]
    assert state.seed_params == 18_400


@pytest.mark.parametrize(
    "late",
    [
        sample(2, "early", 4, 9.0),  # the same again, were it not for its ratio
        sample(2, "early", 2, 9.0),  # an older one
        sample(1, "early", 60, 9.0),  # of an epoch that is over
        sample(2, "early", 6, 9.0, seed_id="early-0"),  # of a seed that is gone
        sample(2, "nowhere", 6, 9.0),
        msgspec.structs.replace(sample(2, "early", 6, 9.0), pass_index=()),
    ],
)
def test_a_sample_that_comes_late_changes_nothing(late: Payload) -> None:
    aggregator = SanctumAggregator()
    for each in story(STARTED, BIRTH, epoch(1, seed("early", 0.9)), sample(2, "early", 4, 1.1)):
        aggregator.apply(each)
    before = aggregator.snapshot()
    aggregator.apply(event(late, 0, None))
    assert aggregator.snapshot() is before


def test_the_history_of_a_ratio_belongs_to_its_seed_and_is_bounded() -> None:
    one = [epoch(n, seed("early", n / 100)) for n in range(1, HISTORY_LIMIT + 11)]
    state = folded(story(*one)).envs[0].seeds["early"]
    assert state.ratio_history == tuple(n / 100 for n in range(11, HISTORY_LIMIT + 11))
    another = epoch(HISTORY_LIMIT + 11, seed("early", 1.5, seed_id="early-2"))
    assert folded(story(*one, another)).envs[0].seeds["early"].ratio_history == (1.5,)


def test_an_epoch_without_a_measured_ratio_is_a_hole_in_the_history() -> None:
    dead = seed("early", 0.0)
    lost = unmeasured("early", Measurement.PROBE_LOST)
    first, second = folded(story(epoch(1, dead), epoch(2, lost))).envs[0].seeds["early"].ratio_history
    assert first == 0.0
    assert math.isnan(second)


def test_the_worst_come_first_rising_at_once_and_falling_when_an_epoch_ends() -> None:
    aggregator = SanctumAggregator()
    for env_id in range(3):
        for each in story(epoch(1, seed("early", 1.0)), env_id=env_id):
            aggregator.apply(each)
    orders = [aggregator.snapshot().worst_first()]
    for payload, sequence in (
        (sample(2, "early", 0, 3.0), None),
        (sample(2, "early", 2, 1.0), None),
        (epoch(2, seed("early", 1.0)), 1),
    ):
        aggregator.apply(event(payload, 1, sequence))
        orders.append(aggregator.snapshot().worst_first())
    assert orders == [(0, 1, 2), (1, 0, 2), (1, 0, 2), (0, 1, 2)]
    conditions = [seed("s", 7.0), seed("s", 0.1), seed("s", 1.0), unmeasured("s", Measurement.NON_FINITE)]
    ranked = folded([event(epoch(1, state), n, 0) for n, state in enumerate(conditions)])
    assert ranked.worst_first() == (3, 0, 1, 2)
    vanishing = [seed("s", ratio) for ratio in (0.4, 0.003, 0.2, 0.0)]
    ranked = folded([event(epoch(1, state), n, 0) for n, state in enumerate(vanishing)])
    assert ranked.worst_first() == (3, 1, 2, 0)


def test_the_log_is_in_the_order_of_time_and_bounded() -> None:
    lines = [event(RunResumed(from_epoch=n), None, n, time=float(n)) for n in range(LOG_LIMIT + 10)]
    log = folded(lines).log
    assert [entry.sequence for entry in log] == list(range(10, LOG_LIMIT + 10))
    late = folded([event(STARTED, 1, 0, time=20.0), event(STARTED, 0, 0, time=10.0)]).log
    assert [entry.env_id for entry in late] == [0, 1]


def test_what_is_said_after_the_clock_was_set_back_is_the_newest_in_the_log() -> None:
    numbers = range(LOG_LIMIT + 10)
    lines = [event(RunResumed(from_epoch=n), None, n, time=1e9 + n if n < LOG_LIMIT else 1e6 + n) for n in numbers]
    assert [entry.sequence for entry in folded(lines).log] == list(numbers)[10:]


@pytest.mark.parametrize("number", range(8))
def test_looking_at_it_meanwhile_changes_nothing(number: int) -> None:
    """What is shown is only made when it is looked at: seldom or after each event, it is the same."""
    events, seldom, often = random_run(number), SanctumAggregator(), SanctumAggregator()
    for each in events:
        seldom.apply(each)
        often.apply(each)
        often.snapshot()
    assert comparable(seldom.snapshot()) == comparable(often.snapshot())


def test_a_slot_that_an_epoch_names_twice_is_there_once_and_the_last_counts() -> None:
    twice = [epoch(n, seed("early", 0.1), seed("late", 0.5), seed("early", n / 10)) for n in (1, 2)]
    seeds = folded(story(*twice)).envs[0].seeds
    assert list(seeds) == ["early", "late"]
    assert seeds["early"].ratio_history == (0.1, 0.2)


def test_passes_a_second_are_taken_over_the_last_epochs_of_the_envs_that_train() -> None:
    events = []
    for env_id in (0, 1):
        for number in range(1, 13):
            passes = 100 if number < 3 else 64 * number
            payload = epoch(number, seed("early", 1.0), total_passes=passes)
            events.append(event(payload, env_id, number - 1, START + 8 * number))
    assert folded(events[:1]).passes_per_second == 0.0
    assert folded(events).passes_per_second == pytest.approx(16.0)
    ended = event(EnvCompleted(epoch=12), 1, 12, START + 96)
    assert folded([*events, ended]).passes_per_second == pytest.approx(8.0)


def test_the_time_for_which_a_run_was_cut_off_is_not_in_its_passes_a_second() -> None:
    """100 passes a second before, and 50 after."""
    times = [START + 1, START + 2, START + 1000, START + 1002, START + 1004]
    events = [event(epoch(n, total_passes=100 * n), 0, n - 1, time) for n, time in enumerate(times, 1)]
    resumed = event(RunResumed(from_epoch=2), None, 0, START + 990)
    assert folded([*events[:2], resumed]).passes_per_second == 0.0
    assert folded([*events[:2], resumed, *events[2:]]).passes_per_second == pytest.approx(50.0)


@pytest.mark.parametrize("time", [START, START - 1, math.nan, math.inf, -math.inf])
def test_a_clock_that_stands_or_jumps_gives_no_pace(time: float) -> None:
    events = [
        event(epoch(n, total_passes=n), 0, n - 1, when) for n, when in ((1, START), (2, time))
    ]  # fmt: skip
    assert folded(events).passes_per_second == 0.0


def test_how_far_the_reader_lags() -> None:
    aggregator = SanctumAggregator()
    assert aggregator.snapshot().lag == 0.0
    aggregator.apply(event(STARTED, 0, 0, START))
    for status, lag in (
        (RunStatus(state=RunState.LIVE, last_event_time=START + 9, unread=40), 9.0),
        (RunStatus(state=RunState.LIVE, last_event_time=START + 9), 0.0),
        (RunStatus(state=RunState.LIVE, last_event_time=START - 9, unread=1), 0.0),
        (RunStatus(state=RunState.ENDED, last_event_time=START + 9), 0.0),
    ):
        aggregator.apply_status(status)
        assert aggregator.snapshot().lag == lag


def test_answers_stand_in_the_log_of_the_env_and_of_the_run() -> None:
    def answer(number: int) -> RequestAnswered:
        return RequestAnswered(
            epoch=1, slot_id="early", request_id=str(number), action="prune", done=False, outcome="gone"
        )

    snapshot = folded([*story(answer(1)), event(answer(2), None, None)])
    assert [line.parts for line in (*snapshot.envs[0].log, *snapshot.log)] == [("prune refused", "gone")] * 3


def test_a_payload_in_the_wrong_place_breaks_nothing() -> None:
    snapshot = folded([event(STARTED, None, 0), event(RunCompleted(completed_envs=1), 0, 0)])
    assert snapshot.envs[0].status is EnvStatus.WAITING


def test_the_aggregator_needs_neither_torch_nor_textual() -> None:
    modules = "schema aggregator formatting panels glyphs"
    code = "; ".join(f"import sapflow.sanctum.{name}" for name in modules.split())
    check = f"{code}; import sys; sys.exit(bool({{'torch', 'textual'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
