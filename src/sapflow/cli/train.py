"""`sapflow train`: train hosts while seeds grow in them, and keep what their gradients do."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sapflow.errors import MissingExtraError
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from sapflow.control.actions import Life
    from sapflow.training.recording import RecordedRun
    from sapflow.training.trainer import RunPlan

console = Console(highlight=False)


def train(
    *,
    task: str = "digits-cnn",
    envs: int = 4,
    epochs: int = 30,
    plant: Annotated[tuple[str, ...], Parameter(help="ENV:SLOT:BLUEPRINT, may be repeated.")] = (),
    rng_seed: int = 0,
    run_dir: Path | None = None,
    sanctum: bool = False,
) -> int:
    """Train hosts in whose slots seeds grow, and record their gradient flow.

    Parameters
    ----------
    task:
        What to learn: digits-cnn or digits-mlp.
    envs:
        How many hosts to train, in turn.
    epochs:
        For how long.
    plant:
        A blueprint that is to grow first in a slot of an env, as ENV:SLOT:BLUEPRINT: healthy ones, or "sigmoid", which
        vanishes, and "explosive", which explodes.
    rng_seed:
        Determines everything random: the same seed gives the same telemetry.
    run_dir:
        Where to keep the run; must not exist yet. By default a new directory under runs/.
    sanctum:
        Watch while it trains: the trainer runs in the background and logs into the run directory.
    """
    try:
        from sapflow.training import launcher, recording
        from sapflow.training.trainer import Plant, RunPlan
    except ModuleNotFoundError as error:
        raise MissingExtraError("training", "train") from error

    plan = RunPlan(
        task=task, envs=envs, epochs=epochs, rng_seed=rng_seed, plants=tuple(Plant.parse(text) for text in plant)
    )
    plan.check()
    run_dir = run_dir or recording.RUNS / recording.new_run_id(task)
    if sanctum:
        return _train_under_sanctum(plan, run_dir)

    recording.prepare(plan, run_dir)
    signal.signal(signal.SIGTERM, launcher.raise_keyboard_interrupt)
    console.print(f"recording into {run_dir}")
    try:
        outcome = _record_with_progress(plan, run_dir)
    except KeyboardInterrupt:
        console.print(f"stopped; what was recorded is kept: sapflow sanctum {run_dir}")
        raise
    console.print(_closing_table(outcome))
    _tell_of_journal(outcome, run_dir)
    return 0 if len(outcome.completed) == envs else 1


def _record_with_progress(plan: "RunPlan", run_dir: Path) -> "RecordedRun":
    from sapflow.training.recording import record

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(plan.task, total=plan.envs * plan.epochs)
        return record(plan, run_dir, on_epoch=lambda _env: progress.advance(bar))


def _train_under_sanctum(plan: "RunPlan", run_dir: Path) -> int:
    from sapflow.cli.sanctum import sanctum
    from sapflow.training import launcher

    trainer = launcher.start(plan, run_dir)
    sanctum(run_dir)
    if trainer.poll() is None:
        console.print(
            f"the training goes on as process {trainer.pid}: "
            f"`sapflow sanctum {run_dir}` shows it, `kill {trainer.pid}` stops it"
        )
        return 0
    return trainer.returncode


def _closing_table(outcome: "RecordedRun") -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1),
        caption="* planted; ratio: leaving over entering gradient in its last epoch",
        caption_justify="left",
    )
    for heading in ("env", "accuracy", "born", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("slot", "seed", "host saw it", "fate"):
        table.add_column(heading, no_wrap=True)
    for env_id, env in outcome.completed.items():
        table.add_section()
        for order, life in enumerate(env.actions.lives):
            first = (str(env_id), f"{env.accuracy:.1f} %") if order == 0 else ("", "")
            table.add_row(*first, *_life_row(life))
    return table


def _life_row(life: "Life") -> tuple[str | Text, ...]:
    if life.pruned_epoch is not None:
        fate = Text(f"pruned {life.pruned_epoch}: {life.pruned_by}", style="red")
    else:
        fate = Text(life.stage.lower(), style="green" if life.stage is SeedStage.FOSSILIZED else "")
    return (
        str(life.born_epoch),
        f"{life.last_ratio:.2f}",
        life.slot_id,
        life.blueprint_id + "*" * life.planted,
        "never" if life.blended_epoch is None else f"from {life.blended_epoch + 1}",
        fate,
    )


def _tell_of_journal(outcome: "RecordedRun", run_dir: Path) -> None:
    report = outcome.journal
    console.print(f"{report.acknowledged} events kept in {run_dir}")
    if report.dropped_events or report.dropped_samples:
        console.print(
            f"{report.dropped_events} events and {report.dropped_samples} samples were dropped: {report.last_error}"
        )
    console.print(f"look at it: sapflow sanctum {run_dir}")
