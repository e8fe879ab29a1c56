"""The head of every screen: which run and how far, how its journal is, and what is wrong at a glance."""

from collections import Counter
from collections.abc import Iterable

from sapflow.sanctum.census import Kind
from sapflow.sanctum.glyphs import BLUISH_GREEN, ORANGE, SKY_BLUE, VERMILLION
from sapflow.sanctum.numbers import clock, compact, duration
from sapflow.sanctum.schema import EnvStatus, SanctumSnapshot
from sapflow.sanctum.spans import DIM, Line, clean, ends, first_that_fits, fit, line, spaced, width_of
from sapflow.telemetry.source import RunState

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
) -> list[Line]:
    """Which run and how far; how its journal and its seeds are; and, where there is one, the notice.

    `now` in Unix seconds; `counts` of the whole run; `pace` in passes a second; `lag` in seconds from the newest event
    that was read to the newest that the journal has; `moment` is the epoch that is shown, None where that is now.
    """
    lines = [
        _run_line(snapshot, now, width),
        _state_line(snapshot, width, _state(snapshot, now, lag, moment), counts or Counter(), pace),
    ]
    if notice:
        lines.append(line((f"⚑ {clean(notice, 500)}", f"bold {ORANGE}")))
    return [fit(drawn, width) for drawn in lines]


def _run_line(snapshot: SanctumSnapshot, now: float, width: int) -> Line:
    envs = snapshot.envs.values()
    done = sum(env.epoch for env in envs)
    asked = max(snapshot.expected_envs, len(envs)) * snapshot.expected_epochs or sum(env.epochs for env in envs)
    share = min(max(done / asked, 0.0), 1.0) if asked else 0.0
    epochs = snapshot.expected_epochs or max((env.epochs for env in envs), default=0)
    epoch = min((env.epoch for env in envs if env.status is not EnvStatus.FAILED), default=0)
    elapsed = _elapsed(snapshot, now)
    left = elapsed * (1 - share) / share if share else -1.0
    task = line(("Sapflow ", f"bold {BLUISH_GREEN}"), (f" {clean(snapshot.task, 24)}", "bold"))
    run = line((f"  {clean(snapshot.run_id, 28)}", DIM))
    time_left = f"{duration(left)} left" if _is_live(snapshot) and asked else ""
    times = line((f"{duration(elapsed)} elapsed" + (f"  {time_left}" if time_left else ""), DIM))
    bar = _bar(share, min(width // 8, 40)) if asked else ()
    how_far = line(of_epochs(epoch, epochs))
    # What says the least goes first where there is no room: the run's name, then times; the task and the epoch stay.
    progress = first_that_fits(
        width - width_of(task) - 3,
        [
            spaced((part for part in parts if part), gap="  ")
            for parts in ((how_far, bar, times), (how_far, bar, line((time_left, DIM))), (how_far, bar), (how_far,))
        ],
    )
    return ends((*task, *run), line("  ", *progress, " "), width)


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
    return (now if _is_live(snapshot) or last is None else last) - snapshot.started_at


def _is_live(snapshot: SanctumSnapshot) -> bool:
    return snapshot.status is not None and snapshot.status.state is RunState.LIVE


def _state_line(snapshot: SanctumSnapshot, width: int, state: Line, counts: Counter[Kind], pace: float | None) -> Line:
    """The journal's state, the pace and the sizes; what is missing; at the right end what is wrong, glyph by glyph."""
    speed = line(f"{'--' if pace is None else compact(pace):>5} passes/s")
    alive = counts[Kind.LEARNING] + counts[Kind.BLENDING] + counts[Kind.FOSSILIZED]
    sizes = line(f"{_counted(len(snapshot.envs), 'env')}  {_counted(alive, 'seed')}")
    every, some, urgent = _losses(snapshot)
    trouble = spaced((_count(kind, counts[kind]) for kind in _TROUBLE), gap="  ")
    variants = [
        spaced(part for part in parts if part)
        for parts in (
            (state, speed, sizes, every),
            (state, speed, sizes, some),
            (state, speed, sizes, urgent),
            (state, sizes, urgent),
            (state, urgent),
            (state,),
        )
    ]
    room = width - width_of(trouble) - 3
    return ends(first_that_fits(room, variants), line("  ", *trouble, " "), width)


def _state(snapshot: SanctumSnapshot, now: float, lag: float, moment: int | None) -> Line:
    """How the journal is; before it, where that is so, that what is shown is not of now."""
    then = (line((f"▶ epoch {moment}, not now", f"bold reverse {SKY_BLUE}")),) if moment is not None else ()
    return spaced((*then, _journal_state(snapshot, now, lag)), gap="  ")


def _count(kind: Kind, number: int) -> Line:
    return line((f"{kind.glyph} {number}", kind.style if number else DIM))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _losses(snapshot: SanctumSnapshot) -> tuple[Line, Line, Line]:
    """What of the run's telemetry is not here, a number each: in full, in brief, and only what is not zero."""
    status = snapshot.status
    events, samples = (status.dropped_events, status.dropped_samples) if status else (0, 0)
    skipped = status.skipped if status else 0
    every = ((snapshot.gaps, "gaps"), (events, "dropped"), (samples, "samples dropped"), (skipped, "skipped"))
    brief = ((snapshot.gaps, "gaps"), (events + samples, "dropped"), (skipped, "skipped"))
    return _lost(every), _lost(brief), _lost(loss for loss in brief if loss[0])


def _lost(losses: Iterable[tuple[int, str]]) -> Line:
    """Zeros dim, so that each keeps its place."""
    return spaced(
        (line((f"{number} {word}", f"bold {ORANGE}" if number else DIM)) for number, word in losses), gap="  "
    )


def _journal_state(snapshot: SanctumSnapshot, now: float, lag: float) -> Line:
    status = snapshot.status
    if status is None:
        return line(("○ opening", DIM))
    last = status.last_event_time
    if status.state is RunState.LIVE:
        if lag > LAGGING:
            return line((f"◐ live, lagging by {lag:.0f} s", f"bold {ORANGE}"))
        quiet = f", quiet for {duration(now - last)}" if last is not None and QUIET < now - last < 1e8 else ""
        return line((f"● live{quiet}", f"bold {BLUISH_GREEN}"))
    if status.state is RunState.COMPLETED:
        return line(("■ completed", f"bold {SKY_BLUE}"))
    return line((f"✕ ended without completion since {clock(last)} (trainer gone)", f"bold {VERMILLION}"))
