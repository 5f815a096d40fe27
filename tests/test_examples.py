"""The notebooks: executed as a newcomer would, one after the other in one kernel, and every cell shows what its text
promises."""

import json
import os
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers import environment, read_rows
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("first_run", "own_photographs", "compare_methods", "deploy")


def read(name: str) -> NotebookNode:
    """Return a notebook."""
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells of code by their id, in order."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder in which the notebooks are executed, one folder each."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def kernel(folder):
    """One kernel of this Python for all notebooks: most of a small notebook's time is that of its imports."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    manager = KernelManager(kernel_name="python3")
    # A folder of IPython's own: the user's settings and history take no part.
    manager.start_kernel(env=environment(PYTHONPATH=path, IPYTHONDIR=str(folder / ".ipython")), cwd=str(folder))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def executed(folder, kernel):
    """Return a function of a notebook's name: its cells of code with their outputs, executed once in `folder`/name."""
    found: dict[str, dict[str, NotebookNode]] = {}

    def execute(name: str) -> dict[str, NotebookNode]:
        if name not in found:
            (folder / name).mkdir()
            notebook = read(name)
            start = nbformat.v4.new_code_cell(f"%reset -f\nimport os\nos.chdir({str(folder / name)!r})", id="start")
            notebook.cells.insert(0, start)
            client = NotebookClient(notebook, timeout=300, km=kernel)
            client.execute()
            client.kc.stop_channels()  # else it warns when it is collected, in some other test's output
            found[name] = code_cells(notebook)
            del found[name]["start"]
        return found[name]

    return execute


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


def pictures(cell: NotebookNode) -> list[np.ndarray]:
    """Return the pictures that a cell displays, (H, W, 3)."""
    found = [content for kind in ("image/png", "image/jpeg") for content in shown(cell, kind)]
    return [np.asarray(Image.open(BytesIO(b64decode(content))).convert("RGB")) for content in found]


def test_all_notebooks_are_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name):
    cells = code_cells(read(name))
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells.values())
    assert all(re.fullmatch(r"[a-z-]+", cell) for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_writes_on_stderr(executed, name):
    cells = executed(name)
    streams = {name: [o.name for o in cell.outputs if o.output_type == "stream"] for name, cell in cells.items()}
    assert "stderr" not in [stream for names in streams.values() for stream in names]
    assert [name for name, cell in cells.items() if "error:" in printed(cell).lower()] == []


@pytest.mark.parametrize(
    ("name", "cell", "count"),
    [
        ("first_run", "pictures", 2),
        ("first_run", "result", 1),
        ("own_photographs", "defects", 2),
        ("compare_methods", "chart", 1),
    ],
)
def test_pictures_stand_in_the_notebook(executed, name, cell, count):
    found = pictures(executed(name)[cell])
    assert len(found) == count
    assert all(min(picture.shape[:2]) > 180 and picture.std() > 10 for picture in found)


def test_training_names_generated_data_and_the_detector(executed):
    lines = printed(executed("first_run")["train"]).splitlines()
    assert lines[0].startswith("data     embedded carpet (generated, not a benchmark)")
    assert "detector runs/first/detector.pt" in [line.replace("\\", "/").rstrip() for line in lines]


def test_the_metrics_are_a_table_that_names_its_data(executed):
    (markdown,) = shown(executed("first_run")["metrics"], "text/markdown")
    headings, *rows = table(markdown)
    assert headings == ["embedded carpet (generated, not a benchmark)", "value"]
    assert {"image AUROC", "pixel AUROC", "AUROC on synthetic defects"} <= {name for name, _ in rows}
    assert all(0 <= float(value) <= 1 for _, value in rows)
    assert float(dict(rows)["image AUROC"]) > 0.9


def test_results_are_a_table_and_the_files_of_predict(executed, folder):
    cells = executed("first_run")
    (html,) = shown(cells["results"], "text/html")
    folder = folder / "first_run"
    names = sorted(path.name for path in (folder / "photographs").iterdir())
    assert re.findall(r"<td>(\w+\.png)</td>", html) == names and len(names) == 8
    rows = {row["path"]: row for row in read_rows(folder / "predictions" / "scores.csv")}
    name, score, threshold = re.search(
        r"(\S+) is anomalous: score (\S+), threshold (\S+)", printed(cells["regions"])
    ).groups()
    assert float(score) == pytest.approx(float(rows[name]["score"]), abs=0.006)
    assert float(threshold) == pytest.approx(float(rows[name]["threshold"]), abs=0.006) and float(score) > float(
        threshold
    )
    assert re.search(r"mask \(256, 256\), anomaly map \(128, 128\)", printed(cells["regions"]))
    assert len(list((folder / "predictions" / "overlays").iterdir())) == 8
    assert printed(cells["save"]) == "True\n"


def test_own_photographs_get_a_card_a_threshold_and_a_warning(executed):
    cells = executed("own_photographs")
    (card,) = shown(cells["card"], "text/markdown")
    assert card.startswith("# Model card: padim on folder my\\_photographs") and "30 photographs" in card
    found = re.findall(r"threshold (\S+), (\d+) of 6", printed(cells["threshold"]))
    thresholds, alarms = [float(t) for t, _ in found], [int(n) for _, n in found]
    assert len(found) == 3 and thresholds == sorted(thresholds, reverse=True) and alarms == sorted(alarms)
    assert "brightness" in printed(cells["strange"])


def test_methods_are_compared_in_a_loop_and_by_a_sweep(executed, folder):
    cells = executed("compare_methods")
    (markdown,) = shown(cells["loop"], "text/markdown")
    assert [row[0] for row in table(markdown)] == ["method", "padim", "one_nn"]
    (markdown,) = shown(cells["comparison"], "text/markdown")
    headings, *rows = table(markdown)
    assert headings[:2] == ["method.channels", "image AUROC"]
    assert [row[0] for row in rows] == ["25", "100"]
    assert "2 of 2 jobs finished" in re.sub(r"\s+", " ", printed(cells["sweep"]))
    assert (folder / "compare_methods" / "runs" / "sweep" / "comparison.md").is_file()


def test_a_deployed_detector_gives_json_tensors_and_a_graph(executed):
    cells = executed("deploy")
    results = [json.loads(line) for line in printed(cells["files"]).splitlines()]
    assert len(results) == 4 and all(result["label"] in ("normal", "anomalous") for result in results)
    assert printed(cells["images"]).startswith("(4, 3, 96, 96) torch.uint8 (4, 96, 96)")
    assert float(re.search(r"by at most (\S+)", printed(cells["run"]))[1]) < 1e-3
