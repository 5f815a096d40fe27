"""Compare all methods on one folder of photographs at given sizes, over seeds.

    python -m experiments.baselines data.root=FOLDER sizes=128,256 seeds=0,1,2
    python -m experiments.baselines                     # embedded carpet: not a benchmark

Own keys: methods, sizes, seeds, workers, runs (folder of the runs), output (without suffix: .json and .md are written).
Every other key=value goes to each run. The output grows with every run; a finished run is not repeated.
"""

from experiments.runs import data_of_overrides, grouped, kept_runs, read_photograph_study, run_all, script, write_table
from texture_ad.methods.registry import METHODS
from texture_ad.reporting.metrics import METRICS

COMPARED = ("image_auroc", "pixel_auroc", "aupro", "fit_seconds", "test_seconds_per_image", "peak_memory_mb")
ALSO_KEPT = ("image_ap", "test_seconds_per_image", "peak_memory_mb")


def table(runs: list[dict]) -> list[dict]:
    """Return one row for each size and method, its metrics as lists over the seeds."""
    return [row(group) for _, group in sorted(grouped(runs, "size", "method").items(), key=lambda one: one[0][0])]


def row(runs: list[dict]) -> dict:
    """Return the row of runs that differ in their seed alone."""
    first = runs[0]
    about = {"method": first["method"], "size": first["size"], "data": first["data_source"], "seeds": len(runs)}
    return about | {METRICS[key].heading: values(runs, key) for key in COMPARED}


def values(runs: list[dict], key: str) -> list[float] | None:
    """Return a metric of several runs in the unit of its heading, None if no run has it."""
    return [METRICS[key].scale * run[key] for run in runs if run[key] is not None] or None


def main() -> None:
    """Make the runs, and write the table after each."""
    study = read_photograph_study("baselines", methods=list(METHODS), sizes=["128", "256"])
    name = data_of_overrides(study.overrides)
    jobs = {
        (method, size, seed): study.job(
            study.runs / f"{name}-{method}-{size}-seed{seed}", [f"method={method}", f"data.size={size}", f"seed={seed}"]
        )
        for seed in study.numbers("seeds")
        for method in study["methods"]
        for size in study.numbers("sizes")
    }

    def write() -> str:
        runs = kept_runs(jobs, ("method", "size", "seed"), ALSO_KEPT)
        return write_table(study.output, runs, table(runs))

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
