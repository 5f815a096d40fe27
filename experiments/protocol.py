"""Run `protocol=paper` to its end, and draw after each epoch how well its scores tell synthetic defects.

    python -m experiments.protocol data.root=ROOT        # MVTec AD; without it, embedded data: not a benchmark

Own keys: categories, seeds, workers, runs (folder of the runs), output (without suffix: .json, .md and .png are
written). Every other key=value goes to each run. A finished run is not repeated. The curve chooses each run's
checkpoint, as in every run with a backbone that learns; no test label does.
"""

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from experiments.runs import kept_runs, read_study, run_all, save_chart, script, write_table
from texture_ad.data.embedded import TEXTURES

CURVE = "val/auroc"


def curve(folder: Path) -> list[float]:
    """Return a run's AUROC on synthetic defects after each epoch, also of the parts before it was resumed."""
    found: dict[int, float] = {}
    for file in sorted((folder / "logs").glob("metrics*.csv"), key=lambda file: file.stat().st_mtime):
        with open(file, newline="", encoding="utf-8") as lines:
            found |= {int(row["epoch"]): float(row[CURVE]) for row in csv.DictReader(lines) if row.get(CURVE)}
    return [round(found[epoch], 6) for epoch in sorted(found)]


def row(run: dict) -> dict:
    """Return the row of a run: its metrics, and the highest point and the thirds of its curve."""
    values = run["curve"]
    ends = [len(values) * part // 3 for part in range(4)]
    thirds = {f"mean of epochs {start + 1} to {end}": fmean(values[start:end]) for start, end in pairwise(ends)}
    about = {"category": run["category"], "seed": run["seed"], "image AUROC": run["image_auroc"], "AUPRO": run["aupro"]}
    highest = {"AUROC on synthetic defects, highest": max(values), "in epoch": values.index(max(values)) + 1}
    return about | highest | thirds


def plot(runs: Sequence[dict], output: Path) -> None:
    """Draw the curves, one chart a texture."""
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(run["category"] for run in runs))
    figure = Figure(figsize=(8, 2 * len(categories)), layout="constrained")
    charts = figure.subplots(len(categories), 1, sharex=True, squeeze=False)[:, 0]
    for axes, category in zip(charts, categories, strict=True):
        for run in (run for run in runs if run["category"] == category):
            axes.plot(range(1, len(run["curve"]) + 1), run["curve"], label=f"seed {run['seed']}", linewidth=1)
        axes.set_ylabel(category)
        axes.grid(alpha=0.25)
    charts[0].legend(frameon=False, ncols=3)
    charts[-1].set_xlabel("epoch")
    figure.suptitle("protocol=paper: AUROC on synthetic defects after each epoch")
    save_chart(figure, output)


def main() -> None:
    """Make the runs, and write table and curves."""
    study = read_study("protocol", categories=TEXTURES)
    jobs = {
        (category, seed): study.job(
            study.runs / f"{category}-seed{seed}",
            ["protocol=paper", f"data.category={category}", f"seed={seed}", "logger=csv", "cross_fit=false"],
        )
        for category in study["categories"]
        for seed in study.numbers("seeds")
    }
    run_all(jobs, study.workers)
    runs = kept_runs(jobs, ("category", "seed"))
    for run, job in zip(runs, jobs.values(), strict=True):
        run["curve"] = curve(job.folder)
    plot(runs, study.output)
    print(write_table(study.output, runs, [row(run) for run in runs]))


if __name__ == "__main__":
    script(main)
