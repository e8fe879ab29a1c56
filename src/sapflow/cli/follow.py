"""`sapflow follow`: bring what a run says, live or finished, to the tools that people already use."""

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sapflow.cli import EXIT_FAILED, complain, guarded
from sapflow.cli.console import say
from sapflow.cli.followers import Exporting, prints
from sapflow.errors import InputError
from sapflow.exporters import registry
from sapflow.exporters.config import chosen
from sapflow.exporters.exporter import Setting
from sapflow.exporters.follower import Follower
from sapflow.exporters.ledger import Ledger
from sapflow.exporters.run_identity import identity_of, wait_for_run
from sapflow.history.restoring import with_journal
from sapflow.telemetry import run_directory
from sapflow.telemetry.source import Source

PATIENCE_SECONDS = 300.0
STANDS_BACK = 10  # niceness: training comes first

Names = Annotated[tuple[str, ...], Parameter(help="Where to, may be repeated; by default all of --config.")]
Options = Annotated[tuple[str, ...], Parameter(help="NAME.OPTION=VALUE, may be repeated.")]


def follow(
    run_dir: Path | None = None,
    /,
    *,
    export: Names = (),
    config: Path | None = None,
    option: Options = (),
    patience: float = PATIENCE_SECONDS,
    wait: float = 0.0,
) -> int:
    """Export a run until it is over and everything is handed over; started again, it goes on where it was.

    Parameters
    ----------
    run_dir:
        A run directory; by default the newest run under runs/.
    export:
        An exporter. Each works in a process of its own.
    config:
        A TOML file with a table [exporters.NAME] for each exporter that needs options.
    option:
        An option on top of those in the file.
    patience:
        Seconds after the end of the run for which a backend that is away is tried again.
    wait:
        Seconds to wait for a run that is yet to begin, or to go on after it was cut off.
    """
    for name, seconds in (("patience", patience), ("wait", wait)):
        if not seconds >= 0:  # NaN is for ever, or never
            raise InputError(f"--{name} {seconds:g}: say for how many seconds, 0 or more")
    run_dir = run_directory.newest(run_directory.RUNS) if run_dir is None else run_dir
    run_dir = run_dir.parent if run_dir.is_file() else run_dir
    tables = chosen(export, config, option)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    wait = wait_for_run(run_dir, wait)
    if not (wait or (run_dir / run_directory.ROLLED_NAME).is_dir()):
        Source(run_dir).close()  # first what is wrong with the run
    if len(tables) > 1:
        exporting = Exporting.of(export, config, option)
        return exporting.run_beside(run_dir, ["--patience", str(patience), "--wait", str(wait)])
    ((name, options),) = tables.items()
    code = guarded(partial(_follow_with, name, options, run_dir, patience, wait))
    # A backend's threads and exit hooks are not to keep anybody waiting: what was theirs to do is done, or given up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop(*_: object) -> None:
    """The first signal ends it, in bounded time; later ones change nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _follow_with(name: str, options: dict[str, Any], run_dir: Path, patience: float, wait: float) -> int:
    os.nice(STANDS_BACK)
    logging.basicConfig(level=logging.WARNING, format="sapflow: %(message)s", stream=sys.stderr)
    logging.getLogger("sapflow.exporters").setLevel(logging.INFO)
    with with_journal(run_dir) as journal, Ledger(run_dir, name) as ledger:
        progress = ledger.progress
        setting = Setting(
            name=name, run_dir=run_dir, run=identity_of(journal), read_from=journal, cursor=progress.cursor,
            resumed=progress.opened, options=options,
        )  # fmt: skip
        exporter = registry.open_exporter(setting)
        progress.state, progress.opened = "waiting", True
        ledger.save()
        before, dropped_before = progress.exported, sum(progress.dropped.values())
        Follower(journal, exporter, ledger, patience=patience).run(wait)
    dropped = sum(progress.dropped.values()) - dropped_before
    tell = complain if prints(name, options) else say
    tell(f"{name}: {progress.exported - before} events exported" + (f", {dropped} dropped" if dropped else ""))
    if not dropped:
        return 0
    causes = ", ".join(f"{count} {cause}" for cause, count in progress.dropped.items())
    complain(f"{name}: {dropped} were dropped (of the whole run: {causes}); they do not come again")
    return EXIT_FAILED
