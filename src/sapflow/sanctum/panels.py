"""How a run and its envs look: the header, the cards of the overview, the events log; lines of plain spans."""

from collections import Counter
from collections.abc import Iterable

from rich.cells import cell_len

from sapflow.sanctum.formatting import seed_row
from sapflow.sanctum.glyphs import (
    BLUISH_GREEN,
    CONDITION_GLYPHS,
    CONDITION_STYLES,
    EVENT_MARKS,
    ORANGE,
    SKY_BLUE,
    VERMILLION,
)
from sapflow.sanctum.numbers import clock, compact, duration, humanised
from sapflow.sanctum.plots import sparkline
from sapflow.sanctum.schema import Condition, EnvState, EnvStatus, LogLine, SanctumSnapshot
from sapflow.sanctum.spans import (
    DIM,
    Line,
    Span,
    box,
    clean,
    ends,
    first_that_fits,
    fit,
    line,
    padded,
    spaced,
    width_of,
)
from sapflow.telemetry.source import RunState, RunStatus
from sapflow.telemetry.vocabulary import Severity
from sapflow.telemetry.wording import describe_alert

_SLOT_WIDTH = 12
_ROW_WITHOUT_SLOT = 22  # stage, a blueprint of some length, gradient flow and ratio


def header_lines(snapshot: SanctumSnapshot, now: float, notice: str, width: int) -> list[Line]:
    """Which run and how far; how its seeds are; how its journal is; and, where there is one, the notice."""
    lines = [_run_line(snapshot, now, width), _census_line(snapshot, width), _journal_line(snapshot, width)]
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
    how_far = line(_of_epochs(epoch, epochs))
    # What says the least goes first where there is no room: the run's name, then times; the task and the epoch stay.
    room = width - width_of(task)
    progress = first_that_fits(
        room - 3,
        [
            spaced((part for part in parts if part), gap="  ")
            for parts in ((how_far, bar, times), (how_far, bar, line((time_left, DIM))), (how_far, bar), (how_far,))
        ],
    )
    return ends((*task, *run), line("  ", *progress, " "), width)


def _of_epochs(epoch: int, epochs: int) -> str:
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


def _census_line(snapshot: SanctumSnapshot, width: int) -> Line:
    envs = snapshot.envs.values()
    seeds = [seed for env in envs for seed in env.seeds.values()]
    count = Counter(seed.condition for seed in seeds)
    alive = sum(seed.stage.alive for seed in seeds)
    sizes = line(f"{_counted(len(snapshot.envs), 'env')}  {_counted(alive, 'seed')}".ljust(19))
    states = (
        (Condition.EXPLODING, count[Condition.EXPLODING], "exploding"),
        (Condition.VANISHING, count[Condition.VANISHING], "vanishing"),
        (Condition.NON_FINITE, count[Condition.NON_FINITE], "non-finite"),
        (Condition.UNMEASURED, count[Condition.UNMEASURED], "unmeasured"),
        (Condition.ALERTED, sum(len(env.open_alerts) for env in envs), "alerts"),
    )
    words = spaced((sizes, *(_count(condition, number, f" {word}") for condition, number, word in states)), gap="  ")
    glyphs = spaced((sizes, *(_count(condition, number, "") for condition, number, _ in states)), gap="  ")
    return first_that_fits(width, (words, glyphs))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _count(condition: Condition, number: int, word: str) -> Line:
    return line((f"{CONDITION_GLYPHS[condition]} {number:>2}{word}", CONDITION_STYLES[condition] if number else DIM))


def _journal_line(snapshot: SanctumSnapshot, width: int) -> Line:
    status = snapshot.status
    events, samples = (status.dropped_events, status.dropped_samples) if status else (0, 0)
    skipped = status.skipped if status else 0
    every = ((snapshot.gaps, "gaps"), (events, "dropped"), (samples, "samples dropped"), (skipped, "skipped"))
    brief = ((snapshot.gaps, "gaps"), (events + samples, "dropped"), (skipped, "skipped"))
    urgent = tuple(loss for loss in brief if loss[0])
    state = (_journal_state(status),)
    return first_that_fits(width, [spaced((state, _losses(losses))) for losses in (every, brief, urgent)])


def _losses(losses: Iterable[tuple[int, str]]) -> Line:
    """What of the run's telemetry is not here, a number each; zeros dim, so that each keeps its place."""
    return spaced(
        (line((f"{number} {word}", f"bold {ORANGE}" if number else DIM)) for number, word in losses), gap="  "
    )


def _journal_state(status: RunStatus | None) -> Span:
    if status is None:
        return ("○ opening", DIM)
    if status.state is RunState.LIVE:
        return ("● live", f"bold {BLUISH_GREEN}")
    if status.state is RunState.COMPLETED:
        return ("■ completed", f"bold {SKY_BLUE}")
    since = clock(status.last_event_time)
    return (f"✕ ended without completion since {since} (trainer gone)", f"bold {VERMILLION}")


