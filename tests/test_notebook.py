"""The example notebook runs from its first cell to its last, and shows figures."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "examples" / "history.ipynb"


def test_the_notebook_goes_from_a_run_to_figures(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPFLOW_RUN", str(trained))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    shown = ["".join(str(each.get("data", each.get("text", ""))) for each in found) for found in outputs.values()]
    assert "RunSummary(run_id=" in shown[0]
    assert "'died_of': 'dying seed'" in shown[1]
    assert "outside" in shown[2]
    pictures = [each for found in outputs.values() for each in found if "image/png" in each.get("data", {})]
    assert len(pictures) == 2
    assert "the shaded band is healthy" in shown[4]


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert NOTEBOOK.stat().st_size < 10_000
