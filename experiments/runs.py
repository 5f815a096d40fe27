"""Many runs by the real command line: in parallel, each in a folder of its own, none of them twice.

A run is finished when its folder holds `resources.json`, which is written after everything else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from texture_ad.errors import UserError
from texture_ad.files import write_whole

METHODS = ("fusion", "one_nn", "oc_svm", "sparse_coding", "dsebm", "ganomaly", "patch_svdd", "cutpaste", "patchcore",
           "padim")  # fmt: skip
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


def arguments(defaults: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """The command line's key=value pairs.

    Args:
        defaults: this script's own keys, each a list of values.

    Returns:
        The own keys, values split at commas, and all other pairs, which are overrides for every run.
    """
    own, overrides = {k: list(v) for k, v in defaults.items()}, []
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: expected key=value; own keys are {', '.join(own)}, others go to every run")
        if key in own:
            own[key] = value.split(",")
        else:
            overrides.append(argument)
    return own, overrides


def data_overrides(overrides: Sequence[str], category: str) -> list[str]:
    """MVTec AD's category where its root is given, else the embedded one, unless the command line names other data."""
    if any(o.startswith(("data=", "data.category=")) for o in overrides):
        return []
    return [f"data.category={category}"]


def run_once(folder: Path, overrides: Sequence[str]) -> dict:
    """One run in a process of its own, unless it is finished.

    Returns:
        What metrics.json holds, and `peak_memory_mb`, the process's largest resident memory.

    Raises:
        UserError: the run failed; the end of its log says why.
    """
    finished = folder / "resources.json"
    if not finished.is_file():
        # Seconds of a run that was killed and goes on are not those of a whole run.
        resumed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        call = [sys.executable, "-m", "texture_ad.run", f"run_dir={folder}", "pictures=false", "logger=none",
                "trainer.enable_progress_bar=false", *overrides]  # fmt: skip
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise UserError(f"{folder}: {lines[-1] if lines else process.returncode}; the rest is in its log.txt")
        resources = {"peak_memory_mb": usage.ru_maxrss / 1024, "resumed": resumed}
        write_whole(finished, json.dumps(resources).encode())
    metrics = json.loads((folder / "metrics.json").read_text()) | json.loads(finished.read_text())
    if metrics.pop("resumed"):
        metrics["fit_seconds"] = None
    return metrics


def run_all(
    jobs: Sequence[tuple[Path, list[str]]], workers: int, done: Callable[[], None] = lambda: None
) -> list[dict]:
    """`run_once` of every (folder, overrides), `workers` at a time; tells each on a line and calls `done` after it.

    Raises:
        UserError: after all others have run, if some failed: the first one's reason.
    """
    failures, results = [], {}

    def one(job: tuple[Path, list[str]]) -> None:
        folder, overrides = job
        try:
            found = results[folder] = run_once(folder, overrides)
        except UserError as error:
            failures.append(error)
            print(f"failed   {error}", flush=True)
            return
        told = ", ".join(f"{k} {found[k]:.3f}" for k in ("image_auroc", "pixel_auroc", "aupro") if found.get(k))
        print(f"{found['data_source']}: {folder.name}: {told}", flush=True)
        done()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} runs failed, first: {failures[0]}")
    return [results[folder] for folder, _ in jobs]


def script(main: Callable[[], None]) -> None:
    """Ends bad input in one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
