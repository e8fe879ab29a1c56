"""What a reader asks of a journal, in SQL: by the index of envs, types and epochs, or by places."""

import json
from collections.abc import Collection

from sapflow.telemetry.journal_layout import DROPPED_EVENTS, DROPPED_SAMPLES
from sapflow.telemetry.vocabulary import EventType

MAX_EVENT_BYTES = 16 * 2**20  # journals come from strangers: no single event may take the reader's memory
MAX_ENVS = 1_000_000

LATEST_EPOCH = LATEST_PLACE = 2**63 - 1

# The body, or, of one that is not to be read, its size: -1 where it is no bytes.
_COLUMNS = f"""
    id,
    CASE
        WHEN typeof(body) <> 'blob' THEN -1
        WHEN length(body) > {MAX_EVENT_BYTES} THEN length(body)
        ELSE body
    END,
    type
"""
SELECT_NEXT = f"SELECT {_COLUMNS} FROM events WHERE id > ? ORDER BY id"
SELECT_BY_ID = f"SELECT {_COLUMNS} FROM events WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id DESC"
SELECT_AT_END = "SELECT NOT EXISTS (SELECT 1 FROM events WHERE id > ?)"
SELECT_MOMENT = f"""
    SELECT {_COLUMNS} FROM events
    WHERE env = ? AND type = '{EventType.EPOCH_COMPLETED}' AND epoch <= ? ORDER BY epoch DESC, id DESC
"""
SELECT_IDS = "SELECT id FROM events WHERE env IS ? AND type = ? ORDER BY epoch DESC, id DESC LIMIT ?"
SELECT_IDS_OF_EPOCHS = """
    SELECT id FROM events WHERE env IS ? AND type = ? AND epoch BETWEEN ? AND ? ORDER BY epoch DESC, id DESC LIMIT ?
"""
SELECT_IDS_BETWEEN = """
    SELECT id FROM events WHERE env IS ? AND type = ? AND epoch = ? AND id > ? AND id < ? ORDER BY id DESC LIMIT ?
"""
# Each env is found behind the one before it, so that the rest of the index is leapt over. Texts sort behind numbers.
_ENVS = f"""
    WITH RECURSIVE
    found(env) AS (
        SELECT min(env) FROM events WHERE env < {LATEST_EPOCH}
        UNION ALL
        SELECT (SELECT min(env) FROM events WHERE env > found.env AND env < {LATEST_EPOCH}) FROM found
        WHERE found.env IS NOT NULL
    ),
    envs(env) AS (SELECT env FROM found WHERE typeof(env) = 'integer' LIMIT {MAX_ENVS})
"""
SELECT_ENVS = f"{_ENVS} SELECT env FROM envs"
SELECT_LAST_EPOCH = f"""
    {_ENVS}
    SELECT max((
        SELECT max(epoch) FROM events
        WHERE env = envs.env AND type = '{EventType.EPOCH_COMPLETED}' AND epoch <= {LATEST_EPOCH}
    )) FROM envs
"""
SELECT_END = "SELECT max(id) FROM events"
SELECT_STATUS = f"""
    SELECT
        coalesce((SELECT max(id) FROM events), 0),
        EXISTS (SELECT 1 FROM events WHERE env IS NULL AND type = '{EventType.RUN_COMPLETED}'),
        (SELECT CAST(time AS REAL) FROM events ORDER BY id DESC LIMIT 1),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = '{DROPPED_EVENTS}'), 0),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = '{DROPPED_SAMPLES}'), 0)
"""

# What begins a run or an env has no epoch: it was so at every moment.
_BEGINNINGS = f"'{EventType.RUN_STARTED}', '{EventType.ENV_STARTED}'"


def select_newest(
    types: Collection[EventType], env_id: int | None, bounds: str = "", before: int = LATEST_PLACE, limit: int = 500
) -> tuple[str, tuple[object, ...]]:
    """Asks where the newest events of these types are, at places before `before`: of an env, or of all and the run.

    `bounds` is a condition that the events meet as well, such as `of_epochs` and `until_epoch` give.
    """
    rest = f"AND type IN (SELECT value FROM json_each(?1)) AND id < ?2{bounds}"
    if env_id is None:
        found = f"""{_ENVS}
            SELECT id FROM events WHERE env IN (SELECT env FROM envs) {rest}
            UNION ALL SELECT id FROM events WHERE env IS NULL {rest}"""
    else:
        found = f"SELECT id FROM events WHERE env = {env_id:d} {rest}"
    return f"{found} ORDER BY id DESC LIMIT ?3", (_listed(types), before, limit)


def select_between(
    types: Collection[EventType], env_id: int | None, bounds: str, after: int, until: int
) -> tuple[str, tuple[object, ...]]:
    """Asks where the events of these types are at places after `after`, up to `until`: by place, for there are few."""
    whose = "" if env_id is None else f" AND +env = {env_id:d}"
    found = "SELECT id FROM events WHERE id > ?2 AND id <= ?3 AND +type IN (SELECT value FROM json_each(?1))"
    return f"{found}{whose}{bounds} ORDER BY id", (_listed(types), after, until)


def of_epochs(first: int | None, last: int | None) -> str:
    """The condition that events have an epoch, and it is one of these; no condition without a bound."""
    if first is None and last is None:
        return ""
    return f" AND epoch BETWEEN {first or 0:d} AND {LATEST_EPOCH if last is None else last:d}"


def until_epoch(last: int | None) -> str:
    """The condition that things stood like that when epoch `last` had ended; no condition without it."""
    return "" if last is None else f" AND (epoch <= {last:d} OR (epoch IS NULL AND type IN ({_BEGINNINGS})))"


def _listed(types: Collection[EventType]) -> str:
    return json.dumps([event_type.value for event_type in types])
