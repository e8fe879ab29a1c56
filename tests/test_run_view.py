"""What an exporter knows of a run as it stands: also between epochs, after the last one, and when events come again."""

from dataclasses import dataclass, field

import pytest

from journals import epoch_completed, finished_run, run_completed
from sanctum_events import RUN_ID, epoch, explosion, sample, seed
from sapflow.exporters.exporter import Setting
from sapflow.exporters.run_identity import RunIdentity
from sapflow.exporters.run_view import RunView, state_of
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvFailed,
    EnvStarted,
    Payload,
    SeedFossilized,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    TelemetryEvent,
)
from sapflow.telemetry.source import RunState
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage

ABOUT = {"slot_id": "early", "seed_id": "early-1"}


@dataclass
class Told:
    """A view, and the events that it was told."""

    view: RunView = field(default_factory=RunView)
    events: list[TelemetryEvent] = field(default_factory=list)

    def emit(self, event: TelemetryEvent) -> None:
        self.events.append(event)
        self.view.take(event)


def tell(told: Told, env_id: int, *payloads: Payload) -> EventStream:
    stream = EventStream(told, RUN_ID, env_id)
    for payload in payloads:
        stream.emit(payload)
    return stream


def began() -> EnvStarted:
    return EnvStarted(host="cnn", host_params=9, slot_ids=("early",), epochs=3)


def dying(number: int) -> tuple[Payload, ...]:
    """What a trainer says after an epoch whose end had a seed pruned."""
    stages = {"from_stage": SeedStage.TRAINING, "to_stage": SeedStage.PRUNED}
    return (
        SeedStageChanged(epoch=number, **stages, **ABOUT),
        SeedPruned(epoch=number, stage=SeedStage.TRAINING, rule="r", grad_ratio=9.0, **ABOUT),
        AlertCleared(epoch=number, alert=explosion(since=1), reason="the seed was pruned"),
    )


@pytest.fixture
def pruned() -> Told:
    """A run whose last epoch is followed by a death."""
    told = Told()
    alive = epoch(3, seed("early", 9.0), open_alerts=(explosion(since=1),), total_germinated=1, total_alerts=1)
    stream = tell(told, 0, began(), sample(3, "early", 0, 9.0), alive)
    assert [one.seed_id for _, one in told.view.seeds()] == ["early-1"]
    for payload in dying(3):
        stream.emit(payload)
    return told


def test_a_death_after_the_last_epoch_is_known(pruned):
    assert list(pruned.view.seeds()) == []
    assert list(pruned.view.alerts()) == []
    totals = pruned.view.totals()
    assert (totals.total_germinated, totals.total_pruned, totals.total_alerts) == (1, 1, 1)


def test_what_comes_again_changes_nothing(pruned):
    for start in range(len(pruned.events)):
        for event in pruned.events[start:]:
            pruned.view.take(event)
            assert pruned.view.totals().total_pruned == 1
            assert list(pruned.view.seeds()) == []


def test_the_next_epoch_has_the_last_word(pruned):
    (late,) = tell(Told(), 0, epoch(4, total_pruned=1)).sink.events
    pruned.view.take(TelemetryEvent(run_id=RUN_ID, env_id=0, sequence=99, time=2.0, payload=late.payload))
    assert pruned.view.totals().total_pruned == 1


def test_an_env_is_in_training_from_its_first_word_and_its_counts_go_up():
    told = Told()
    stream = tell(told, 0, began())
    assert told.view.states() == {"training": 1}
    stream.emit(SeedGerminated(epoch=0, seed_params=3, birth_gain=1.0, **ABOUT))
    stream.emit(AlertRaised(epoch=1, alert=explosion(since=1)))
    stream.emit(SeedFossilized(epoch=1, seed_params=3, accuracy_delta=0.5, **ABOUT))
    totals = told.view.totals()
    assert (totals.total_germinated, totals.total_alerts, totals.total_fossilized) == (1, 1, 1)
    assert told.view.envs[0].done.epochs == 3
    assert list(told.view.seeds()) == []  # nothing is known of it yet, and that is no sign of health


def test_of_many_episodes_the_last_is_kept_and_the_counts_and_ends_of_all():
    told = Told()
    for episode in range(50):
        done = epoch(
            1, seed("early", 9.0), accuracy=float(episode), total_passes=10, total_recompiles=2, total_alerts=1
        )
        end = EnvFailed(epoch=1, error="no") if episode == 7 else EnvCompleted(epoch=1)
        tell(told, episode, began(), done, AlertRaised(epoch=1, alert=explosion(since=1)), end)
        assert len(told.view.envs) == 1
        assert [env_id for env_id, _ in told.view.alerts()] == [episode]
    totals = told.view.totals()
    assert (totals.total_passes, totals.total_alerts) == (500, 100)
    assert totals.total_recompiles == 2  # of the process that all of them share
    assert told.view.states() == {"completed": 49, "failed": 1}
    assert told.view.accuracies == (0.0, 48.0)
    for event in told.events[:-6]:  # which come again
        told.view.take(event)
    assert told.view.totals() == totals
    assert list(told.view.envs) == [49]


def test_a_copy_goes_its_own_way(pruned):
    before = RunView()
    for event in pruned.events[:3]:
        before.take(event)
    copy = before.copy()
    for event in pruned.events[3:]:
        copy.take(event)
    assert [len(list(view.seeds())) for view in (before, copy)] == [1, 0]
    assert [len(list(view.alerts())) for view in (before, copy)] == [1, 0]
    assert [view.totals().total_pruned for view in (before, copy)] == [0, 1]


@pytest.mark.parametrize("state", [RunState.COMPLETED, RunState.ENDED])
def test_how_a_run_ended_is_known_when_its_journal_was_rolled_away_meanwhile(tmp_path, state):
    pytest.importorskip("pyarrow")
    from sapflow.history.rolling import roll

    end = [run_completed()] if state is RunState.COMPLETED else []
    run_dir = finished_run(tmp_path / "run", epoch_completed(), *end)
    assert roll(run_dir, remove_journal=True).removed
    assert state_of(Setting(name="name", run_dir=run_dir, run=RunIdentity("run"))) is state
