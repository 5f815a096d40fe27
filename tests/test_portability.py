"""What Windows and macOS lack is hidden, and the commands still work; a line says what is left out."""

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import arguments, environment, read_scores

import texture_ad
from texture_ad import environment as environment_module

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

# Runs modules one after the other as `python -m` does, without the modules, the library without a name and the files
# of Linux. They share a process, since its start takes longer than what they do.
HIDDEN = """
import ctypes
import json
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
for module, *sys.argv[1:] in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        print({next!r}, file=stream, flush=True)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

NEXT = "--- the next module"
NO_MEMORY = "note: peak_memory_mb is left out"
NO_LIBRARY = "note: freed memory is not kept for reuse"
NO_LOCK = "scores.csv is not locked: this system has no file locks"


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A run, a prediction and a watched folder on such a system: for each its folder, stdout and stderr."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("run", "predict", "watch")}
    detector = f"detector={folders['run'] / 'detector.pt'}"
    watching = ("watch=true", "interval=0.1", "pictures=false")
    calls = [
        ["texture_ad.run", *arguments(data, folders["run"], "trainer.max_epochs=1")],
        ["texture_ad.predict", detector, f"input={data / 'test'}", f"output={folders['predict']}"],
        ["texture_ad.predict", detector, f"input={data / 'test/good'}", f"output={folders['watch']}", *watching],
    ]
    script = HIDDEN.format(modules=sorted(POSIX_ONLY), next=NEXT)
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(calls)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    scores = folders["watch"] / "scores.csv"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if scores.exists() and len(scores.read_text().splitlines()) > len(list((data / "test/good").iterdir())):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    parts = zip(folders, out.split(NEXT)[1:], errors.split(NEXT)[1:], strict=True)
    return {name: (folders[name], out, errors) for name, out, errors in parts}


def test_a_run_leaves_out_the_memory_and_says_so(done):
    folder, _, errors = done["run"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "peak_memory_mb" not in metrics and 0 <= metrics["image_auroc"] <= 1
    assert errors.count(NO_MEMORY) == 1 and errors.count(NO_LIBRARY) == 1
    assert (folder / "report.html").is_file()


def test_predict_scores_as_the_run_did(done):
    expected, scores = (read_scores(done[name][0] / "scores.csv") for name in ("run", "predict"))
    found = {f"test/{path}": score for path, score in scores.items()}
    assert found.keys() == expected.keys()
    assert max(abs(found[k] - expected[k]) / max(1, abs(expected[k])) for k in found) < 1e-5


def test_a_watched_folder_is_scored_without_a_lock(done, data):
    folder, out, errors = done["watch"]
    assert f"of {len(list((data / 'test/good').iterdir()))} images" in out and errors.count(NO_LOCK) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["scores.csv", "stream.html", "watched.json"]


def imports(path: Path):
    """The names of the modules that a file imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(("limit", "free"), [(1000, 1000 - 700 + 600), ("max", None)])
def test_what_a_container_keeps_of_files_is_free_memory(tmp_path, monkeypatch, limit, free):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 90\nfile 610\ninactive_file 600\nactive_file 10\n")
    monkeypatch.setattr(environment_module, "_CGROUP", tmp_path)
    found = environment_module.available_memory()
    assert found == free if free else found > 1000  # that of the machine


def test_no_module_needs_posix_to_be_imported():
    folder = Path(texture_ad.__file__).parent
    needed = {p.relative_to(folder).as_posix(): POSIX_ONLY & set(imports(p)) for p in folder.rglob("*.py")}
    assert {name: found for name, found in needed.items() if found} == {}
