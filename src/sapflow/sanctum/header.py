"""The head of every screen: which run and how far, how its journal is, and what is wrong at a glance."""

from collections import Counter
from collections.abc import Iterable

from sapflow.sanctum.census import Kind
from sapflow.sanctum.glyphs import BLUISH_GREEN, ORANGE, SKY_BLUE, VERMILLION
from sapflow.sanctum.numbers import clock, compact, duration
from sapflow.sanctum.schema import EnvStatus, SanctumSnapshot
from sapflow.sanctum.spans import DIM, Line, clean, ends, first_that_fits, fit, line, spaced, width_of
from sapflow.telemetry.source import RunState
from sapflow.telemetry.wording import counted

LAGGING = 2.0  # seconds of lag, from which on it is said
QUIET = 30.0  # seconds without an event, from which on it is said

_TROUBLE = (Kind.EXPLODING, Kind.VANISHING, Kind.NON_FINITE, Kind.UNMEASURED, Kind.ALERTS)


def header_lines(
    snapshot: SanctumSnapshot,
    now: float,
    notice: str,
    width: int,
    counts: Counter[Kind] | None = None,
    pace: float | None = None,
    lag: float = 0.0,
    moment: int | None = None,
    trouble: bool = True,
) -> list[Line]:
    """Which run and how far; how its journal and its seeds are; and, where there is one, the notice.

    `now` in Unix seconds; `counts` of the whole run; `pace` in passes a second; `lag` in seconds from the newest event
    that was read to the newest that the journal has; `moment` is the epoch that is shown, None where that is now;
    without `trouble` what is wrong is counted elsewhere on the screen.
    """
    lines = [
        _run_line(snapshot, now, width, moment),
        _state_line(snapshot, width, _states(snapshot, now, lag, moment), counts or Counter(), pace, trouble),
    ]
    if notice:
        lines.append(line((f"⚑ {clean(notice, 500)}", f"bold {ORANGE}")))
    return [fit(drawn, width) for drawn in lines]


