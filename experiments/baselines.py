"""All methods on one folder of photographs at given sizes, over seeds.

    python -m experiments.baselines data.root=FOLDER sizes=128,256 seeds=0,1,2
    python -m experiments.baselines                     # embedded carpet: not a benchmark

Own keys: methods, sizes, seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are written).
Every other key=value goes to each run. The output grows with every run; a finished run is not repeated.
"""

from pathlib import Path

from experiments.runs import METHODS, arguments, read_run, run_all, script, write_table

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
        row = rows.setdefault(
            (run["size"], run["method"]),
            {
                "method": run["method"],
                "size": run["size"],
                "data": run["data_source"],
                "seeds": 0,
                **{k: [] for k in COLUMNS},
            },
        )
        row["seeds"] += 1
        for column, key in COLUMNS.items():
            if run[key] is not None:
                row[column].append(run[key])
    for row in rows.values():
        row |= {k: row[k] or None for k in COLUMNS}
    return [rows[k] for k in sorted(rows, key=lambda k: (k[0], METHODS.index(k[1])))]


def main() -> None:
    own, overrides = arguments(
        {
            "methods": METHODS,
            "sizes": ["128", "256"],
            "seeds": ["0", "1", "2"],
            "workers": ["1"],
            "runs": ["runs/experiments/baselines"],
            "output": ["experiments/results/baselines"],
        }
    )
    root = next((o.partition("=")[2] for o in overrides if o.startswith("data.root=")), None)
    if root and not any(o.startswith("data=") for o in overrides):
        overrides.append("data=folder")
    name = Path(root).name if root else "embedded"
    jobs = [
        (
            Path(own["runs"][0]) / f"{name}-{method}-{size}-seed{seed}",
            [f"method={method}", f"data.size={size}", f"seed={seed}", *overrides],
        )
        for seed in own["seeds"]
        for method in own["methods"]
        for size in own["sizes"]
    ]
    kept = (
        "data_source",
        "data_fingerprint",
        "image_auroc",
        "image_ap",
        "pixel_auroc",
        "aupro",
        "synthetic_auroc",
        "fit_seconds",
        "peak_memory_mb",
    )

    def write() -> str:
        runs = []
        for folder, (method, size, seed, *_) in jobs:
            if found := read_run(folder):
                runs.append(
                    {
                        "method": method.partition("=")[2],
                        "size": int(size.partition("=")[2]),
                        "seed": int(seed.partition("=")[2]),
                        **{k: found.get(k) for k in kept},
                        "test_milliseconds_per_image": 1000 * found["test_seconds_per_image"],
                    }
                )
        return write_table(Path(own["output"][0]), runs, table(runs))

    run_all(jobs, int(own["workers"][0]), write)
    print(write())


if __name__ == "__main__":
    script(main)
