"""The notebook runs from its first cell to its last, and its results are what the text says."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/fine_tuning.ipynb"


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own libraries
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    folder = tmp_path / "outputs/notebook/finetuned"
    assert (folder / "checkpoint_best.pt").exists() and (folder / "curves.png").exists()
    results = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert any("reason='max_steps'" in text for text in results)
    assert any("'f1_macro'" in text for text in results)
    assert "motion_" in results[-1]
