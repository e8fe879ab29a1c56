"""The parts of a seed's own screen: its head, its history in charts, its spread, and what became of it."""

from collections.abc import Sequence

from sapflow.sanctum.alert_history import AlertLife, alert_lives
from sapflow.sanctum.alert_panels import alert_details
from sapflow.sanctum.glyphs import CONDITION_GLYPHS, CONDITION_STYLES, EVENT_MARKS, STAGE_GLYPHS, STAGE_STYLES
from sapflow.sanctum.log import log_line
from sapflow.sanctum.numbers import clock, ratio
from sapflow.sanctum.schema import LogLine, SeedState
from sapflow.sanctum.slot_charts import (
    frame_of,
    life_lines,
    norm_chart,
    norm_legend,
    ratio_chart,
    seed_names,
    spread_lines,
)
from sapflow.sanctum.slot_history import SlotHistory
from sapflow.sanctum.spans import DIM, Line, clean, ends, labelled, line, slot_name, spaced
from sapflow.telemetry.events import Alert, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement

ROWS_FOR_BOTH = 20  # lines from which on the norms have a chart of their own below that of the ratio
LIFE_ROWS = 4


def title_line(title: str, width: int, note: str = "") -> Line:
    """The rule above a part of a screen."""
    return line((f"─ {title} ", DIM), (note, DIM), ("─" * max(width - len(title) - len(note) - 3, 0), DIM))


def slot_line(env_id: int, seed: SeedState, window: str, width: int) -> Line:
    """Which seed it is, how it stands now, and which epochs are shown."""
    condition, measured = seed.condition, seed.measurement is Measurement.MEASURED
    parts = (
        line((f"env {env_id:02} › {slot_name(seed.slot_id, 30)}", "bold")),
        line((f"{STAGE_GLYPHS[seed.stage]} {seed.stage}", STAGE_STYLES[seed.stage])),
        line((clean(seed.blueprint_id, 30) or "--", "bold"), (f" {clean(seed.seed_id, 30)}", DIM)),
        line(
            (
                f"{CONDITION_GLYPHS[condition]} {ratio(seed.grad_ratio) if measured else '--'}",
                CONDITION_STYLES[condition],
            )
        ),
    )
    return ends(spaced(parts), line((f"  {window} ", DIM)), width)


def both_fit(height: int) -> bool:
    """Whether the charts of the ratio and of the norms both have room."""
    return height >= ROWS_FOR_BOTH


def history_lines(history: SlotHistory, width: int, height: int, norms: bool) -> list[Line]:
    """The charts of the ratio and of the norms with the slot's life below; where only one has room, as `norms` says."""
    both = both_fit(height)
    rows = max(height - LIFE_ROWS - 1 - both, 3)
    upper = rows * 2 // 3 if both else rows
    frame = frame_of(history, width, upper)
    note = "" if history.whole else "(the journal is being read) "
    ratios = [title_line("ratio of each pass, and of epochs", width, note), *ratio_chart(history, frame, upper)]
    flows = [_norm_title(history, width), *norm_chart(history, frame, rows - upper if both else rows)]
    life = [seed_names(history, frame), *life_lines(history, frame)]
    if both:
        return [*ratios, *life, *flows]
    return [*(flows if norms else ratios), *life]


def _norm_title(history: SlotHistory, width: int) -> Line:
    legend = norm_legend(history)
    used = sum(len(text) for text, _ in legend)
    return line(("─ ", DIM), *legend, (" " + "─" * max(width - used - 3, 0), DIM))


def spread_panel(history: SlotHistory, seed: SeedState, width: int, height: int) -> list[Line]:
    """The distribution of the ratios of single passes: of the seed's epochs that are shown, and of the running one."""
    seeds: list[SeedTelemetry] = [past for _, past in history.epochs if past.seed_id == seed.seed_id]
    done = history.epochs[-1][0] if history.epochs else 0
    if seed.newest_sample[0] > done:
        seeds.append(seed)
    return [title_line("spread of the passes", width), *spread_lines(seeds, width, height - 1)]


def story_lines(env_id: int, history: SlotHistory, open_now: Sequence[Alert], width: int) -> list[Line]:
    """Every alert of the slot with its evidence, the open ones first; then what happened, the newest first."""
    lives: list[AlertLife] = alert_lives(history.turns, [(env_id, alert) for alert in open_now])
    drawn: list[Line] = []
    for life in lives:
        drawn += [title_line("alert", width, "open " if life.is_open else "closed "), *alert_details(life, width)]
    entries = [entry for turn in history.turns if (entry := log_line(turn)) is not None]
    told = [part for entry in reversed(entries) for part in _entry(entry, width)]
    return [*drawn, title_line("its life", width), *(told or [line(("nothing yet", DIM))])]


def _entry(entry: LogLine, width: int) -> list[Line]:
    """An entry of the log where the env and the slot are known anyhow, its words in full."""
    mark, style = EVENT_MARKS.get(entry.kind, ("·", DIM))
    when = f"{clock(entry.time)}  "
    words = "  ".join(clean(part, 500) for part in entry.parts)
    first, *rest = labelled((f"{when}{mark} ", DIM), words, "", width)
    return [line((when, DIM), (f"{mark} ", style), *first[1:]), *rest]
