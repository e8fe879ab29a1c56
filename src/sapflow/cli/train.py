"""`sapflow train`: train hosts while seeds grow in them, and keep what their gradients do."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sapflow.cli import EXIT_FAILED, EXIT_INTERRUPTED, complain
from sapflow.cli.console import console, say
from sapflow.cli.extras import needs
from sapflow.cli.followers import Exporting, Followers
from sapflow.errors import InputError
from sapflow.health.rule_file import read_rules
from sapflow.telemetry.run_directory import LOG_NAME, RUNS
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from sapflow.control.actions import Life
    from sapflow.training.env import Env
    from sapflow.training.recording import RecordedRun
    from sapflow.training.trainer import RunPlan


def _whole_number(_type: Any, tokens: Sequence[Token]) -> int:
    """Stricter than Cyclopts, which would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from error


WholeNumber = Annotated[int, Parameter(converter=_whole_number)]


def train(
    *,
    task: str = "digits-cnn",
    envs: WholeNumber = 4,
    epochs: WholeNumber = 30,
    plant: Annotated[tuple[str, ...], Parameter(help="ENV:SLOT:BLUEPRINT, may be repeated.")] = (),
    rng_seed: WholeNumber = 0,
    data: Path | None = None,
    controller: str = "scheduled",
    rules: Path | None = None,
    run_dir: Path | None = None,
    checkpoint_every: WholeNumber = 1,
    resume: Path | None = None,
    sanctum: bool = False,
    export: Annotated[tuple[str, ...], Parameter(help="Where to, may be repeated; see `sapflow follow`.")] = (),
    export_config: Path | None = None,
    export_option: Annotated[tuple[str, ...], Parameter(help="NAME.OPTION=VALUE, may be repeated.")] = (),
) -> int:
    """Train hosts in whose slots seeds grow, and record their gradient flow.

    Parameters
    ----------
    task:
        What to learn: digits-cnn, digits-mlp or characters (English text for a small transformer); from files of your
        own, mnist-cnn, mnist-mlp or cifar10-cnn; or a task that an installed package brings.
    envs:
        How many hosts to train, in turn.
    epochs:
        For how long.
    plant:
        A blueprint that is to grow first in a slot of an env, as ENV:SLOT:BLUEPRINT: healthy ones, or "sigmoid", which
        vanishes, and "explosive", which explodes.
    rng_seed:
        Determines everything random: the same seed gives the same telemetry.
    data:
        The directory with the files of a task that reads files; nothing is downloaded.
    controller:
        Who decides what germinates and when: scheduled, heuristic (on plateaus, of what has worked), random, or
        accuracy (which does not look at gradients).
    rules:
        Alert rules in TOML, in place of the default ones: see `sapflow rules`.
    run_dir:
        Where to keep the run; must not exist yet. By default a new directory under runs/.
    checkpoint_every:
        Epochs from one checkpoint to the next; 0 writes none.
    resume:
        Go on with the run in this directory, which was cut off: it becomes the run that it would have been. It has its
        own options; none but --sanctum and those of exporting go with it.
    sanctum:
        Watch while it trains: the trainer runs in the background and logs into the run directory.
    export:
        An exporter that is to follow the run, in a process of its own, which logs into the run directory.
    export_config:
        A TOML file with a table [exporters.NAME] for each exporter that needs options.
    export_option:
        An option on top of those in the file.
    """
    exporting = Exporting.of(export, export_config, export_option)
    with needs("training", "train"):
        from sapflow.training import recording
        from sapflow.training.trainer import Plant, RunPlan

    plan = RunPlan(
        task=task,
        envs=envs,
        epochs=epochs,
        rng_seed=rng_seed,
        plants=tuple(Plant.parse(text) for text in plant),
        data_dir="" if data is None else str(data.absolute()),
        controller=controller,
        rules=read_rules(rules) if rules is not None else "",
        checkpoint_every=checkpoint_every,
    )
    if resume is not None and (plan != RunPlan() or run_dir is not None):
        raise InputError("--resume goes with --sanctum and --export alone: the run has its own options")
    if resume is not None:
        plan, run_dir = recording.plan_of(resume), resume
    plan.check()
    run_dir = run_dir or RUNS / recording.new_run_id(task)
    if sanctum:
        return _train_under_sanctum(plan, run_dir, exporting, resume=resume is not None)

    recording.stop_on_signals()  # before there is anything that would be left behind
    followers = _prepared(plan, run_dir, exporting, resume=resume is not None)
    say(f"recording into {run_dir}")
    try:
        outcome = _record_with_progress(plan, run_dir, resume=resume is not None)
    except KeyboardInterrupt:
        go_on = _command("train", "--resume", str(run_dir))
        complain(f"stopped; what was recorded is kept: {_sanctum_command(run_dir)}; to go on: {go_on}")
        followers.leave()
        return EXIT_INTERRUPTED
    console.print(_closing_table(outcome))
    _tell_of_journal(outcome, run_dir)
    followers.finish()
    failed = plan.envs - len(outcome.completed)
    if failed:
        complain(f"{failed} of {plan.envs} envs failed")
    return EXIT_FAILED if failed else 0


