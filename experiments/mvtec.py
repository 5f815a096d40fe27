"""Compare methods on the five textures of MVTec AD, beside the figures that the paper and others printed.

    make mvtec MVTEC_AD_ROOT=ROOT
    python -m experiments.mvtec root=ROOT methods=fusion,patchcore seeds=0 workers=2

Own keys: root, textures, methods, seeds, workers, runs, output, as in experiments.textures, which makes the runs; every
other key=value goes to each run. A folder that is laid out like MVTec AD but holds other images is no benchmark: the
table names its source, and the printed figures beside it mean nothing then.
"""

import os
from collections.abc import Sequence
from statistics import fmean

from experiments.runs import MVTEC, read_study, run_all, script, write_table
from experiments.textures import finished_runs, jobs_of, other_metrics
from texture_ad.data.embedded import TEXTURES
from texture_ad.errors import UserError
from texture_ad.reporting.tables import markdown_table

# Image AUROC as printed, in the order of TEXTURES (carpet, grid, leather, tile, wood).
PRINTED = {
    "Guo, Song, Ma, their table 1": (0.997, 0.957, 0.976, 0.965, 0.982),
    "CutPaste 3-way, Li et al. (backbone from scratch)": (0.931, 0.999, 1.000, 0.934, 0.986),
    "PaDiM, WideResNet-50, anomalib": (0.995, 0.942, 1.000, 0.974, 0.993),
    "PatchCore, WideResNet-50, 224 px, 10 %, its authors": (0.986, 0.979, 1.000, 0.995, 0.991),
    "FastFlow, WideResNet-50, anomalib": (0.994, 1.000, 0.999, 1.000, 0.992),
    "EfficientAD-M, nelson1425": (0.994, 1.000, 1.000, 1.000, 0.996),
    "Dinomaly, anomalib": (0.999, 0.999, 1.000, 1.000, 0.996),
}


def table(runs: Sequence[dict], methods: Sequence[str], textures: Sequence[str]) -> list[dict]:
    """Return a row for each method of ours, lists over the seeds, then one for each printed one, with their means."""
    rows: list[dict] = []
    for method in methods:
        of = {t: [r["image_auroc"] for r in runs if (r["texture"], r["method"]) == (t, method)] for t in textures}
        if any(of.values()):
            mean = fmean(fmean(v) for v in of.values()) if all(of.values()) else None
            rows.append({"image AUROC": f"{method}, here", **{t: of[t] or None for t in textures}, "mean": mean})
    for name, figures in PRINTED.items():
        printed = dict(zip(TEXTURES, figures, strict=True))
        known = {texture: printed.get(texture) for texture in textures}
        mean = fmean(v for v in known.values() if v is not None) if None not in known.values() else None
        rows.append({"image AUROC": f"{name}, printed", **known, "mean": mean})
    return rows


def main() -> None:
    """Make the runs, and write the table after each."""
    study = read_study(
        "mvtec", root=[os.environ.get(MVTEC, "")], textures=list(TEXTURES), methods=["fusion", "padim", "patchcore"]
    )
    if not study.single("root"):
        raise UserError(f"root=: give the folder of MVTec AD, as make mvtec {MVTEC}=ROOT or root=ROOT")
    jobs = jobs_of(study)
    textures = list(dict.fromkeys(texture for texture, _, _ in jobs))

    def write() -> str:
        runs = finished_runs(jobs)
        below = f"Images in {study.root.name}:\n\n{markdown_table(other_metrics(runs, study['methods']))}"
        return write_table(study.output, runs, table(runs, study["methods"], textures), below)

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
