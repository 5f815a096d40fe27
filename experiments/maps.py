"""Compare how patch maps become anomaly maps: upsampling and smoothing, by AUPRO at 0.05 and the F1 of pixels.

    python -m experiments.maps root=FOLDER                            # each folder in it is a texture, as MVTec AD's
    python -m experiments.maps root=FOLDER textures=piped_btn01 methods=fusion seeds=0 sigmas=0,2,4

Own keys: root, textures, methods, seeds, upsamplings, sigmas (pixels at a shorter side of 224; 0 for none), workers,
runs (folder of the runs), output (without suffix: .json and .md are written). Every other key=value goes to each run.
Each detector is fitted once, its patch maps are measured once, and every setting works on these. A run's figures are
kept in its folder as maps.json and not computed again. Both thresholds come from the calibration images held out, that
of pixels anew for each setting, at the run's own rates (cross_fit=false: maps of folds are not kept). No figure here
chooses anything.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from experiments.runs import data_of, grouped, read_study, run_all, script, write_table
from experiments.textures import jobs_of
from texture_ad.errors import UserError
from texture_ad.evaluation.calibration import conformal_threshold
from texture_ad.evaluation.metrics import metrics_at_masks
from texture_ad.files import write_text
from texture_ad.methods.base import AnomalyDetector, Upsampling, enlarge, smooth
from texture_ad.methods.registry import load
from texture_ad.reporting.tables import markdown_table

JUDGED = ("aupro_05", "seg_f1", "pixel_ap")


class Judged(NamedTuple):
    """Hold what is judged of images: their scores (n,) and their patch maps (n, h, w)."""

    scores: Tensor
    maps: Tensor


@torch.no_grad()
def measure(detector: AnomalyDetector, batches: Any) -> Judged:
    """Return scores and patch maps of all images of a loader, on the CPU."""
    found = []
    for batch in batches:
        measured = detector.measure(detector.fill(batch["image"].to(detector.device)))
        if measured.parts is None:
            raise UserError(f"method={detector.name} has no anomaly map")
        scores = detector.predict(measured, detector.geometry.size).scores
        found.append((scores.cpu(), detector.raised(detector.fuse(measured.parts)).cpu()))
    return Judged(*(torch.cat(values) for values in zip(*found, strict=True)))


def anomaly_maps(maps: Tensor, size: Sequence[int], upsampling: Upsampling, sigma: float) -> Iterator[np.ndarray]:
    """Yield the anomaly map (H, W) of each patch map (n, h, w), as `AnomalyDetector.predict` makes it.

    Args:
        maps: (n, h, w).
        size: (H, W) of the images.
        upsampling: "bilinear" or "bicubic".
        sigma: of the Gaussian, in pixels at a shorter side of 224.
    """
    for one in maps.split(1):
        enlarged = enlarge(one, size, upsampling)
        yield (smooth(enlarged, sigma * min(size) / 224) if sigma else enlarged)[0].numpy()


def judge(folder: Path, settings: Sequence[tuple[Upsampling, float]]) -> list[dict[str, Any]]:
    """Return the metrics of each setting on a run's test images; only those that maps.json lacks are computed."""
    path = folder / "maps.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else []
    missing = [one for one in settings if not any((k["upsampling"], k["sigma"]) == one for k in known)]
    if missing:
        data = data_of(folder)
        detector = load(folder / "detector.pt", "cuda" if torch.cuda.is_available() else "cpu")
        assert detector.provenance is not None  # as of every run
        calibration = measure(detector, data.calibration_dataloader())
        test = measure(detector, data.test_dataloader())
        masks = list(data.true_masks(range(len(data.test_samples))))
        for upsampling, sigma in missing:
            size = detector.geometry.size
            maxima = torch.tensor([float(m.max()) for m in anomaly_maps(calibration.maps, size, upsampling, sigma)])
            threshold = conformal_threshold(maxima, detector.provenance.pixel_false_alarm_rate)
            of = detector.decision(pixel_threshold=threshold).pixel_threshold_of
            maps = anomaly_maps(test.maps, size, upsampling, sigma)
            found = metrics_at_masks(maps, masks, map(of, test.scores.tolist()))
            known.append({"upsampling": upsampling, "sigma": sigma, **{name: found[name] for name in JUDGED}})
            write_text(path, json.dumps(known, indent=1) + "\n")
    return [one for one in known if (one["upsampling"], one["sigma"]) in settings]


def table(found: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return a row for each method and setting: a metric of each texture, a list over seeds, and the mean of all."""
    rows = []
    for (method, upsampling, sigma), own in grouped(found, "method", "upsampling", "sigma").items():
        of = {texture: [f[name] for f in values] for (texture,), values in grouped(own, "texture").items()}
        mean = fmean(fmean(values) for values in of.values())
        rows.append({name: method, "upsampling": upsampling, "sigma": f"{sigma:g}", **of, "mean": mean})
    return rows


def main() -> None:
    """Make the runs, judge their maps, and write the tables."""
    study = read_study(
        "maps",
        root=[""],
        textures=[],
        methods=["fusion", "padim", "patchcore"],
        upsamplings=["bilinear", "bicubic"],
        sigmas=["0", "1", "2", "4", "6"],
    )
    if unknown := set(study["upsamplings"]) - set(get_args(Upsampling)):
        raise UserError(f"upsamplings={','.join(sorted(unknown))}: expected {' or '.join(get_args(Upsampling))}")
    upsamplings = [known for known in get_args(Upsampling) if known in study["upsamplings"]]
    settings = list(product(upsamplings, study.numbers("sigmas", float)))
    jobs = jobs_of(study, "cross_fit=false")
    run_all(jobs, study.workers)
    found = []
    for (texture, method, seed), job in jobs.items():
        for one in judge(job.folder, settings):
            found.append({"texture": texture, "method": method, "seed": seed, **one})
        print(f"judged   {job.folder.name}", flush=True)
    tables = [table(found, name) for name in JUDGED]
    below = "\n\n".join(markdown_table(rows) for rows in tables[1:])
    print(write_table(study.output, found, tables[0], below))


if __name__ == "__main__":
    script(main)
