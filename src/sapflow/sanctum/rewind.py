"""Time travel: the run at any moment, and at its end, by looking up what is shown instead of following it all."""

import heapq
from collections.abc import Iterable

from sapflow.sanctum.aggregator import LOG_LIMIT, SanctumAggregator
from sapflow.sanctum.env_view import ENV_LOG_LIMIT
from sapflow.sanctum.schema import EnvStatus, SanctumSnapshot
from sapflow.sanctum.slot_view import HISTORY_LIMIT
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import EventType

# Of the run, or of a whole env: they have no epoch.
OF_THE_RUN = (EventType.RUN_STARTED, EventType.RUN_RESUMED, EventType.RUN_COMPLETED, EventType.REQUEST_ANSWERED)
OF_THE_BEGINNING = (EventType.RUN_STARTED, EventType.ENV_STARTED)
EPOCHS, SAMPLES = (EventType.EPOCH_COMPLETED,), (EventType.GRADIENT_SAMPLED,)
OTHERS = tuple(set(EventType) - {*EPOCHS, *SAMPLES, *OF_THE_BEGINNING, *OF_THE_RUN} | {EventType.REQUEST_ANSWERED})

# A stage change may have no line of its own; then another event next to it has one.
EVENTS_A_LINE = 2
SAMPLES_A_SLOT = 4  # that are looked back at within an epoch

# Of how many envs all that is shown is looked up at once; of more, less of each, so that it takes no longer.
WHOLE_AT_FIRST = 16
WHOLE_AT_A_MOMENT = 64


def opened(source: Source) -> SanctumAggregator:
    """What following `source` from its beginning would have led to; from here on it is followed, from its end.

    As much is looked up as is shown: the last epochs, the newest lines of the log, the newest samples; of more than
    WHOLE_AT_FIRST envs less, and `recall` does the rest. Gaps and duplicates are counted from here on; how bad things
    have been within the epoch is known as far as samples are looked back at.

    Raises:
        JournalError: the journal cannot be read.
    """
    with source.held_still():
        aggregator = _looked_up(source, None, WHOLE_AT_FIRST)
        source.skip_to_end()
    aggregator.apply_status(source.status())
    return aggregator


def recall(source: Source, aggregator: SanctumAggregator) -> bool:
    """Look up whole, as of where `source` stands, one of the envs that were opened in brief; whether there are more.

    Raises:
        JournalError: the journal cannot be read.
    """
    if not aggregator.brief:
        return False
    env_id = next(env_id for env_id in aggregator.snapshot().worst_first() if env_id in aggregator.brief)
    whole = SanctumAggregator()
    with source.held_still():
        places = {*source.places(OF_THE_BEGINNING, (env_id,), limit=1), *_of_env(source, env_id, None, 1.0)[0]}
        _apply(source, (place for place in places if place <= source.cursor), whole)
        samples = _samples(source, whole.snapshot(), SAMPLES_A_SLOT)
        _apply(source, (place for place in samples if place <= source.cursor), whole)
    aggregator.complete(env_id, whole)
    return bool(aggregator.brief)


def snapshot_at(source: Source, epoch: int) -> SanctumSnapshot:
    """The run as it stood when `epoch` had ended in each env, with what was done at its end; 0: before the first.

    What has no epoch, such as the end of the whole run, is not in it. Of more than WHOLE_AT_A_MOMENT envs, histories
    and log are shorter.

    Raises:
        JournalError: the journal cannot be read.
    """
    with source.held_still():
        return _looked_up(source, epoch, WHOLE_AT_A_MOMENT).snapshot()


class Film:
    """The moments of a run, one after another: the next one costs no more than what its epoch says.

    A moment that some env has not reached yet is looked up whole when it is asked for again, and so is the next one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._epoch: int | None = None
        self._aggregator = SanctumAggregator()

    def at(self, epoch: int) -> SanctumSnapshot:
        """What `snapshot_at` gives.

        Raises:
            JournalError: the journal cannot be read.
        """
        goes_on, self._epoch = self._epoch is not None and epoch == self._epoch + 1, None  # unless all is well
        with self._source.held_still():
            if goes_on:
                self._go_on_to(epoch)
            else:
                self._aggregator = _looked_up(self._source, epoch, WHOLE_AT_A_MOMENT)
        snapshot = self._aggregator.snapshot()
        if all(env.epoch >= epoch for env in snapshot.envs.values() if env.status is EnvStatus.TRAINING):
            self._epoch = epoch
        return snapshot

    def _go_on_to(self, epoch: int) -> None:
        source, envs, known = self._source, self._source.envs(), self._aggregator.snapshot().envs
        begun = source.places(OF_THE_BEGINNING, (env_id for env_id in envs if env_id not in known), limit=1)
        said = source.places((*EPOCHS, *OTHERS), envs, epoch, epoch, EVENTS_A_LINE * LOG_LIMIT)
        _apply(source, {*begun, *said}, self._aggregator)
        self._aggregator.forget_gaps()


def _looked_up(source: Source, until: int | None, whole_envs: int) -> SanctumAggregator:
    envs = source.envs()
    share = min(whole_envs / max(len(envs), 1), 1.0)
    places = set(source.places(OF_THE_BEGINNING, (None, *envs), limit=1))
    lines: list[int] = []
    for env_id in envs:
        of_env, newest = _of_env(source, env_id, until, share)
        places.update(of_env)
        lines += newest
    if until is None:
        places.update(source.places(OF_THE_RUN, (None,), limit=LOG_LIMIT))
    places.update(heapq.nlargest(EVENTS_A_LINE * LOG_LIMIT, lines))
    aggregator = SanctumAggregator()
    _apply(source, places, aggregator)
    if until is None:
        _apply(source, _samples(source, aggregator.snapshot(), _part(SAMPLES_A_SLOT, share)), aggregator)
    aggregator.forget_gaps()
    if share < 1:
        aggregator.brief.update(aggregator.snapshot().envs.keys() & set(envs))  # rows may lie about their bodies
    return aggregator


def _of_env(source: Source, env_id: int, until: int | None, share: float) -> tuple[list[int], list[int]]:
    """Where its last epochs and the newest lines of its log are, and those of its lines that may be new to the run."""
    newest = list(source.places(OTHERS, (env_id,), None, until, _part(EVENTS_A_LINE * LOG_LIMIT, share)))
    lines = heapq.nlargest(_part(EVENTS_A_LINE * ENV_LOG_LIMIT, share), newest)
    return [*source.places(EPOCHS, (env_id,), None, until, _part(HISTORY_LIMIT, share)), *lines], newest


def _part(of: int, share: float) -> int:
    return max(int(of * share), 1)


def _samples(source: Source, snapshot: SanctumSnapshot, each: int) -> Iterable[int]:
    """The newest of the epoch that goes on, in each env."""
    for env_id, env in snapshot.envs.items():
        yield from source.places(SAMPLES, (env_id,), env.epoch + 1, None, each * len(env.seeds))


def _apply(source: Source, places: Iterable[int], aggregator: SanctumAggregator) -> None:
    ordered = sorted(places)
    for begin in range(0, len(ordered), LOG_LIMIT):
        for _, event in source.at(ordered[begin : begin + LOG_LIMIT]):
            aggregator.take_in(event)
