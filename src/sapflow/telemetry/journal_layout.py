"""How a journal is laid out in SQLite: what its writer and its readers must agree on."""

APPLICATION_ID = int.from_bytes(b"SAPF", "big")
JOURNAL_VERSION = 1

# Keys of the table `meta`: what was dropped before it could be written, as far as the writer could tell.
DROPPED_EVENTS = "dropped_events"
DROPPED_SAMPLES = "dropped_samples"

# The body is the whole event (codec.py); the columns beside it are there to find it by.
CREATE = (
    "CREATE TABLE events (id INTEGER PRIMARY KEY, env INTEGER, sequence INTEGER, epoch INTEGER, "
    "type TEXT NOT NULL, time REAL NOT NULL, body BLOB NOT NULL)",
    "CREATE INDEX events_by_env_type_epoch ON events (env, type, epoch)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {JOURNAL_VERSION}",
)
INSERT_EVENT = "INSERT INTO events (env, sequence, epoch, type, time, body) VALUES (?, ?, ?, ?, ?, ?)"
SELECT_META = "SELECT key, CAST(value AS INTEGER) FROM meta"
SELECT_DROPPED = f"{SELECT_META} WHERE key IN ('{DROPPED_EVENTS}', '{DROPPED_SAMPLES}')"
SET_META = "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)"
