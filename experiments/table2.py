"""Write Table 2 of Guo, Song, Ma: all methods that it compares, image AUROC on the five textures.

    python -m experiments.table2 data.root=ROOT        # MVTec AD; without it, embedded data: not a benchmark

Own keys: categories, seeds, workers, runs, output. Every other key=value goes to each run.
"""

from experiments.runs import paper_table, script

PRINTED = {
    "dsebm": (0.437, 0.619, 0.841, 0.690, 0.952),
    "ganomaly": (0.699, 0.708, 0.842, 0.834, 0.794),
    "one_nn": (0.811, 0.557, 0.903, 0.994, 0.934),
    "oc_svm": (0.627, 0.410, 0.880, 0.876, 0.953),
    "sparse_coding": (0.58, 0.89, 0.95, 0.86, 0.97),
    "patch_svdd": (0.929, 0.946, 0.909, 0.978, 0.965),
    "fusion": (0.997, 0.957, 0.976, 0.965, 0.982),
}

if __name__ == "__main__":
    script(lambda: paper_table("table2", {name: ([f"method={name}"], row) for name, row in PRINTED.items()}))
