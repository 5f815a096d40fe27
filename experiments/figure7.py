"""Draw Figure 7 of Guo, Song, Ma: carpet's anomaly scores as a line graph, normal images against anomalous ones.

    python -m experiments.figure7 data.root=ROOT       # MVTec AD; without it, embedded data: not a benchmark

Own keys: category, seed, runs, output. Every other key=value goes to the run.
"""

import numpy as np

from experiments.runs import figure_run, read_scores, script
from texture_ad.reporting.charts import score_line_graph


def main() -> None:
    """Make the run, unless it is finished, and draw its scores."""
    folder, metrics, output = figure_run("figure7")
    rows = read_scores(folder)
    scores = np.array([float(row["score"]) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    score_line_graph(scores, labels, metrics["threshold"], output, metrics["data_source"])
    normal = scores[labels == 0]
    anomalous = scores[labels == 1]
    print(
        f"{metrics['data_source']}: normal images score {normal.mean():.3f} in the mean and at most "
        f"{normal.max():.3f}, anomalous ones {anomalous.mean():.3f} and at least {anomalous.min():.3f}; "
        f"{output}"
    )


if __name__ == "__main__":
    script(main)
