"""`sapflow rules`: what a rule file says, and what it would have done to a recorded run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sapflow.cli.console import say
from sapflow.errors import InputError
from sapflow.exporters.prometheus_rules import rule_file
from sapflow.health.replay import Firing, Replay, blind_spots
from sapflow.health.rule_file import RuleFile, dump_rules, load_rules
from sapflow.health.rule_words import sentence, ways
from sapflow.health.rules import DEFAULT_RULES
from sapflow.history.restoring import with_journal
from sapflow.telemetry.source import Source

LONGEST_EPOCH_SECONDS = 10**7


def check(file: Path, /, *, run_dir: Annotated[Path | None, Parameter(name="--run")] = None) -> None:
    """Explain a rule file, and try it on a recorded run.

    Parameters
    ----------
    file:
        Rules as TOML.
    run_dir:
        A run directory, or the journal in it: say what these rules would have raised there. Nothing is changed.
    """
    found = load_rules(file)
    replay = None if run_dir is None else _replayed(found, run_dir)  # first what is wrong with the run
    for rule in found.rules:
        say(sentence(rule))
    if found.decide_every:
        say(f"rules for passes are judged every {found.decide_every} passes of an epoch, and at its end.")
    if found.notify:
        say(f"notifications go by {ways(found.notify)}.")
    if replay is not None:
        _say_outcome(found, *replay)


def default() -> None:
    """Print the default rules as a rule file."""
    say(dump_rules(DEFAULT_RULES).rstrip("\n"))


def prometheus(file: Path | None = None, /, *, epoch_seconds: float = 60.0) -> None:
    """Print rules as alerting rules of Prometheus, for what `sapflow follow --export prometheus` serves.

    Parameters
    ----------
    file:
        Rules as TOML; by default the default ones.
    epoch_seconds:
        How long an epoch takes, roughly: Prometheus counts in seconds.
    """
    if not 0 < epoch_seconds < LONGEST_EPOCH_SECONDS:
        raise InputError(f"--epoch-seconds {epoch_seconds:g}: say how long an epoch takes, roughly")
    rules = DEFAULT_RULES if file is None else load_rules(file).rules
    say(rule_file(rules, epoch_seconds).rstrip("\n"))


def _replayed(found: RuleFile, run_dir: Path) -> tuple[Replay, str]:
    """The rules after the whole run, and what of it could not be seen."""
    replay = Replay(found.rules, found.decide_every)
    with with_journal(run_dir) as journal, Source(journal) as source:
        while events := source.read():
            for event in events:
                replay.take(event)
        skipped, dropped = source.skipped.total(), source.status().dropped_events
    if not (skipped or dropped):
        return replay, ""
    return replay, f"events that could not be read: {skipped}, never written: {dropped}; alerts may be missing."


def _say_outcome(found: RuleFile, replay: Replay, unseen: str) -> None:
    say("")
    for firing in replay.firings:
        say(_fired(firing))
    fired = len({firing.alert.rule for firing in replay.firings})
    say(
        f"alerts: {len(replay.firings)}, from {fired} of {len(found.rules)} rules, in {replay.epochs} epochs of all "
        "envs; what the run itself did stands, and what these rules ask for was not done."
    )
    if found.decide_every:
        say(
            f"rules for passes saw {replay.sampled} of {replay.passes} measured passes, with the record's band "
            "for flags."
        )
    for rule in blind_spots(found.rules):
        say(f"rule {rule.name!r} was not tried: samples do not tell of {rule.when!s} within an epoch.")
    if unseen:
        say(unseen)


def _fired(firing: Firing) -> str:
    alert = firing.alert
    when = f"epoch {firing.epoch}" + ("" if firing.passes is None else f" after pass {firing.passes}")
    asked = f", asking for {', '.join(alert.actions)}" if alert.actions else ""
    said = (
        f"{alert.rule!r} would have fired in env {firing.env_id}, {when}, slot {alert.slot_id}, seed {alert.seed_id} "
        f"({alert.blueprint_id}): {alert.evidence}{asked}; {firing.end}"
    )
    return "".join(character if character.isprintable() else "�" for character in said)  # names are a stranger's
