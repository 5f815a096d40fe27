"""The scripts that reproduce tables and figures: every finished run counts once, and every line names its data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["data.size=64", "backbone=resnet18", "backbone.weights=none", "backbone.layers=[layer1]"]


def script(name: str, *args: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "MVTEC_AD_ROOT"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *args],
        capture_output=True,
        text=True,
        env=clean,
        cwd=ROOT,
        timeout=300,
    )


def test_a_finished_run_is_not_repeated(tmp_path):
    args = [
        "methods=one_nn",
        "sizes=64",
        "seeds=0",
        f"runs={tmp_path / 'runs'}",
        f"output={tmp_path / 'baselines'}",
        *SMALL[1:],
    ]
    done = script("baselines", *args)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "baselines.json").read_text())
    assert run["method"] == "one_nn" and run["fit_seconds"] > 0 and run["peak_memory_mb"] > 0
    lines = [line for line in done.stdout.splitlines() if "one_nn" in line]
    assert lines and all("embedded carpet (generated, not a benchmark)" in line for line in lines)
    (detector,) = (tmp_path / "runs").glob("*/detector.pt")
    before = detector.stat().st_mtime_ns
    assert script("baselines", *args).returncode == 0 and detector.stat().st_mtime_ns == before
    done = script("baselines", *args, "method.components=3")
    assert done.returncode == 2 and "holds a run with other overrides" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["baselines", "table1", "table2", "figure6", "figure7"])
def test_bad_arguments_get_one_line(name):
    done = script(name, "--fast")
    assert done.returncode == 2 and "error: --fast: expected key=value" in done.stderr
    assert "Traceback" not in done.stderr
