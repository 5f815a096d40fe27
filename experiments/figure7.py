"""The paper's Figure 7: carpet's anomaly scores as a line graph, normal images against anomalous ones.

    python -m experiments.figure7 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

Own keys: category, seed, runs, output. Every other key=value goes to the run.
"""

import csv
from pathlib import Path

import numpy as np

from experiments.runs import arguments, run_once, script
from texture_ad.reporting.figures import score_line_graph


def main() -> None:
    own, overrides = arguments({
        "category": ["carpet"], "seed": ["0"], "runs": ["runs/experiments/paper"],
        "output": ["experiments/results/figure7.png"],
    })  # fmt: skip
    category, seed = own["category"][0], own["seed"][0]
    folder = Path(own["runs"][0]) / f"{category}-fusion-seed{seed}"
    metrics = run_once(folder, [f"data.category={category}", f"seed={seed}", "method=fusion", *overrides])
    with open(folder / "scores.csv", newline="", encoding="utf-8") as source:
        rows = list(csv.DictReader(source))
    scores = np.array([float(row["score"]) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    score_line_graph(scores, labels, metrics["threshold"], Path(own["output"][0]), metrics["data_source"])
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    print(f"{metrics['data_source']}: normal images score {normal.mean():.3f} in the mean and at most "
          f"{normal.max():.3f}, anomalous ones {anomalous.mean():.3f} and at least {anomalous.min():.3f}; "
          f"{own['output'][0]}")  # fmt: skip


if __name__ == "__main__":
    script(main)
