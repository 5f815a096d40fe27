"""The notebook for a first run: executed as a newcomer would, and every cell shows what its text promises."""

import csv
import os
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers import environment
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
CODE = ["settings", "train", "metrics", "pictures", "photographs", "load", "map", "folder", "sweep", "comparison"]


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells of code by their id, in order."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder in which the notebook is executed."""
    return tmp_path_factory.mktemp("first_run")


@pytest.fixture(scope="module")
def executed(folder) -> dict[str, NotebookNode]:
    """Return the cells of code with their outputs, executed in `folder` by a kernel of this Python."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A folder of IPython's own: the user's settings and history take no part.
    client.execute(env=environment(PYTHONPATH=path, IPYTHONDIR=str(folder / ".ipython")))
    return code_cells(notebook)


def shown(cell: NotebookNode, kind: str) -> list[str]:
    """Return what a cell displays of a MIME type, such as "image/png"."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell: NotebookNode) -> str:
    """Return what a cell prints, without colours."""
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def table(markdown: str) -> list[list[str]]:
    """Return the cells of a Markdown table's headings and rows, without the line between them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_the_notebook_is_committed_without_outputs():
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert list(cells) == CODE
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells.values())


def test_no_cell_writes_on_stderr(executed):
    streams = {name: [o.name for o in cell.outputs if o.output_type == "stream"] for name, cell in executed.items()}
    assert "stderr" not in [stream for names in streams.values() for stream in names]
    assert [name for name, cell in executed.items() if "error:" in printed(cell).lower()] == []


def test_training_names_generated_data_and_the_detector(executed):
    lines = printed(executed["train"]).splitlines()
    assert lines[0].startswith("data     embedded carpet (generated, not a benchmark)")
    assert "detector runs/first/detector.pt" in [line.replace("\\", "/").rstrip() for line in lines]


def test_the_metrics_are_a_table_that_names_its_data(executed):
    (markdown,) = shown(executed["metrics"], "text/markdown")
    headings, *rows = table(markdown)
    assert headings == ["embedded carpet (generated, not a benchmark)", "value"]
    assert {"image AUROC", "pixel AUROC", "AUROC on synthetic defects"} <= {name for name, _ in rows}
    assert all(0 <= float(value) <= 1 for _, value in rows)
    assert float(dict(rows)["image AUROC"]) > 0.9


@pytest.mark.parametrize(("cell", "count"), [("pictures", 2), ("map", 1)])
def test_pictures_stand_in_the_notebook(executed, cell, count):
    pictures = shown(executed[cell], "image/png")
    assert len(pictures) == count
    for picture in pictures:
        pixels = np.asarray(Image.open(BytesIO(b64decode(picture))).convert("RGB"))
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 10


def test_the_detector_in_python_gives_the_commands_score(executed, folder):
    score, threshold = map(float, re.findall(r"\d+\.\d+", printed(executed["load"])))
    with (folder / "predictions" / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert score == pytest.approx(float(rows["hole_000.png"]["score"]), abs=0.006)
    assert threshold == pytest.approx(float(rows["hole_000.png"]["threshold"]), abs=0.006)
    assert score > threshold


def test_the_folders_scores_are_a_table(executed, folder):
    (markdown,) = shown(executed["folder"], "text/markdown")
    headings, *rows = table(markdown)
    assert headings[:2] == ["path", "score"]
    assert [row[0] for row in rows] == sorted(path.name for path in (folder / "photographs").iterdir())
    assert len(list((folder / "predictions" / "overlays").iterdir())) == len(rows) == 8


def test_the_sweep_shows_both_values(executed, folder):
    (markdown,) = shown(executed["comparison"], "text/markdown")
    headings, *rows = table(markdown)
    assert headings[:2] == ["dictionary.nonzeros", "image AUROC"]
    assert [row[0] for row in rows] == ["2", "8"]
    assert "2 of 2 jobs finished" in re.sub(r"\s+", " ", printed(executed["sweep"]))
    assert (folder / "runs" / "sweep" / "comparison.md").is_file()
