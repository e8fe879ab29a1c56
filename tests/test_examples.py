"""The examples run as they stand, and say what they promise."""

from pathlib import Path

import pytest

from commands import run_script
from sapflow.telemetry.events import NonFiniteOrigin
from sapflow.telemetry.source import RunState, Source

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(name: str, cwd: Path) -> str:
    return run_script((EXAMPLES / name).read_text(encoding="utf-8"), cwd)


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tested] == []


def test_own_loop(tmp_path):
    shown = output_of("own_loop.py", tmp_path)
    assert "INPUT_DETACHED" in shown  # the first layer, which is fed plain data
    assert "runs/own-loop" in shown
    with Source(tmp_path / "runs" / "own-loop") as source:
        assert source.status().state is RunState.COMPLETED
        assert source.moment(0).payload.total_passes == 300


def test_lora_adapters_that_start_at_zero_raise_no_false_alarm(tmp_path):
    shown = output_of("lora.py", tmp_path)
    assert "false alarms: 0" in shown
    first, last = (float(part.split()[0]) for part in shown.split("gain of the first adapter: ")[1].split(", ")[:2])
    assert first < 0.1 * last


def test_a_planted_nan_is_named_with_its_module_pass_and_parameter(tmp_path):
    shown = output_of("planted_nan.py", tmp_path)
    assert "module '2', pass 30, parameter 'project.weight'" in shown
    with Source(tmp_path / "runs" / "planted-nan") as source:
        (found,) = [event.payload for event in source.read() if isinstance(event.payload, NonFiniteOrigin)]
    assert (found.slot_id, found.passes, found.parameter) == ("2", 30, "project.weight")


def test_a_seed_grows_in_a_model_of_one_s_own(tmp_path):
    shown = output_of("grow.py", tmp_path)
    stages = [line.split()[0] for line in shown.splitlines() if "gain" in line]
    assert list(dict.fromkeys(stages)) == ["DORMANT", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]
    grown, exported = shown.splitlines()[-2:]
    assert grown.split()[-2:] == exported.split(": ")[1].split(";")[0].split()  # the same accuracy
    assert float(grown.split()[-2]) > 90
    assert len((EXAMPLES / "grow.py").read_text(encoding="utf-8").splitlines()) <= 40
    with Source(tmp_path / "runs" / "grown") as source:
        assert source.status().state is RunState.COMPLETED


@pytest.mark.parametrize("name", ["own_loop.py", "lora.py", "planted_nan.py"])
def test_an_example_is_short_and_says_what_it_is_for(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 90
