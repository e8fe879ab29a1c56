"""What an import costs: `import sapflow` loads nothing heavy, and readers never need torch."""

import subprocess
import sys

import pytest

import sapflow


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_sapflow_loads_nothing_that_is_not_the_standard_library():
    loaded = {name.partition(".")[0] for name in modules_after("import sapflow")}
    before = {name.partition(".")[0] for name in modules_after("import importlib")}
    assert loaded - before - set(sys.stdlib_module_names) == {"sapflow"}


@pytest.mark.parametrize(
    "module",
    ["telemetry.source", "telemetry.journal", "telemetry.records", "health.policy", "health.rules",
     "sanctum.aggregator", "sanctum.app", "exporters.registry", "history.run", "history.query", "cli.follow",
     "cli.commands"],
)  # fmt: skip
def test_what_reads_and_judges_never_loads_torch(module):
    assert "torch" not in modules_after(f"import sapflow.{module}")


@pytest.mark.parametrize("module", ["telemetry.source", "sanctum.aggregator", "sanctum.formatting", "training.trainer"])
def test_textual_stays_in_the_app(module):
    assert "textual" not in modules_after(f"import sapflow.{module}")


def test_the_public_names_are_there_and_others_are_not():
    for name in sapflow.__all__:
        assert getattr(sapflow, name)
        assert name in dir(sapflow)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        sapflow.nothing_like_this  # noqa: B018
