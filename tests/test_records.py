"""The telemetry records against the contract they describe, TELE-557 against the words it was given in."""

import math
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from rich.text import Text

from sapflow.cli.console import console
from sapflow.cli.records import list_records
from sapflow.errors import InputError
from sapflow.growth.slot import SeedState
from sapflow.telemetry.events import (
    HISTOGRAM_BINS,
    HISTOGRAM_HIGHEST_OCTAVE,
    HISTOGRAM_LOWEST_OCTAVE,
    SeedTelemetry,
)
from sapflow.telemetry.record_page import render, render_index
from sapflow.telemetry.record_sections import Range
from sapflow.telemetry.records import FIELDS, Record, all_records, record, record_of
from sapflow.telemetry.vocabulary import Measurement, SeedStage

PAGES = Path(__file__).parents[1] / "docs" / "records"
IDS = {
    "TELE-550": "slot_id", "TELE-551": "seed_id", "TELE-552": "blueprint_id", "TELE-553": "stage",
    "TELE-554": "epochs_in_stage", "TELE-555": "alpha", "TELE-556": "seed_params", "TELE-557": "grad_ratio",
    "TELE-558": "has_vanishing", "TELE-559": "has_exploding", "TELE-560": "accuracy_delta", "TELE-561": "measurement",
    "TELE-562": "measurement_reason", "TELE-563": "passes", "TELE-564": "non_finite_passes",
    "TELE-565": "entering_norm", "TELE-566": "leaving_norm", "TELE-567": "min_ratio", "TELE-568": "max_ratio",
    "TELE-569": "last_ratio", "TELE-570": "ratio_histogram", "TELE-571": "evidence",
    "TELE-572": "output_input_rms", "TELE-573": "parameter_liveness", "TELE-574": "masked_values", "TELE-575": "paused",
    "TELE-576": "fault",
}  # fmt: skip
SECTIONS = [
    "Identity", "Purpose", "Data Specification", "Data Flow", "Wiring Verification", "Dependencies", "History", "Notes",
]  # fmt: skip
BOXES = [
    "Emitter exists", "Transport works", "Schema field exists", "Default is correct", "Consumer reads it",
    "Display is correct",
]  # fmt: skip
DECLARED = {field.name: field for field in msgspec.structs.fields(SeedTelemetry)}

every_record = pytest.mark.parametrize("each", all_records(), ids=lambda each: each.id)


def annotation_of(field: str) -> str:
    hint = get_type_hints(SeedTelemetry)[field]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("sapflow.telemetry.vocabulary.", "")


# The records, the contract and the state it is filled from


def test_every_field_has_one_record_and_every_record_a_field() -> None:
    assert {each.id: each.field for each in all_records()} == IDS
    assert [each.id for each in all_records()] == sorted(IDS)
    assert sorted(IDS.values()) == sorted(FIELDS) == sorted(DECLARED)


@every_record
def test_type_and_default_are_those_of_the_contract(each: Record) -> None:
    declared = DECLARED[each.field]
    assert each.data.type == annotation_of(each.field)
    assert each.data.required == declared.required
    if not declared.required:
        assert each.data.default == declared.default
        assert isinstance(declared.default, type(each.data.default))
        names = {"SeedStage": SeedStage, "Measurement": Measurement}
        assert eval(each.default_literal, names) == declared.default


@every_record
def test_range_holds_the_default(each: Record) -> None:
    if {"int", "float"} & set(each.data.type.split(" | ")):
        assert each.data.range is not None
        assert each.data.default is None or each.data.default in each.data.range
    else:
        assert each.data.range is None
        assert each.data.allowed


@every_record
def test_what_is_shown_with_decimals_says_how_many(each: Record) -> None:
    assert (each.data.precision is not None) == ("float" in each.data.type or each.field == "seed_params")


@every_record
def test_path_starts_at_the_snapshot_and_ends_at_the_field(each: Record) -> None:
    assert each.path == f"snapshot.envs[env_id].seeds[slot_id].{IDS[each.id]}"


@every_record
def test_the_state_field_stands_in_the_state_with_the_same_default(each: Record) -> None:
    found = attrgetter(each.state_field)(SeedState("early"))
    assert found == ("early" if each.field == "slot_id" else each.data.default)


@every_record
def test_every_wire_is_there(each: Record) -> None:
    assert [check.name for check in each.wiring] == BOXES
    assert all(check.note for check in each.wiring)
    assert each.status.wired


@every_record
def test_companions_are_fields_too(each: Record) -> None:
    assert set(each.source.beside) <= set(FIELDS) - {each.field}


@pytest.mark.parametrize(("field", "members"), [("stage", SeedStage), ("measurement", Measurement)])
def test_enumerations_are_complete(field: str, members: Any) -> None:
    data = record_of(field).data
    assert re.findall(r"[A-Z_]{4,}", data.allowed) == [member.value for member in members]
    assert re.findall(r"- \*\*([A-Z_]+):\*\*", data.meaning) == [member.value for member in members]


