"""What a run leaves in its folder about the test images: metrics, scores, pictures."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.evaluation.localization import region_mask
from texture_ad.evaluation.metrics import image_metrics, pixel_metrics
from texture_ad.files import csv_text, write_text, write_whole
from texture_ad.reporting import figures


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a run's figures."""
    found = {"python": platform.python_version()}
    for package in ("texture_ad", "torch", "torchvision", "lightning", "spams-bin", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def write_results(predictions: dict[str, np.ndarray | None], grid: tuple[int, int] | None, threshold: float,
                  data: TextureDataModule, folder: Path, metrics: dict, pictures: bool) -> dict:  # fmt: skip
    """Writes scores.csv, the pictures and metrics.json of n test images.

    Args:
        predictions: `score` (n,), `label` (n,), `index` (n,) into data.test_samples, `mask` bool (n, H, W), `map`
            (n, H, W), `locations` (n, k, 2) on the patches' grid. `map` and `locations` are None for a method that
            has none: pixel metrics, overlays and the region are then left out.
        grid: patches (h, w) that `locations` count, or None without them.
        threshold: an image is called anomalous where its score is greater.
        data: the images.
        folder: of the run.
        metrics: what is known so far; is kept and comes first.
        pictures: draw overlays and figures.

    Returns:
        What metrics.json holds.
    """
    scores, labels, maps = predictions["score"], predictions["label"], predictions["map"]
    samples = [data.test_samples[i] for i in predictions["index"]]
    metrics = metrics | image_metrics(scores, labels, threshold)
    if maps is not None and data.has_masks:
        metrics |= pixel_metrics(maps, predictions["mask"])
    rows = [("path", "kind", "label", "score", "threshold", "anomalous", "source")]
    for sample, score, label in zip(samples, scores, labels, strict=True):
        name = sample.path.relative_to(data.folder)
        rows.append(
            (name, sample.kind, label, f"{score:.8g}", f"{threshold:.8g}", int(score > threshold), data.source_name)
        )
    write_whole(folder / "scores.csv", csv_text(rows))
    if pictures:
        if maps is not None:
            _overlays(predictions, grid, threshold, data, folder)
        for name, draw in (("scores", figures.score_line_graph), ("histogram", figures.score_histogram)):
            draw(scores, labels, threshold, folder / f"{name}.png", data.source_name)
        if 0 < labels.sum() < len(labels):
            figures.roc_pr(scores, labels, threshold, folder / "roc_pr.png", data.source_name)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, default=float) + "\n")
    return metrics


def _overlays(predictions: dict, grid: tuple[int, int], threshold: float, data: TextureDataModule,
              folder: Path) -> None:  # fmt: skip
    maps, masks = predictions["map"], predictions["mask"]
    low, high = float(maps.min()), float(max(maps.max(), threshold))
    for row, (sample, image) in enumerate(data.test_images()):
        region = region_mask(predictions["locations"][row], grid, (data.size, data.size))
        mask = masks[row] if sample.mask else None
        target = folder / "overlays" / sample.kind / f"{sample.path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        figures.localization_panel(image.permute(1, 2, 0).numpy(), maps[row], region, mask,
                                   float(predictions["score"][row]), threshold, int(predictions["label"][row]), target,
                                   low, high, data.source_name)  # fmt: skip
