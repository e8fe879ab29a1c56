"""`sapflow sanctum`: look at a run, live or finished."""

from pathlib import Path

from sapflow.errors import MissingExtraError
from sapflow.telemetry import run_directory

RUNS = Path("runs")


def sanctum(run_dir: Path | None = None, /) -> None:
    """Show a run in the terminal: whether gradient flows through what grows there.

    Parameters
    ----------
    run_dir:
        A run directory, or the journal in it; by default the newest run under runs/.
    """
    try:
        from sapflow.sanctum.app import run
    except ModuleNotFoundError as error:
        raise MissingExtraError("Sanctum", "tui") from error

    run(run_directory.newest(RUNS) if run_dir is None else run_dir)