def test_the_histogram_is_the_contract_s() -> None:
    histogram = record_of("ratio_histogram")
    assert f"{HISTOGRAM_BINS} counts" in histogram.data.allowed
    assert f"from −{-HISTOGRAM_LOWEST_OCTAVE} to {HISTOGRAM_HIGHEST_OCTAVE}" in histogram.notes


def test_ranges_know_their_ends() -> None:
    half_open = Range(lower=0.0, upper=1.0, upper_inclusive=False)
    assert [value in half_open for value in (-0.1, 0.0, 0.5, 1.0, math.nan)] == [False, True, True, False, False]
    ratio = record("TELE-557").data.range
    assert ratio is not None
    assert [value in ratio for value in (0.0, 1e300, math.inf, -1e-9)] == [True, True, False, False]


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        record("TELE-557").data.default = 1.0  # type: ignore[misc]


def test_tested_is_written_nowhere() -> None:
    assert not {"tested", "Tested"} & {*Record.__struct_fields__, *type(record("557").status).__struct_fields__}


# TELE-557, by the words of the record that the project began with


def test_tele_557_identity_and_purpose() -> None:
    each = record("TELE-557")
    assert (each.identity.name, each.identity.category, each.identity.priority) == (
        "Seed Grad Ratio", "seed", "P1-important",
    )  # fmt: skip
    assert each.purpose.question == "Is this seed's gradient flow healthy?"
    assert each.purpose.readers == ("operator", "developer", "researcher", "automation")
    assert each.purpose.timings == ("real-time",)
    assert (each.status.planned, each.status.wired, each.status.verified) == (True, True, True)


def test_tele_557_data() -> None:
    data = record("TELE-557").data
    assert (data.type, data.units, data.precision) == ("float", "ratio (dimensionless)", 2)
    assert data.default == 0.0
    assert data.default_means == "no gradient data"
    assert data.range == Range(lower=0.0, upper=math.inf, lower_inclusive=True, upper_inclusive=False)
    assert [msgspec.to_builtins(threshold) for threshold in data.thresholds] == [
        ["Any stage", "0.5 ≤ grad_ratio ≤ 2.0", "Healthy gradient flow"],
        ["Any stage", "grad_ratio < 0.5", "Vanishing risk"],
        ["Any stage", "grad_ratio > 2.0", "Exploding risk"],
    ]
    for line in (
        "**grad_ratio ≈ 1.0:** Healthy gradient flow",
        "**grad_ratio << 1.0:** Potential vanishing gradients (triggers has_vanishing flag)",
        "**grad_ratio >> 1.0:** Potential exploding gradients (triggers has_exploding flag)",
        "**grad_ratio = 0.0:** No gradient data available",
    ):
        assert line in data.meaning


def test_tele_557_band_is_the_one_of_its_thresholds() -> None:
    data = record("TELE-557").data
    assert data.band is not None
    assert (data.band.lower, data.band.upper) == (0.5, 2.0)
    conditions = [threshold.condition for threshold in data.thresholds]
    assert conditions == [
        f"{data.band.lower} ≤ grad_ratio ≤ {data.band.upper}",
        f"grad_ratio < {data.band.lower}",
        f"grad_ratio > {data.band.upper}",
    ]
    assert [each.id for each in all_records() if each.data.band] == ["TELE-557"]


def test_tele_557_flow() -> None:
    each = record("TELE-557")
    assert each.source.origin == "Gradient hook computation, computed per backward pass"
    assert [msgspec.to_builtins(stage) for stage in each.transport] == [
        ["Computation", "Gradient hooks compute ratio during backward", "gradients/gradient_monitor.py"],
        ["Storage", "SeedState.grad_ratio updated", "growth/slot.py"],
        ["Telemetry", "SeedTelemetry.grad_ratio field", "telemetry/events.py"],
        ["Schema", "SeedState.grad_ratio in Sanctum", "sanctum/schema.py"],
        ["Display", "EnvDetailScreen SeedCard", "sanctum/widgets/env_detail_screen.py"],
    ]
    assert each.path == "snapshot.envs[env_id].seeds[slot_id].grad_ratio"


def test_tele_557_dependencies_and_history() -> None:
    each = record("TELE-557")
    assert [row.name for row in each.upstream] == ["Gradient hooks", "Backward pass", "has_vanishing/has_exploding"]
    assert [(row.name, row.notes) for row in each.downstream] == [
        ("SeedCard display", "Shows gradient health status"),
        ("Prune decisions", "Unhealthy gradients may trigger prune"),
        ("Training stability alerts", "Flags gradient issues early"),
    ]
    first = each.history[0]
    assert (str(first.date), first.author) == ("2026-01-03", "Telemetry Audit")
    assert first.change == "Initial creation for EnvDetailScreen SeedCard"


