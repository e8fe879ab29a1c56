"""What the tables of a run look like: names and types of their columns, and the epochs that a row belongs to."""

from typing import Final

from sapflow.history.arrow import pa, pc

TIME: Final = pa.timestamp("us", tz="UTC")
_SEED: Final = [("env", pa.int32()), ("slot", pa.string()), ("seed", pa.string()), ("blueprint", pa.string())]

GRADIENTS: Final = pa.schema(
    [
        *_SEED,
        ("stage", pa.string()),
        ("epoch", pa.int32()),
        ("pass", pa.int64()),
        ("ratio", pa.float64()),
        ("entering", pa.float64()),
        ("leaving", pa.float64()),
        ("vanishing", pa.bool_()),
        ("exploding", pa.bool_()),
        ("status", pa.string()),
    ]
)
EPOCHS: Final = pa.schema(
    [
        ("env", pa.int32()),
        ("epoch", pa.int32()),
        ("slot", pa.string()),
        ("seed", pa.string()),
        ("blueprint", pa.string()),
        ("stage", pa.string()),
        ("alpha", pa.float64()),
        ("params", pa.int64()),
        ("ratio", pa.float64()),
        ("min_ratio", pa.float64()),
        ("max_ratio", pa.float64()),
        ("last_ratio", pa.float64()),
        ("entering", pa.float64()),
        ("leaving", pa.float64()),
        ("passes", pa.int64()),
        ("non_finite", pa.int64()),
        ("vanishing", pa.bool_()),
        ("exploding", pa.bool_()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("fault", pa.string()),
        ("evidence", pa.string()),
        ("accuracy_delta", pa.float64()),
        ("masked", pa.int64()),
        ("paused", pa.bool_()),
        ("histogram", pa.list_(pa.int64())),
        ("accuracy", pa.float64()),
        ("train_loss", pa.float64()),
        ("validation_loss", pa.float64()),
        ("time", TIME),
    ]
)
SEEDS: Final = pa.schema(
    [
        *_SEED,
        ("planted", pa.bool_()),
        ("born_epoch", pa.int32()),
        ("birth_gain", pa.float64()),
        ("params", pa.int64()),
        ("stages", pa.list_(pa.struct([("stage", pa.string()), ("epoch", pa.int32())]))),
        ("died_epoch", pa.int32()),
        ("died_of", pa.string()),
        ("last_ratio", pa.float64()),
        ("last_stage", pa.string()),
        ("accuracy_delta", pa.float64()),
    ]
)
ALERTS: Final = pa.schema(
    [
        *_SEED,
        ("rule", pa.string()),
        ("severity", pa.string()),
        ("value", pa.float64()),
        ("evidence", pa.string()),
        ("since_epoch", pa.int32()),
        ("raised_epoch", pa.int32()),
        ("cleared_epoch", pa.int32()),
        ("cleared_reason", pa.string()),
        ("actions", pa.list_(pa.string())),
    ]
)
EVENTS: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("env", pa.int32()),
        ("sequence", pa.int64()),
        ("epoch", pa.int32()),
        ("type", pa.string()),
        ("time", TIME),
        ("slot", pa.string()),
        ("text", pa.string()),
    ]
)
TABLES: Final = {"gradients": GRADIENTS, "epochs": EPOCHS, "seeds": SEEDS, "alerts": ALERTS, "events": EVENTS}

# Lives and alerts have a first and a last epoch; one that is null has not come.
SPANS: Final = {"seeds": ("born_epoch", "died_epoch"), "alerts": ("raised_epoch", "cleared_epoch")}


def within(table: str, epochs: tuple[int, int]) -> pc.Expression:
    """Rows of `table` that belong to any of the epochs from the first to the last, both included."""
    first, last = epochs
    if table not in SPANS:
        return (pc.field("epoch") >= first) & (pc.field("epoch") <= last)
    begun, ended = map(pc.field, SPANS[table])
    return (begun.is_null() | (begun <= last)) & (ended.is_null() | (ended >= first))
