"""A telemetry record as a page of Markdown, in its eight sections, and the index of all pages."""

from collections.abc import Iterable, Sequence

from sapflow.telemetry.record_sections import Display, Range, Reader, Timing
from sapflow.telemetry.records import CARD_FILE, SCHEMA_FILE, STATE_FILE, TEXT_FILE, Record, record_of

READERS: dict[Reader, str] = {
    "operator": "Training operator (real-time monitoring)",
    "developer": "Developer (debugging)",
    "researcher": "Researcher (analysis)",
    "automation": "Automated system (alerts/intervention)",
}
TIMINGS: dict[Timing, str] = {
    "real-time": "Real-time (every batch/epoch)",
    "periodic": "Periodic (every N episodes)",
    "on-demand": "On-demand (when investigating issues)",
    "post-hoc": "Post-hoc (offline analysis)",
}
STATE_CLASS = '''\
@dataclass
class SeedState:
    """State of a single seed slot."""
'''
HEALTH_CLASS = '''\
class GradientHealth:
    """What SeedState.health holds."""
'''
INDEX_HEAD = """\
# Telemetry Records

A record for every field of `SeedTelemetry`: what it means, where it comes from, where it is shown. These pages are
generated from `src/sapflow/telemetry/records.toml` by `scripts/record_pages.py`. *Tested* is computed by
`sapflow records verify`, never written by hand.
"""


def render(record: Record, tested: bool | None) -> str:
    """The record's page; `tested` is the verification's answer, None where it was not asked."""
    history = ((str(change.date), change.author, change.change) for change in record.history)
    sections = {
        "Identity": _identity(record),
        "Purpose": _purpose(record),
        "Data Specification": _data(record),
        "Data Flow": _flow(record),
        "Wiring Verification": _wiring(record),
        "Dependencies": _dependencies(record),
        "History": _table(("Date", "Author", "Change"), history),
        "Notes": _quote(record.notes),
    }
    numbered = (f"## {n}. {title}\n\n{body}" for n, (title, body) in enumerate(sections.items(), 1))
    return "\n\n---\n\n".join((_head(record, tested), *numbered)) + "\n"


def render_index(records: Iterable[Record]) -> str:
    """The page that lists all records, with a link to each."""
    rows = (
        (f"[{r.id}]({r.id}.md)", r.identity.name, f"`{r.field}`", r.identity.priority, r.purpose.question)
        for r in records
    )
    return f"{INDEX_HEAD}\n{_table(('Record', 'Name', 'Field', 'Priority', 'Question'), rows)}\n"


def _head(record: Record, tested: bool | None) -> str:
    status = record.status
    boxes = (
        ("Planned", status.planned), ("Wired", status.wired), ("Tested", bool(tested)), ("Verified", status.verified),
    )  # fmt: skip
    ticks = " ".join(f"`{_box(done)} {name}`" for name, done in boxes)
    head = f"# Telemetry Record: [{record.id}] {record.identity.name}\n\n> **Status:** {ticks}"
    if tested is None:
        head += f"\n>\n> *Tested* is computed, never written: `sapflow records verify {record.id}` runs the test."
    return head


def _identity(record: Record) -> str:
    identity = record.identity
    return _properties(
        (
            ("ID", f"`{identity.id}`"),
            ("Name", identity.name),
            ("Category", f"`{identity.category}`"),
            ("Priority", f"`{identity.priority}`"),
        ),
        first="Field",
    )


def _purpose(record: Record) -> str:
    purpose = record.purpose
    readers = "\n".join(f"- {_box(key in purpose.readers)} {label}" for key, label in READERS.items())
    timings = "\n".join(f"- {_box(key in purpose.timings)} {label}" for key, label in TIMINGS.items())
    return _parts(
        ("What question does this answer?", f'> "{purpose.question}"'),
        ("Who needs this information?", readers),
        ("When is this information needed?", timings),
    )


def _data(record: Record) -> str:
    data = record.data
    default = "required" if data.required else f"`{record.default_literal}`"
    table = _properties(
        (
            ("Type", f"`{data.type}`"),
            ("Units", data.units),
            ("Range", f"`{interval(data.range)}`" if data.range else data.allowed),
            ("Precision", _precision(record)),
            ("Default", f"{default} ({data.default_means})"),
        )
    )
    rows = ((t.context, t.condition, t.meaning) for t in data.thresholds)
    thresholds = _table(("Context", "Condition", "Meaning"), rows) if data.thresholds else "None."
    return _parts(
        ("Type and Format", table), ("Semantic Meaning", _quote(data.meaning)), ("Health Thresholds", thresholds)
    )


