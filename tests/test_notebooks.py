"""The notebooks are valid, hold no outputs, and run from top to bottom."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import beit

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 1800  # for a cell, on a busy machine


def read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["codebook", "first_steps", "own_photos"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    source, given = str(Path(beit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, given])))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if (ROOT / "data").exists():  # CIFAR-10, if it was fetched
        (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"step \d+/\d+", printed), "progress is a line replaced in place"
    shown = json.dumps([output.get("data", {}) for output in outputs])
    assert re.search(r"step (\d+)/\1 ", shown)
    assert len(re.findall(r"image/png|<svg|<iframe", shown)) > 3