@pytest.mark.parametrize(
    ("seed", "text", "style"),
    [
        ({"has_exploding": True, "has_vanishing": True, "grad_ratio": 3.0}, "▲ EXPLODING", "bold red"),
        ({"has_exploding": True}, "▲ EXPLODING", "bold red"),
        ({"has_vanishing": True, "grad_ratio": 0.1}, "▼ VANISHING", "bold yellow"),
        ({"grad_ratio": 0.85}, "ratio=0.85", "green"),
        ({"grad_ratio": 1.0 / 3.0 + 0.5}, "ratio=0.83", "green"),
        ({}, "OK", "green"),
    ],
)
def test_tele_557_page_shows_code_that_draws_the_grad_line(seed: dict[str, Any], text: str, style: str) -> None:
    page = (PAGES / "TELE-557.md").read_text(encoding="utf-8")
    code = page.split("### Display Code\n\n```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"Text": Text, "seed": SeedTelemetry(slot_id="early", **seed)}
    exec(code, scope)  # the page's own code is what is tested
    assert scope["text"].plain == f"Grad: {text}"
    assert [str(span.style) for span in scope["text"].spans] == [style]


def test_tele_557_rules_fill_in_the_ratio() -> None:
    display = record("TELE-557").display
    assert display is not None
    seed = SeedTelemetry(slot_id="early", grad_ratio=0.85)
    assert [(rule.text.format(seed=seed), rule.style) for rule in display.rules] == [
        ("▲ EXPLODING", "bold red"), ("▼ VANISHING", "bold yellow"), ("ratio=0.85", "green"), ("OK", "green"),
    ]  # fmt: skip


def test_tele_557_says_which_way_round_the_ratio_is() -> None:
    notes = record("TELE-557").notes
    assert "‖grad_input‖ / ‖grad_output‖" in notes
    assert "relative tolerance of 1e-6" in notes
    assert "dead seed" in notes


# The pages


@every_record
def test_page_has_the_eight_sections(each: Record) -> None:
    page = render(each, tested=None)
    assert re.findall(r"^## (\d)\. (.+)$", page, re.MULTILINE) == [(str(n + 1), t) for n, t in enumerate(SECTIONS)]
    assert len(re.findall(r"^- \[[x ]\] \*\*", page, re.MULTILINE)) == len(BOXES)
    assert each.purpose.question in page
    assert each.path in page
    assert not re.search(r"esper|/home/|\blines? \d", page)


@pytest.mark.parametrize(("tested", "box"), [(True, "`[x] Tested`"), (False, "`[ ] Tested`"), (None, "`[ ] Tested`")])
def test_the_tested_box_is_what_the_verification_found(tested: bool | None, box: str) -> None:
    page = render(record("TELE-557"), tested)
    assert box in page
    assert ("sapflow records verify TELE-557" in page) is (tested is None)


@every_record
def test_committed_page_is_in_step(each: Record) -> None:
    committed = (PAGES / f"{each.id}.md").read_text(encoding="utf-8")
    assert committed in {render(each, tested) for tested in (True, False, None)}


def test_index_is_in_step_and_no_page_is_left_over() -> None:
    assert (PAGES / "README.md").read_text(encoding="utf-8") == render_index(all_records())
    assert {page.name for page in PAGES.iterdir()} == {f"{each.id}.md" for each in all_records()} | {"README.md"}


def test_tables_are_whole() -> None:
    """A cell with a bar in it would break its row."""
    for page in PAGES.iterdir():
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, (page.name, table)


# Looking records up


@pytest.mark.parametrize("asked", ["TELE-557", "tele-557", "557", " Tele-557 "])
def test_a_record_is_found_by_any_way_of_writing_its_id(asked: str) -> None:
    assert record(asked).field == "grad_ratio"


def test_a_record_is_found_by_its_field() -> None:
    assert record_of("grad_ratio").id == "TELE-557"


@pytest.mark.parametrize(
    ("look_up", "asked", "suggestion"),
    [(record, "TELE-5557", "TELE-557"), (record_of, "grad_ration", "grad_ratio"), (record, "gradient", "records")],
)
def test_an_unknown_record_is_named_with_what_may_have_been_meant(look_up: Any, asked: str, suggestion: str) -> None:
    with pytest.raises(InputError) as caught:
        look_up(asked)
    line = str(caught.value)
    assert asked.upper() in line.upper()
    assert suggestion in line
    assert "`sapflow records`" in line
    assert "\n" not in line


def test_the_list_has_every_type_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)
    with console.capture() as listed:
        list_records()
    assert [each.id for each in all_records() if each.data.type not in listed.get()] == []


def test_records_are_read_without_torch_or_textual() -> None:
    code = (
        "import sys, sapflow.telemetry.records as r, sapflow.telemetry.record_page as p\n"
        "p.render(r.record('557'), None)\n"
        "print(sorted({'torch', 'textual', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
