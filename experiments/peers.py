"""All methods on one folder of photographs at given sizes, over seeds.

    python -m experiments.peers data.root=FOLDER sizes=128,256 seeds=0,1,2
    python -m experiments.peers                     # embedded carpet: not a benchmark

Own keys: methods, sizes, seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are written).
Every other key=value goes to each run. The output grows with every run; a finished run is not repeated.
"""

import json
from pathlib import Path

from experiments.runs import METHODS, arguments, run_all, script
from texture_ad.files import write_whole
from texture_ad.reporting.tables import markdown_table

COLUMNS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "fit, s": "fit_seconds",
    "time per image, ms": "test_milliseconds_per_image",
    "peak memory, MB": "peak_memory_mb",
}


def table(runs: list[dict]) -> list[dict]:
    """One row for each size and method, columns as lists over the seeds."""
    rows: dict[tuple, dict] = {}
    for run in runs:
        row = rows.setdefault((run["size"], run["method"]), {
            "method": run["method"], "size": run["size"], "data": run["data_source"], "seeds": 0,
            **{k: [] for k in COLUMNS},
        })  # fmt: skip
        row["seeds"] += 1
        for column, key in COLUMNS.items():
            if run[key] is not None:
                row[column].append(run[key])
    for row in rows.values():
        row |= {k: row[k] or None for k in COLUMNS}
    return [rows[k] for k in sorted(rows, key=lambda k: (k[0], METHODS.index(k[1])))]


def main() -> None:
    own, overrides = arguments({
        "methods": METHODS, "sizes": ["128", "256"], "seeds": ["0", "1", "2"], "workers": ["1"],
        "runs": ["runs/experiments/peers"], "output": ["experiments/results/peers"],
    })  # fmt: skip
    root = next((o.partition("=")[2] for o in overrides if o.startswith("data.root=")), None)
    if root and not any(o.startswith("data=") for o in overrides):
        overrides.append("data=folder")
    name = Path(root).name if root else "embedded"
    jobs = [
        (Path(own["runs"][0]) / f"{name}-{method}-{size}-seed{seed}",
         [f"method={method}", f"data.size={size}", f"seed={seed}", *overrides])
        for seed in own["seeds"] for method in own["methods"] for size in own["sizes"]
    ]  # fmt: skip
    output = Path(own["output"][0])

    def write() -> None:
        runs = []
        for folder, (method, size, *_) in jobs:
            if (folder / "resources.json").is_file():
                found = json.loads((folder / "metrics.json").read_text())
                found |= json.loads((folder / "resources.json").read_text())
                runs.append({
                    "method": method.partition("=")[2], "size": int(size.partition("=")[2]), "seed": found["seed"],
                    "data_source": found["data_source"], "data_fingerprint": found["data_fingerprint"],
                    **{k: found.get(k) for k in ("image_auroc", "image_ap", "pixel_auroc", "aupro", "synthetic_auroc")},
                    "fit_seconds": None if found["resumed"] else found["fit_seconds"],
                    "test_milliseconds_per_image": 1000 * found["test_seconds_per_image"],
                    "peak_memory_mb": found["peak_memory_mb"],
                })  # fmt: skip
        write_whole(output.with_suffix(".json"), json.dumps(runs, indent=1).encode() + b"\n")
        write_whole(output.with_suffix(".md"), markdown_table(table(runs)).encode() + b"\n")

    try:
        run_all([(folder, list(o)) for folder, o in jobs], int(own["workers"][0]), write)
    finally:
        if output.with_suffix(".md").is_file():
            print(output.with_suffix(".md").read_text())


if __name__ == "__main__":
    script(main)