def _flow(record: Record) -> str:
    source = record.source
    emitter = _properties(
        (
            ("Origin", source.origin),
            ("File", f"`{STATE_FILE}`"),
            ("Class", "`SeedState`"),
            ("Field", f"`{record.state_field}: {record.data.type}`"),
        )
    )
    stages = (
        (f"**{n}. {stage.name}**", stage.mechanism, f"`{stage.file}`") for n, stage in enumerate(record.transport, 1)
    )
    schema = _properties(
        (
            ("Dataclass", "`SeedState` (Sanctum schema)"),
            ("Field", f"`{record.field}`"),
            ("Path from SanctumSnapshot", f"`{record.path}`"),
            ("Schema File", f"`{SCHEMA_FILE}`"),
            ("Default Value", f"`{record.default_literal}`"),
        )
    )
    return _parts(
        ("Source (Emitter)", f"{emitter}\n\n{_declaration(record)}"),
        ("Transport", f"{_table(('Stage', 'Mechanism', 'File'), stages)}\n\n{_arrows(record)}"),
        ("Schema Location", schema),
        ("Consumers (Display)", _consumers(record)),
    )


def _wiring(record: Record) -> str:
    checklist = "\n".join(f"- [x] **{check.name}** — {check.note}" for check in record.wiring)
    if not record.display.rules:
        return _parts(("Checklist", checklist))
    return _parts(("Checklist", checklist), ("Display Code", _display_code(record.display)))


def _dependencies(record: Record) -> str:
    upstream = ((d.name, d.type, d.notes) for d in record.upstream)
    downstream = ((d.name, d.type, d.notes) for d in record.downstream)
    return _parts(
        ("Upstream (this telemetry depends on)", _table(("Dependency", "Type", "Notes"), upstream)),
        ("Downstream (depends on this telemetry)", _table(("Dependent", "Type", "Notes"), downstream)),
    )


def interval(range_: Range) -> str:
    """A range in the notation of mathematics, such as [0.0, ∞)."""
    left = "[" if range_.lower_inclusive else "("
    right = "]" if range_.upper_inclusive else ")"
    return f"{left}{range_.lower}, {range_.upper}{right}".replace("inf", "∞")


def _precision(record: Record) -> str:
    data = record.data
    if data.precision is None:
        return "exact"
    places = "decimal place" if data.precision == 1 else "decimal places"
    return " ".join(filter(None, (str(data.precision), places, data.precision_note, "for display")))


def _declaration(record: Record) -> str:
    fields = (record, *map(record_of, record.source.beside))
    lines = "\n".join(f"    {field.declaration}" for field in fields)
    return _code(f"{HEALTH_CLASS if record.in_health else STATE_CLASS}{lines}", "python")


def _arrows(record: Record) -> str:
    field = record.field
    way = [
        f"[{record.source.emitter}]",
        "--computes-->",
        f"[SeedState.{record.state_field}]",
        "--EPOCH_COMPLETED event-->",
        f"[SeedTelemetry.{field}]",
        "--SanctumAggregator-->",
        f"[schema.SeedState.{field}]",
        "--SeedCard-->",
        f'["{record.display.text}"]',
    ]
    return _code("\n  ".join(way))


def _consumers(record: Record) -> str:
    usage = f'"{record.display.text}" {record.display.when}'.rstrip()
    return _table(("Widget", "File", "Usage"), [("EnvDetailScreen SeedCard", f"`{CARD_FILE}`", usage)])


def _display_code(display: Display) -> str:
    lines = [
        f"# The text that {TEXT_FILE} makes: the first condition that holds decides",
        f'text = Text("{display.label}")',
    ]
    for n, rule in enumerate(display.rules):
        condition = "else:" if rule.condition == "otherwise" else f"{'elif' if n else 'if'} {rule.condition}:"
        prefix = "f" if "{" in rule.text else ""
        lines += [condition, f'    text.append({prefix}"{rule.text}", style="{rule.style}")']
    return _code("\n".join(lines), "python")


def _box(done: bool) -> str:
    return "[x]" if done else "[ ]"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _code(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"


def _parts(*parts: tuple[str, str]) -> str:
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts)


def _properties(rows: Iterable[tuple[str, str]], first: str = "Property") -> str:
    return _table((first, "Value"), ((f"**{name}**", value) for name, value in rows))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["-" * len(name) for name in header], *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
