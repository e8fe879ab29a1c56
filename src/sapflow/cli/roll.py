"""`sapflow roll`: a finished run into Parquet."""

from pathlib import Path

from sapflow.cli.console import say
from sapflow.cli.extras import needs
from sapflow.history.text import counted, size


def roll(run_dir: Path, /, *more: Path, remove_journal: bool = False) -> None:
    """Write finished runs into Parquet, beside their journals: small, and read by every tool.

    Parameters
    ----------
    run_dir:
        A run directory, or several.
    remove_journal:
        Remove the journal, once the Parquet has been read back and was the same, event by event.
    """
    with needs("rolling", "history"):
        from sapflow.history.rolling import roll as roll_one

    for one in (run_dir, *more):
        done = roll_one(one, remove_journal=remove_journal)
        journal = "the journal is gone" if done.removed else f"the journal has {size(done.journal_bytes)}"
        events, passes = counted(done.rows["events"], "event"), counted(done.rows["gradients"], "row")
        say(
            f"{one}: {events} and {passes} of gradients in {size(done.parquet_bytes)} of Parquet, "
            f"read back and the same; {journal}"
        )