def _prepared(plan: "RunPlan", run_dir: Path, exporting: Exporting, *, resume: bool) -> Followers:
    """The run directory, made unless the run goes on in it, and its exporters, which are open."""
    from sapflow.training import recording

    if not resume:
        with needs("training", "train"):
            recording.prepare(plan, run_dir)
    with _removed_on_failure(None if resume else run_dir):
        followers = exporting.start(run_dir)
        followers.wait_until_open()
    return followers


@contextmanager
def _removed_on_failure(run_dir: Path | None) -> Iterator[None]:
    """A directory that was made for a training that cannot begin is not left behind, in the way of the next try."""
    try:
        yield
    except BaseException:
        if run_dir is not None:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _record_with_progress(plan: "RunPlan", run_dir: Path, *, resume: bool) -> "RecordedRun":
    from sapflow.training.recording import record

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(plan.task, total=plan.envs * plan.epochs)

        def show(env: "Env") -> None:
            progress.update(bar, completed=(env.epoch - 1) * plan.envs + env.plan.env_id + 1)

        return record(plan, run_dir, on_epoch=show, resume=resume)


def _train_under_sanctum(plan: "RunPlan", run_dir: Path, exporting: Exporting, *, resume: bool) -> int:
    from sapflow.cli.sanctum import check_terminal, show
    from sapflow.training import launcher

    check_terminal()
    followers = _prepared(plan, run_dir, exporting, resume=resume)
    with followers.all_or_none(), needs("training", "train"):
        trainer = launcher.start(run_dir, resume=resume)
    try:
        show(run_dir)
    finally:
        going_on = trainer.poll() is None
        if going_on:
            say(f"the training goes on as process {trainer.pid}: `kill {trainer.pid}` stops it")
            followers.leave()
        else:
            followers.finish()
        say(f"look at it: {_sanctum_command(run_dir)}")
    if going_on or trainer.returncode == 0:
        return 0
    complain(f"the training ended with code {trainer.returncode}: see {run_dir / LOG_NAME}")
    return EXIT_FAILED


def _closing_table(outcome: "RecordedRun") -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        caption="* planted; ratio: leaving over entering gradient in its last epoch",
        caption_justify="left",
    )
    for heading in ("env", "accuracy", "born", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("slot", "seed", "host saw", "fate"):
        table.add_column(heading, no_wrap=True)
    for env_id, env in outcome.completed.items():
        table.add_section()
        for order, life in enumerate(env.actions.lives):
            first = (str(env_id), f"{env.accuracy:.1f} %") if order == 0 else ("", "")
            table.add_row(*first, *_life_row(life))
    return table


def _life_row(life: "Life") -> tuple[str | Text, ...]:
    """What became of a seed; names are a person's own, and no markup."""
    if life.pruned_epoch is not None:
        fate = Text(f"pruned {life.pruned_epoch}, {life.pruned_by}", style="red")
    else:
        fate = Text(life.stage.lower(), style="green" if life.stage is SeedStage.FOSSILIZED else "")
    return (
        str(life.born_epoch),
        f"{life.last_ratio:.2f}",
        Text(life.slot_id),
        Text(life.blueprint_id + "*" * life.planted),
        "never" if life.blended_epoch is None else f"from {life.blended_epoch + 1}",
        fate,
    )


def _tell_of_journal(outcome: "RecordedRun", run_dir: Path) -> None:
    report = outcome.journal
    say(f"{report.acknowledged} events kept in {run_dir}")
    if report.dropped_events or report.dropped_samples:
        say(f"{report.dropped_events} events and {report.dropped_samples} samples were dropped: {report.last_error}")
    say(f"look at it: {_sanctum_command(run_dir)}")


def _sanctum_command(run_dir: Path) -> str:
    """What opens the run."""
    return _command("sanctum", str(run_dir))


def _command(*arguments: str) -> str:
    """A call of this program as it can be typed here: by its path where the shell would not find it."""
    if shutil.which("sapflow"):
        program = ["sapflow"]
    elif Path(sys.argv[0]).name == "__main__.py":
        program = [sys.executable, "-m", "sapflow"]
    else:
        program = [sys.argv[0]]
    return shlex.join([*program, *arguments])
