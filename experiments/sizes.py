"""Compare input sizes and layers by the size of the defects: do larger inputs or finer layers find smaller ones?

    python -m experiments.sizes root=FOLDER                           # each folder in it is a texture, as MVTec AD's
    python -m experiments.sizes root=FOLDER variants=default,512 seeds=0 workers=2

A defect's width is the diameter of the largest circle that fits into it, in percent of the picture's shorter side. An
image counts by its widest defect. For each class of widths the image AUROC of its images and all normal ones is taken
texture by texture, where there are at least LEAST such images, and averaged. Each run fits once. No figure here chooses
anything: the tables are written and not read.

Own keys: root, textures, variants, limits (between the classes, percent), seeds, workers, runs (folder of the runs),
output (without suffix: .json and .md are written). Every other key=value goes to each run. The output grows with every
run; a finished run is not repeated.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import roc_auc_score

from experiments.runs import Study, data_of, grouped, read_scores, read_study, run_all, script, write_table
from experiments.textures import BY_TEXTURE, find_textures, finished_runs, job, other_metrics, table
from texture_ad.errors import UserError, did_you_mean
from texture_ad.reporting.tables import markdown_table

VARIANTS = {
    "default": [],
    "512": ["data.size=512", "backbone.min_size=512"],
    "finer": ["backbone.layers=[block2,block4,block10]"],
}
LEAST = 4  # images of a texture in a class of widths


def width(mask: np.ndarray) -> float:
    """Return the diameter of the largest circle within a mask, bool (H, W), in percent of its shorter side."""
    # What lies at the picture's edge ends there.
    return 200 * float(distance_transform_edt(np.pad(mask, 1)).max()) / min(mask.shape)


def widths(folder: Path) -> np.ndarray:
    """Return the width of the widest defect in each test image of a run, (n,): 0 of a normal one, NaN if not known."""
    data = data_of(folder)
    masks = data.true_masks(range(len(data.test_samples)))
    found = (0 if mask is None else width(mask) for mask in masks)
    return np.array([np.nan if s.label and not one else one for s, one in zip(data.test_samples, found, strict=True)])


def by_width(scores: np.ndarray, of: np.ndarray, limits: Sequence[float]) -> list[dict]:
    """Return for each class of widths its images, and their image AUROC beside all normal ones, None of too few.

    Args:
        scores: (n,).
        of: (n,) widths; 0 for a normal image.
        limits: between the classes, in order.
    """
    found = []
    for low, high in pairwise((0, *limits, np.inf)):
        inside = (of > low) & (of <= high)
        chosen = inside | (of == 0)
        auroc = roc_auc_score(inside[chosen], scores[chosen]) if inside.sum() >= LEAST else None
        found.append({"images": int(inside.sum()), "image_auroc": auroc})
    return found


def rows_by_width(runs: Sequence[dict], variants: Sequence[str], names: Sequence[str]) -> list[dict]:
    """Return a row for each class of widths: images and textures, and of each variant a list over seeds of means."""
    rows = []
    for number, name in enumerate(names):
        own = [run | run["by_width"][number] for run in runs]
        counts = {run["texture"]: run["images"] for run in own if run["images"] >= LEAST}
        row: dict = {"width of the defect": name, "images": str(sum(counts.values())), "textures": str(len(counts))}
        for variant in variants:
            of = [run for run in own if run["method"] == variant and run["texture"] in counts]
            row[variant] = [fmean(r["image_auroc"] for r in seed) for seed in grouped(of, "seed").values()] or None
        rows.append(row)
    return rows


def left_out(runs: Sequence[dict], known: Iterable[np.ndarray]) -> str:
    """Return how many defective images no class has, and why, by runs of each texture and the widths of its images."""
    unmasked = sum(int(np.isnan(of).sum()) for of in known)
    of_texture = {run["texture"]: run["by_width"] for run in runs}.values()
    few = sum(one["images"] for classes in of_texture for one in classes if one["image_auroc"] is None)
    return (
        f"In no row are {few} images of textures with fewer than {LEAST} in a class, and {unmasked} without a mask "
        "that marks a pixel."
    )


def check_variants(study: Study) -> list[str]:
    """Return the variants that are asked for.

    Raises:
        UserError: one is not known.
    """
    for variant in study["variants"]:
        if variant not in VARIANTS:
            meant = did_you_mean(variant, VARIANTS)
            raise UserError(f"variants={variant}: no such variant; {meant}expected some of {', '.join(VARIANTS)}")
    return study["variants"]


def main() -> None:
    """Make the runs, and write the tables after each."""
    study = read_study("sizes", root=[""], textures=[], variants=list(VARIANTS), limits=["3", "6", "12"])
    variants, limits = check_variants(study), sorted(study.numbers("limits", float))
    textures = find_textures(study.root, study["textures"])
    jobs = {
        (texture, variant, seed): job(
            study, study.runs / variant, study.root / texture, "fusion", seed, "cross_fit=false", *VARIANTS[variant]
        )
        for seed in study.numbers("seeds")
        for texture in textures
        for variant in variants
    }
    ends = [f"{limit:g} %" for limit in limits]
    names = [f"up to {ends[0]}", *(f"{low} to {high}" for low, high in pairwise(ends)), f"above {ends[-1]}"]
    known: dict[str, np.ndarray] = {}  # widths of a texture's test images

    def write() -> str:
        runs = finished_runs(jobs)
        for run in runs:
            folder = jobs[run["texture"], run["method"], run["seed"]].folder
            if run["texture"] not in known:
                known[run["texture"]] = widths(folder)
            scores = np.array([float(row["score"]) for row in read_scores(folder)])
            run["by_width"] = by_width(scores, known[run["texture"]], limits)
        tables = [other_metrics(runs, variants), *(table(runs, variants, textures, key) for key in BY_TEXTURE)]
        below = "\n\n".join([left_out(runs, known.values()), *map(markdown_table, tables)])
        return write_table(study.output, runs, rows_by_width(runs, variants, names), below)

    run_all(jobs, study.workers, write)
    print(write())


if __name__ == "__main__":
    script(main)
