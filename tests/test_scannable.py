"""What an engine asks of a table is all that is made of it, and the answer is that of the whole table."""

import duckdb
import pyarrow as pa
import pytest

import sapflow
from journals import finished_run
from sanctum_events import demo_run
from sapflow.history.scannable import of_journal
from sapflow.history.schemas import TABLES
from sapflow.history.selection import Selection

# A question, the columns that it looks at, the one env, and the epochs.
QUESTIONS = [
    ("SELECT count(*) FROM gradients", {"env"}, None, None),
    ("SELECT max(ratio) FROM gradients", {"ratio"}, None, None),
    ("SELECT slot, avg(ratio) FROM gradients WHERE env = 2 GROUP BY slot", {"env", "slot", "ratio"}, 2, None),
    ("SELECT count(*) FROM gradients WHERE epoch BETWEEN 3 AND 5 AND slot = 'mid'", {"epoch", "slot"}, None, (3, 5)),
    ("SELECT min(pass) FROM gradients WHERE env = 1 AND epoch = 4", {"pass", "env", "epoch"}, 1, (4, 4)),
    ("SELECT count(*) FROM gradients WHERE env = 1 OR epoch = 4", {"env", "epoch"}, None, None),
    ("SELECT count(*) FROM gradients WHERE NOT env = 1", {"env"}, None, None),
    ("SELECT count(*) FROM events WHERE env IS NULL", {"env"}, None, None),
    ("SELECT count(*) FROM events WHERE env = 1 OR env IS NULL", {"env"}, None, None),
    ("SELECT count(*) FROM events WHERE epoch IN (2, 4)", {"epoch"}, None, (2, 4)),
    ("SELECT any_value(slot) FROM seeds WHERE env = 3 AND born_epoch < 9", {"slot", "env", "born_epoch"}, 3, None),
    ("SELECT count(*) FROM epochs a JOIN epochs b USING (env, epoch) WHERE a.env = 0", {"env", "epoch"}, 0, None),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with sapflow.open_run(finished_run(tmp_path_factory.mktemp("runs") / "demo", *demo_run(completed=True))) as opened:
        yield opened


@pytest.mark.parametrize(("sql", "columns", "env", "epochs"), QUESTIONS)
def test_no_more_is_made_than_is_asked_for(run, sql, columns, env, epochs):
    asked: list[Selection] = []

    def batches(selection: Selection) -> pa.RecordBatchReader:
        asked.append(selection)
        return run.batches(selection.table, selection.columns, selection.env, selection.slot, selection.epochs)

    table = next(name for name in ("gradients", "events", "seeds", "epochs") if f"FROM {name}" in sql)
    with duckdb.connect(":memory:") as connection:
        connection.from_arrow(run.batches(table).read_all()).create_view(table)
        expected = connection.sql(sql).fetchall()
    with duckdb.connect(":memory:") as connection:
        connection.from_arrow(of_journal(table, batches)).create_view(table)
        assert connection.sql(sql).fetchall() == expected
    for selection in asked:
        assert columns <= set(selection.columns) <= {*columns, TABLES[table].names[0]}  # by which rows are counted
        assert (selection.env, selection.epochs) == (env, epochs)
    assert asked
