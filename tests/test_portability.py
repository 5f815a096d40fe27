"""What Windows and macOS lack is hidden, and the commands still work; a line says what is left out."""

import ast
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import arguments, environment, few_photographs

import texture_ad

POSIX_ONLY = {
    "crypt",
    "fcntl",
    "grp",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
}

# Runs a module as `python -m` does, without the modules, the library without a name and the files of Linux.
HIDDEN = """
import ctypes
import runpy
import sys
from pathlib import Path

for name in {modules!r}:
    sys.modules[name] = None  # importing it fails

class Library(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = Library
import texture_ad.training.resources
texture_ad.training.resources._PROCESS = Path("/nowhere")
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

NO_MEMORY = "note: peak_memory_mb is left out"
NO_LIBRARY = "note: freed memory is not kept for reuse"
NO_LOCK = "scores.csv is not locked: this system has no file locks"


def hidden(module, *args):
    """The call of a module on a system that lacks what HIDDEN hides."""
    return [sys.executable, "-c", HIDDEN.format(modules=sorted(POSIX_ONLY)), module, *map(str, args)]


def call(module, *args):
    """What a call on such a system gives."""
    done = subprocess.run(
        hidden(module, *args),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return few_photographs(tmp_path_factory.mktemp("data") / "carpet")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run on such a system: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    quick = ("trainer.max_epochs=1",)
    return folder, call("texture_ad.run", *arguments(data, folder, *quick))


def test_a_run_leaves_out_the_memory_and_says_so(run):
    folder, done = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "peak_memory_mb" not in metrics and 0 <= metrics["image_auroc"] <= 1
    assert done.stderr.count(NO_MEMORY) == 1 and done.stderr.count(NO_LIBRARY) == 1
    assert (folder / "report.html").is_file()


def test_predict_scores_as_the_run_did(run, data, tmp_path):
    folder, _ = run
    call("texture_ad.predict", f"detector={folder / 'detector.pt'}", f"input={data / 'test'}", f"output={tmp_path}")
    expected = {r["path"]: float(r["score"]) for r in csv.DictReader((folder / "scores.csv").open())}
    found = {f"test/{r['path']}": float(r["score"]) for r in csv.DictReader((tmp_path / "scores.csv").open())}
    assert found.keys() == expected.keys()
    assert max(abs(found[k] - expected[k]) / max(1, abs(expected[k])) for k in found) < 1e-5


def test_a_watched_folder_is_scored_without_a_lock(run, data, tmp_path):
    process = subprocess.Popen(
        hidden(
            "texture_ad.predict",
            f"detector={run[0] / 'detector.pt'}",
            f"input={data / 'test/good'}",
            f"output={tmp_path}",
            "watch=true",
            "interval=0.1",
            "pictures=false",
        ),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wanted = len(list((data / "test/good").iterdir()))
    scores = tmp_path / "scores.csv"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if scores.exists() and len(scores.read_text().splitlines()) > wanted:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"of {wanted} images" in out and errors.count(NO_LOCK) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv", "stream.html"]


def imports(path: Path):
    """The names of the modules that a file imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_module_needs_posix_to_be_imported():
    folder = Path(texture_ad.__file__).parent
    needed = {p.relative_to(folder).as_posix(): POSIX_ONLY & set(imports(p)) for p in folder.rglob("*.py")}
    assert {name: found for name, found in needed.items() if found} == {}
