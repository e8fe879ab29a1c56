"""The operator's hand: what may be asked of the trainer and why not, what it would mean, and what came of it."""

import getpass
import uuid
from collections.abc import Iterable
from enum import Enum, auto

from sapflow.sanctum.glyphs import BLUISH_GREEN, SKY_BLUE, VERMILLION
from sapflow.sanctum.numbers import clock, compact, duration
from sapflow.sanctum.schema import EnvState, EnvStatus, SanctumSnapshot, SeedState
from sapflow.sanctum.spans import DIM, Line, Span, clean, labelled, line, padded
from sapflow.telemetry.events import RequestAnswered
from sapflow.telemetry.mailbox import Request
from sapflow.telemetry.source import RunState, RunStatus, Source
from sapflow.telemetry.vocabulary import EventType, Measurement, SeedStage

MEANINGS = {
    "prune": "The host goes on as if the seed had never been there, and its slot is free again after a rest. "
    "This cannot be undone.",
    "hold": "It goes on learning and is measured; its blend weight stands, and it moves on to no other stage.",
    "resume": "It moves on again as its gates open.",
    "stop": "The env ends after its epoch with what it has grown; the other envs go on. This cannot be undone.",
}
ANSWERS = 100  # that are looked through for the one that is waited for


class Standing(Enum):
    """How it stands with a request."""

    WAITING = auto()
    DONE = auto()
    REFUSED = auto()
    ABANDONED = auto()  # no trainer is there to answer


def why_not(
    action: str, env_id: int | None, seed_id: str, live: SanctumSnapshot, moment: int | None, read_only: bool
) -> str:
    """Why nothing can be asked here now; "" if it can.

    Args:
        action: "prune", "hold", "resume" or "stop".
        env_id: that it is about, None without one.
        seed_id: likewise, "" without one.
        live: the run as it is now.
        moment: the epoch that is shown, None for live.
        read_only: whether the hand is switched off.
    """
    env = None if env_id is None else live.envs.get(env_id)
    status = live.status or RunStatus(state=RunState.LIVE)
    if read_only:
        return "this is a read-only view"
    if moment is not None:
        return "this is the past: L goes back to what happens now"
    if status.state is RunState.COMPLETED:
        return "the run is completed"
    if status.state is RunState.ENDED:
        return "the trainer is gone: nobody would answer"
    if not status.takes_requests:
        return "this run takes no requests: nothing grows in it"
    if env is None:
        return "no env is in focus"
    if env.status is not EnvStatus.TRAINING:
        return f"env {env.env_id:02} is {env.status.lower()}"
    return "" if action == "stop" else _why_not_of_seed(action, env, seed_id)


def _why_not_of_seed(action: str, env: EnvState, seed_id: str) -> str:
    if not seed_id:
        return "no seed is in focus"
    seed = next((seed for seed in env.seeds.values() if seed.seed_id == seed_id), None)
    if seed is None:
        return "the seed is gone"
    if not seed.stage.alive:
        return f"the seed is gone: the slot is {seed.stage.lower()}"
    if seed.stage is SeedStage.WATCHED:
        return "a watched module is measured, and nothing else is done to it"
    if seed.stage is SeedStage.FOSSILIZED:
        return "the seed is fossilized, a part of its host for good"
    if seed.paused and action == "hold":
        return "the seed is held already"
    return "the seed is not held" if action == "resume" and not seed.paused else ""


def new_request(action: str, env_id: int, slot_id: str, seed_id: str, now: float) -> Request:
    """The request, with a name of its own; a whole env is asked about without slot and seed."""
    of_env = action == "stop"
    return Request(
        request_id=uuid.uuid4().hex,
        env_id=env_id,
        action=action,  # type: ignore[arg-type]  # the mailbox refuses what is none
        slot_id="" if of_env else slot_id,
        seed_id="" if of_env else seed_id,
        asked_at=now,
        by=_user(),
    )


def _user() -> str:
    try:
        return getpass.getuser()[:64]
    except (OSError, KeyError):  # a user id that has no name
        return ""


def answer_to(request: Request, source: Source) -> RequestAnswered | None:
    """What the trainer said to it; None as long as it has said nothing.

    Raises:
        JournalError: the journal cannot be read.
    """
    for event in reversed(source.events([EventType.REQUEST_ANSWERED], request.env_id, limit=ANSWERS)):
        if isinstance(event.payload, RequestAnswered) and event.payload.request_id == request.request_id:
            return event.payload
    return None


def standing_of(answer: RequestAnswered | None, state: RunState) -> Standing:
    """How it stands with a request; what a run that is over has not answered, nobody will."""
    if answer is not None:
        return Standing.DONE if answer.done else Standing.REFUSED
    return Standing.WAITING if state is RunState.LIVE else Standing.ABANDONED


def question_lines(action: str, env: EnvState, seed: SeedState | None, width: int) -> list[Line]:
    """What is asked for, of what, how that is doing, and what it would mean."""
    if seed is None:
        what = f"{action.capitalize()} env {env.env_id:02}?"
        how = f"{env.status.lower()}, epoch {env.epoch}, accuracy {_percent(env.accuracy)}"
    else:
        names = f"{clean(seed.blueprint_id, 30)} {clean(seed.seed_id, 30)} in {clean(seed.slot_id, 30)}"
        what = f"{action.capitalize()} {names} of env {env.env_id:02}?"
        ratio = compact(seed.grad_ratio) if seed.measurement is Measurement.MEASURED else "not measured"
        how = (
            f"{seed.stage.lower()}{', held' if seed.paused else ''}, ratio {ratio}, Acc Δ {seed.accuracy_delta:+.2f} %"
        )
    return [
        *labelled(("", ""), what, "bold", width),
        *labelled(("", ""), how, DIM, width),
        (),
        *labelled(("", ""), MEANINGS[action], "", width),
    ]


def _percent(accuracy: float | None) -> str:
    return "--" if accuracy is None else f"{compact(accuracy)} %"


def standing_lines(
    request: Request, answer: RequestAnswered | None, standing: Standing, env: EnvState, now: float, width: int
) -> list[Line]:
    """What became of a request so far."""
    outcome = clean(answer.outcome, 500) if answer else ""
    words: tuple[Span, str] = {
        Standing.WAITING: (
            ("● ", f"bold {SKY_BLUE}"),
            f"asked {duration(max(now - request.asked_at, 0))} ago; the trainer answers at the end of epoch "
            f"{env.epoch + 1}",
        ),
        Standing.DONE: (("✓ ", f"bold {BLUISH_GREEN}"), f"done: {outcome}"),
        Standing.REFUSED: (("✕ ", f"bold {VERMILLION}"), f"refused: {outcome}"),
        Standing.ABANDONED: (("✕ ", f"bold {VERMILLION}"), "the trainer is gone: nobody will answer"),
    }[standing]
    return labelled(words[0], words[1], "", width)


def pending_lines(requests: Iterable[Request], env: EnvState) -> list[Line]:
    """The requests to an env that wait for an answer, a line each."""
    return [
        line(
            (f"{clock(request.asked_at)}  ", DIM),
            ("● ", f"bold {SKY_BLUE}"),
            (f"{request.action} ", "bold"),
            f"{padded(request.slot_id or 'the env', 12)} ",
            (f"asked for by {clean(request.by, 20) or 'somebody'}; answered at the end of epoch {env.epoch + 1}", DIM),
        )
        for request in requests
        if request.env_id == env.env_id
    ]
