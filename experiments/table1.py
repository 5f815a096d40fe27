"""Write Table 1 of Guo, Song, Ma: the CutPaste baseline against the fusion, image AUROC on the five textures.

    python -m experiments.table1 data.root=ROOT        # MVTec AD; without it, embedded data: not a benchmark

Own keys: categories, seeds, workers, runs, output. Every other key=value goes to each run.
"""

from experiments.runs import paper_table, script

METHODS = {
    "cutpaste": (["method=cutpaste", "method.task=binary"], (0.679, 0.999, 0.997, 0.959, 0.949)),
    "fusion": (["method=fusion"], (0.997, 0.957, 0.976, 0.965, 0.982)),
}

if __name__ == "__main__":
    script(lambda: paper_table("table1", METHODS))