def _run_line(snapshot: SanctumSnapshot, now: float, width: int, moment: int | None) -> Line:
    done, asked = _done(snapshot)
    share = min(max(done / asked, 0.0), 1.0) if asked else 0.0
    elapsed = _elapsed(snapshot, now)
    left = _left(snapshot, now, asked - done)
    task = line(("Sapflow ", f"bold {BLUISH_GREEN}"), (f" {clean(snapshot.task, 24)}", "bold"))
    run = line((f"  {clean(snapshot.run_id, 28)}", DIM))
    # The past has a share of its own, which the time elapsed until now says nothing of.
    time_left = f"{duration(left)} left" if is_live(snapshot) and asked and moment is None else ""
    times = line((f"{duration(elapsed)} elapsed" + (f"  {time_left}" if time_left else ""), DIM))
    bar = _bar(share, min(width // 8, 40)) if asked else ()
    how_far = line(_how_far(snapshot))
    # What says the least goes first where there is no room: the run's name, then times; the task and the epoch stay.
    progress = first_that_fits(
        width - width_of(task) - 3,
        [
            spaced((part for part in parts if part), gap="  ")
            for parts in ((how_far, bar, times), (how_far, bar, line((time_left, DIM))), (how_far, bar), (how_far,))
        ],
    )
    return ends((*task, *run), line("  ", *progress, " "), width)


def _how_far(snapshot: SanctumSnapshot) -> str:
    """The epoch that every env which still trains has behind it; once none does, the last of all."""
    envs = snapshot.envs.values()
    epochs = snapshot.expected_epochs or max((env.epochs for env in envs), default=0)
    last = max((env.epoch for env in envs), default=0)
    return of_epochs(min((env.epoch for env in envs if env.status is EnvStatus.TRAINING), default=last), epochs)


def _done(snapshot: SanctumSnapshot) -> tuple[int, int]:
    """How many epochs of all envs need no more training, and of how many; an env that has ended needs none."""
    envs = snapshot.envs.values()
    asked = max(snapshot.expected_envs, len(envs)) * snapshot.expected_epochs or sum(env.epochs for env in envs)
    return sum((snapshot.expected_epochs or env.epochs) if env.ended else env.epoch for env in envs), asked


def _left(snapshot: SanctumSnapshot, now: float, epochs: int) -> float:
    """Seconds that so many epochs take, by what was trained since the run last went on; negative while unknown."""
    since = snapshot.resumed_at
    if since is None:
        return -1.0
    # What an env lives through once more is not said again: as long as it has said nothing, it is no progress.
    news = (env for env in snapshot.envs.values() if env.last_time > since)
    trained = sum(max(env.epoch - snapshot.resumed_from, 0) for env in news)
    return (now - since) * epochs / trained if trained else -1.0


def of_epochs(epoch: int, epochs: int) -> str:
    """How far; without an end where nobody knows one."""
    return f"epoch {epoch}/{epochs}" if epochs else f"epoch {epoch}"


def _bar(share: float, cells: int) -> Line:
    filled = int(share * cells)
    return line(("━" * filled, f"bold {BLUISH_GREEN}"), ("─" * (cells - filled), DIM), f" {share:4.0%}")


def _elapsed(snapshot: SanctumSnapshot, now: float) -> float:
    """Seconds from the run's start to now, or to its last event where it has ended; negative while unknown."""
    if snapshot.started_at is None:
        return -1.0
    last = snapshot.status.last_event_time if snapshot.status else None
    return (now if is_live(snapshot) or last is None else last) - snapshot.started_at


def is_live(snapshot: SanctumSnapshot) -> bool:
    """Whether a trainer is at work."""
    return snapshot.status is not None and snapshot.status.state is RunState.LIVE


def quiet_for(snapshot: SanctumSnapshot, now: float) -> float:
    """Seconds since the journal's newest event; 0.0 where there is none, or its time cannot be."""
    last = snapshot.status.last_event_time if snapshot.status else None
    quiet = 0.0 if last is None else now - last
    return quiet if 0 < quiet < 1e8 else 0.0


def _state_line(
    snapshot: SanctumSnapshot,
    width: int,
    states: tuple[Line, Line],
    counts: Counter[Kind],
    pace: float | None,
    trouble: bool,
) -> Line:
    """The journal's state, the pace and the sizes; what is missing; at the right end what is wrong, glyph by glyph.

    Where there is no room for all of it, what is well goes first; the state, what was lost and what is wrong stay.
    """
    state, brief = states
    speed = line(f"{'--' if pace is None else compact(pace):>5} passes/s")
    alive = counts[Kind.LEARNING] + counts[Kind.BLENDING] + counts[Kind.FOSSILIZED]
    sizes = line(f"{counted(len(snapshot.envs), 'env')}  {counted(alive, 'seed')}")
    every, some, urgent, least = _losses(snapshot)
    kinds = _TROUBLE if trouble else ()
    wrong = spaced((_count(kind, counts[kind]) for kind in kinds), gap="  ")
    wrong_alone = spaced((_count(kind, counts[kind]) for kind in kinds if counts[kind]), gap="  ")
    variants = [
        (spaced(part for part in parts if part), right)
        for parts, right in (
            ((state, speed, sizes, every), wrong),
            ((state, speed, sizes, some), wrong),
            ((state, speed, sizes, urgent), wrong),
            ((state, sizes, urgent), wrong),
            ((state, urgent), wrong),
            ((state, urgent), wrong_alone),
            ((brief, urgent), wrong_alone),
            ((brief, least), wrong_alone),
            ((brief, least), ()),
        )
    ]
    fitting = (ends(left, line("  ", *right, " "), width) for left, right in variants if _room(left, right) <= width)
    return next(fitting, fit(variants[-1][0], width))


def _room(left: Line, right: Line) -> int:
    """The cells that the ends of a line take, with blanks between and behind them."""
    return width_of(left) + width_of(right) + 3


def _states(snapshot: SanctumSnapshot, now: float, lag: float, moment: int | None) -> tuple[Line, Line]:
    """How the journal is, in full and in brief; before it, where that is so, that what is shown is not of now."""
    style = f"bold reverse {SKY_BLUE}"
    full, brief = _journal_state(snapshot, now, lag)
    if moment is None:
        return full, brief
    return (
        spaced((line((f"▶ epoch {moment}, not now", style)), full), gap="  "),
        spaced((line((f"▶ epoch {moment}", style)), brief), gap="  "),
    )


def _count(kind: Kind, number: int) -> Line:
    return line((f"{kind.glyph} {number}", kind.style if number else DIM))


def _losses(snapshot: SanctumSnapshot) -> tuple[Line, Line, Line, Line]:
    """What of the run's telemetry is not here: in full, in brief, of these what is not zero, and their sum."""
    status = snapshot.status
    events, samples = (status.dropped_events, status.dropped_samples) if status else (0, 0)
    skipped = status.skipped if status else 0
    every = [(snapshot.gaps, "gaps"), (events, "dropped"), (samples, "samples dropped"), (skipped, "skipped")]
    every += [(snapshot.duplicates, "came twice")] if snapshot.duplicates else []  # nothing is lost by that
    brief = ((snapshot.gaps, "gaps"), (events + samples, "dropped"), (skipped, "skipped"))
    lost = sum(number for number, _ in brief)
    return _lost(every), _lost(brief), _lost(loss for loss in brief if loss[0]), _lost([(lost, "lost")] if lost else ())


def _lost(losses: Iterable[tuple[int, str]]) -> Line:
    """Zeros dim, so that each keeps its place."""
    return spaced(
        (line((f"{number} {word}", f"bold {ORANGE}" if number else DIM)) for number, word in losses), gap="  "
    )


def _journal_state(snapshot: SanctumSnapshot, now: float, lag: float) -> tuple[Line, Line]:
    """In full and in brief."""
    status = snapshot.status
    if status is None:
        return _both("○ opening", "", "", DIM)
    if status.state is RunState.LIVE:
        if lag > LAGGING:
            return _both("◐ ", "live, ", f"lagging by {lag:.0f} s", f"bold {ORANGE}")
        quiet = quiet_for(snapshot, now)
        if quiet > QUIET:
            return _both("● ", "live, ", f"quiet for {duration(quiet)}", f"bold {BLUISH_GREEN}")
        return _both("● live", "", "", f"bold {BLUISH_GREEN}")
    if status.state is RunState.COMPLETED:
        return _both("■ completed", "", "", f"bold {SKY_BLUE}")
    return _both("✕ trainer gone", " since", f" {clock(status.last_event_time, now)}", f"bold {VERMILLION}")


def _both(begin: str, dispensable: str, rest: str, style: str) -> tuple[Line, Line]:
    """A text with what can be left out of it, and without."""
    return line((begin + dispensable + rest, style)), line((begin + rest, style))