def env_card(env: EnvState, width: int, rows: int, focused: bool = False) -> list[Line]:
    """An env of the overview: rows + 3 lines of `width` cells, a row for each slot, the rest blank."""
    condition = env.condition
    inner = width - 3
    longest = max((cell_len(slot_id) for slot_id in env.seeds), default=0)
    slot_width = min(longest, max(inner - _ROW_WITHOUT_SLOT, 8))
    slots = [seed_row(seed, inner, slot_width) for seed in env.seeds.values()]
    body = [_learning_line(env, inner), *slots, *[()] * (rows - len(slots))]
    style = CONDITION_STYLES[condition] if condition > Condition.HEALTHY else DIM
    title = line((f"env {env.env_id:02}", "bold"))
    mark = line((CONDITION_GLYPHS[condition], CONDITION_STYLES[condition])) if condition else ()
    return box(title, mark, body, width, "bold" if focused else style, _env_foot(env, width - 6), heavy=focused)


def _learning_line(env: EnvState, width: int) -> Line:
    left = line(f"acc {compact(env.accuracy) if env.accuracy is not None else '--':>5} ")
    right = line(" loss ", f"{compact(env.validation_loss) if env.validation_loss is not None else '--':>6} ")
    room = width - width_of(left) - width_of(right)
    return line(*left, (sparkline(env.accuracy_history, room), SKY_BLUE), *right)


def _env_foot(env: EnvState, width: int) -> Line:
    if env.status is EnvStatus.FAILED:
        return line((clean(f"failed: {env.error}", width), f"bold {VERMILLION}"))
    status = "" if env.status is EnvStatus.TRAINING else f" {env.status.lower()}"
    return line((clean(f"{_of_epochs(env.epoch, env.epochs)}{status}", width), DIM))


def env_line(env: EnvState, width: int) -> Line:
    """The head of an env's own screen: everything that is said of the env as a whole."""
    accuracy = "--" if env.accuracy is None else f"{compact(env.accuracy)} %"
    condition = env.condition
    known = (
        line((f"env {env.env_id:02} {CONDITION_GLYPHS[condition]}", f"bold {CONDITION_STYLES[condition]}")),
        line(f"acc {accuracy} ", (sparkline(env.accuracy_history, 12).strip(), SKY_BLUE)),
        line(
            f"loss {_number(env.train_loss)} / {_number(env.validation_loss)} ",
            (sparkline(env.loss_history, 12).strip(), SKY_BLUE),
        ),
        _env_foot(env, 60),
        line((f"{clean(env.host, 30)}  {humanised(env.host_params)} params", DIM)),
        line(
            (f"{env.totals.germinated} germinated  {env.totals.pruned} pruned  {env.totals.fossilized} fossilized", DIM)
        ),
        line((_extra_work(env), DIM)),
    )
    return ends(spaced(known), line(("  esc back ", DIM)), width)


def _extra_work(env: EnvState) -> str:
    """What growing costs: shadow forwards for each measured pass, and graphs that were compiled."""
    shadows = f"{env.totals.shadows / env.totals.passes:.2g} shadows a pass" if env.totals.passes else ""
    return shadows + (f"  {env.totals.recompiles} graphs compiled" if env.totals.recompiles else "")


def _number(value: float | None) -> str:
    return "--" if value is None else compact(value)


def alert_lines(env: EnvState, width: int) -> list[Line]:
    """The env's open alerts, the newest first."""
    return [
        fit(
            line(
                (f"{'open':<9} ⚑ ", CONDITION_STYLES[Condition.ALERTED]),
                (f"{padded(alert.slot_id, _SLOT_WIDTH)} ", "bold"),
                (_joined(describe_alert(alert)), _SEVERITY_STYLES[alert.severity]),
            ),
            width,
        )
        for alert in reversed(env.open_alerts)
    ]


_SEVERITY_STYLES = {Severity.WARNING: ORANGE, Severity.CRITICAL: f"bold {VERMILLION}"}


def log_lines(log: Iterable[LogLine], width: int) -> list[Line]:
    """Entries of the events log, the newest first."""
    return [fit(_log_line(entry), width) for entry in reversed(tuple(log))]


def _log_line(entry: LogLine) -> Line:
    mark, style = EVENT_MARKS.get(entry.kind, ("·", DIM))
    place = "run   " if entry.env_id is None else f"env {entry.env_id:02}"
    severity = _SEVERITY_STYLES[entry.severity] if entry.severity else ""
    return line(
        (f"{clock(entry.time)}  ", DIM),
        (f"{mark} ", style),
        (f"{place} ", "bold"),
        f"{padded(entry.slot_id, _SLOT_WIDTH)} ",
        (_joined(entry.parts), severity),
    )


def _joined(parts: Iterable[str]) -> str:
    return "  ".join(clean(part, 200) for part in parts if part)
