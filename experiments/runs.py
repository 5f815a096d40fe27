"""Many runs by the real command line: in parallel, each in a folder of its own, none of them twice.

A run is finished when its folder holds `finished.json`, which is written after everything else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from texture_ad.errors import UserError
from texture_ad.files import write_atomic
from texture_ad.reporting.tables import markdown_table

METHODS = (
    "fusion",
    "one_nn",
    "oc_svm",
    "sparse_coding",
    "dsebm",
    "ganomaly",
    "patch_svdd",
    "cutpaste",
    "patchcore",
    "padim",
)
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


def arguments(defaults: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """The command line's key=value pairs.

    Args:
        defaults: this script's own keys, each a list of values.

    Returns:
        The own keys, values split at commas, and all other pairs, which are overrides for every run; the root in
        MVTEC_AD_ROOT is one of them, so that a finished run is not taken for one on other data.

    Raises:
        UserError: an argument that is no pair.
    """
    own = {k: list(v) for k, v in defaults.items()}
    overrides = []
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: expected key=value; own keys are {', '.join(own)}, others go to every run")
        if key in own:
            own[key] = value.split(",")
        else:
            overrides.append(argument)
    if "MVTEC_AD_ROOT" in os.environ and not any(o.startswith(("data=", "data.root=")) for o in overrides):
        overrides.append(f"data.root={os.environ['MVTEC_AD_ROOT']}")
    return own, overrides


def run_once(folder: Path, overrides: Sequence[str]) -> dict:
    """One run in a process of its own, unless it is finished.

    Returns:
        What metrics.json holds; `fit_seconds` is None if the run was interrupted.

    Raises:
        UserError: the folder holds a run with other overrides, or the run failed; the end of its log says why.
    """
    finished = folder / "finished.json"
    if finished.is_file() and json.loads(finished.read_text())["overrides"] != list(overrides):
        raise UserError(f"{folder}: holds a run with other overrides; give another folder by runs=FOLDER")
    if not finished.is_file():
        # Seconds of a run that was killed and resumed are not those of a whole run.
        resumed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        call = [
            sys.executable,
            "-m",
            "texture_ad.run",
            f"run_dir={folder}",
            "pictures=false",
            "logger=none",
            "trainer.enable_progress_bar=false",
            *overrides,
        ]
        with open(folder / "log.txt", "wb") as log:
            code = subprocess.run(call, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise UserError(f"{folder}: {lines[-1] if lines else f'exit code {code}'}; the rest is in its log.txt")
        write_atomic(finished, json.dumps({"overrides": list(overrides), "resumed": resumed}).encode())
    return read_run(folder)


def read_run(folder: Path) -> dict | None:
    """What `run_once` returns for a finished run, None for any other."""
    if not (folder / "finished.json").is_file():
        return None
    metrics = json.loads((folder / "metrics.json").read_text())
    if json.loads((folder / "finished.json").read_text())["resumed"]:
        metrics["fit_seconds"] = None
    return metrics


def run_all(
    jobs: Sequence[tuple[Path, list[str]]], workers: int, done: Callable[[], object] = lambda: None
) -> list[dict]:
    """`run_once` of every (folder, overrides), `workers` at a time; tells each on a line and calls `done` after it.

    Raises:
        UserError: after all others have run, if some failed: the first one's reason.
    """
    failures = []
    results = {}

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


def write_table(output: Path, runs: list[dict], rows: list[dict], below: str = "") -> str:
    """`runs` as `output`.json and `rows` as a Markdown table, `output`.md, with what stands below; gives the latter."""
    text = markdown_table(rows) + ("\n\n" + below.rstrip() if below else "")
    write_atomic(output.with_suffix(".json"), json.dumps(runs, indent=1).encode() + b"\n")
    write_atomic(output.with_suffix(".md"), text.encode() + b"\n")
    return text


def paper_table(name: str, methods: Mapping[str, tuple[list[str], Sequence[float]]]) -> None:
    """Image AUROC of methods on the five textures, beside what the paper printed.

    Args:
        name: of the output under experiments/results/.
        methods: for each column's name the overrides, and the paper's figures in the order of TEXTURES.
    """
    own, overrides = arguments(
        {
            "categories": TEXTURES,
            "seeds": ["0", "1", "2"],
            "workers": ["1"],
            "runs": ["runs/experiments/paper"],
            "output": [f"experiments/results/{name}"],
        }
    )
    jobs = {
        (category, label, seed): (
            Path(own["runs"][0]) / f"{category}-{label}-seed{seed}",
            [f"data.category={category}", f"seed={seed}", *options, *overrides],
        )
        for seed in own["seeds"]
        for category in own["categories"]
        for label, (options, _) in methods.items()
    }
    found = dict(zip(jobs, run_all(list(jobs.values()), int(own["workers"][0])), strict=True))
    rows = []
    for category in own["categories"]:
        row: dict = {"category": category}
        for label, (_, printed) in methods.items():
            runs = [found[category, label, seed] for seed in own["seeds"]]
            row |= {f"{label}, paper": printed[TEXTURES.index(category)], label: [r["image_auroc"] for r in runs]}
        rows.append(row | {"data": runs[0]["data_source"]})
    kept = ("data_source", "data_fingerprint", "image_auroc", "pixel_auroc", "aupro", "synthetic_auroc", "fit_seconds")
    runs = [
        {"category": c, "method": m, "seed": int(s), **{k: run.get(k) for k in kept}}
        for (c, m, s), run in found.items()
    ]
    print(write_table(Path(own["output"][0]), runs, rows))


def figure_run(name: str) -> tuple[Path, dict, Path]:
    """The run that a figure shows, by the command line.

    Args:
        name: of the picture under experiments/results/.

    Returns:
        The run's folder, what its metrics.json holds, and the picture's path.
    """
    own, overrides = arguments(
        {
            "category": ["carpet"],
            "seed": ["0"],
            "runs": ["runs/experiments/paper"],
            "output": [f"experiments/results/{name}.png"],
        }
    )
    category = own["category"][0]
    seed = own["seed"][0]
    folder = Path(own["runs"][0]) / f"{category}-fusion-seed{seed}"
    metrics = run_once(folder, [f"data.category={category}", f"seed={seed}", "method=fusion", *overrides])
    return folder, metrics, Path(own["output"][0])


def script(main: Callable[[], None]) -> None:
    """Ends bad input in one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
