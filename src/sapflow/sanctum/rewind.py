"""Time travel: the run at any moment, and at its end, by looking up what is shown instead of following it all."""

import heapq
from collections.abc import Iterable

from sapflow.sanctum.aggregator import LOG_LIMIT, SanctumAggregator
from sapflow.sanctum.env_view import ENV_LOG_LIMIT
from sapflow.sanctum.schema import SanctumSnapshot
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


def opened(source: Source) -> SanctumAggregator:
    """What following `source` from its beginning would have led to; from here on it is followed, from its end.

    As much is looked up as is shown: the last epochs, the newest lines of the log, the newest samples. Gaps and
    duplicates are counted from here on; how bad things have been within the epoch is known as far as samples are looked
    back at.

    Raises:
        JournalError: the journal cannot be read.
    """
    with source.held_still():
        aggregator = _looked_up(source, None)
        source.skip_to_end()
    aggregator.apply_status(source.status())
    return aggregator


def snapshot_at(source: Source, epoch: int) -> SanctumSnapshot:
    """The run as it stood when `epoch` had ended in each env, with what was done at its end; 0: before the first.

    What has no epoch, such as the end of the whole run, is not in it.

    Raises:
        JournalError: the journal cannot be read.
    """
    with source.held_still():
        return _looked_up(source, epoch).snapshot()


def _looked_up(source: Source, until: int | None) -> SanctumAggregator:
    envs = source.envs()
    places = set(source.places(OF_THE_BEGINNING, (None, *envs), limit=1))
    lines: list[int] = []
    for env_id in envs:
        places.update(source.places(EPOCHS, (env_id,), None, until, HISTORY_LIMIT))
        newest = list(source.places(OTHERS, (env_id,), None, until, EVENTS_A_LINE * LOG_LIMIT))
        places.update(heapq.nlargest(EVENTS_A_LINE * ENV_LOG_LIMIT, newest))
        lines += newest
    if until is None:
        places.update(source.places(OF_THE_RUN, (None,), limit=LOG_LIMIT))
    places.update(heapq.nlargest(EVENTS_A_LINE * LOG_LIMIT, lines))
    aggregator = SanctumAggregator()
    _apply(source, places, aggregator)
    if until is None:
        _apply(source, _samples(source, aggregator.snapshot()), aggregator)
    aggregator.forget_gaps()
    return aggregator


def _samples(source: Source, snapshot: SanctumSnapshot) -> Iterable[int]:
    """The newest of the epoch that goes on, in each env."""
    for env_id, env in snapshot.envs.items():
        limit = SAMPLES_A_SLOT * len(env.seeds)
        yield from source.places(SAMPLES, (env_id,), env.epoch + 1, None, limit)


def _apply(source: Source, places: Iterable[int], aggregator: SanctumAggregator) -> None:
    ordered = sorted(places)
    for begin in range(0, len(ordered), LOG_LIMIT):
        for _, event in source.at(ordered[begin : begin + LOG_LIMIT]):
            aggregator.apply(event)
