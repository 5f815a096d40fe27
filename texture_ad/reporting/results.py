"""What a run leaves in its folder about the test images: metrics, scores, pictures."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.evaluation.localization import region_mask
from texture_ad.evaluation.metrics import image_metrics, pixel_metrics
from texture_ad.files import csv_text, write_atomic, write_text
from texture_ad.reporting import figures
from texture_ad.reporting.report import thumbnail, write_report


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a run's figures."""
    found = {"python": platform.python_version()}
    for package in ("texture_ad", "torch", "torchvision", "lightning", "spams-bin", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def write_results(
    predictions: dict[str, np.ndarray | None],
    grid: tuple[int, int] | None,
    threshold: float,
    data: TextureDataModule,
    folder: Path,
    metrics: dict,
    pictures: bool,
) -> dict:
    """Writes scores.csv, the pictures, report.html and metrics.json of n test images.

    Args:
        predictions: `score` (n,), `label` (n,), `index` (n,) into data.test_samples, `mask` bool (n, H, W), `map`
            (n, H, W), `positions` (n, k, 2) on the patches' grid. `map` and `positions` are None for a method that
            has none: pixel metrics, overlays and the region are then left out.
        grid: patches (h, w) that `positions` count, or None without them.
        threshold: an image is called anomalous where its score is greater.
        data: the images.
        folder: of the run.
        metrics: what is known so far; is kept and comes first.
        pictures: draw overlays, figures and the report's gallery.

    Returns:
        What metrics.json holds.
    """
    scores = predictions["score"]
    labels = predictions["label"]
    maps = predictions["map"]
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
    write_atomic(folder / "scores.csv", csv_text(rows))
    images = []
    if pictures:
        images = _overlays(predictions, grid, threshold, data, folder)
        for name, draw in (("scores", figures.score_line_graph), ("histogram", figures.score_histogram)):
            draw(scores, labels, threshold, folder / f"{name}.png", data.source_name)
        if 0 < labels.sum() < len(labels):
            figures.roc_pr(scores, labels, threshold, folder / "roc_pr.png", data.source_name)
    write_report(folder, metrics, images)
    # Last: a run folder with metrics.json is finished.
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, default=float) + "\n")
    return metrics


def overlay_path(kind: str, image: Path) -> Path:
    """A test image's overlay in the run folder; two images may differ in their suffix alone."""
    return Path("overlays", kind, image.name if image.suffix == ".png" else f"{image.name}.png")


def _overlays(
    predictions: dict, grid: tuple[int, int] | None, threshold: float, data: TextureDataModule, folder: Path
) -> list[dict]:
    """Writes a panel of every test image, where there are maps; returns what the report's gallery shows of it."""
    maps = predictions["map"]
    shown = []
    if maps is not None:
        # Most pixels are normal: they are dark, and the threshold lies in the middle of the scale.
        low = float(np.median(maps))
        high = 2 * threshold - low if threshold > low else float(maps.max())
    for row, number in enumerate(predictions["index"].tolist()):
        sample = data.test_samples[number]
        score = float(predictions["score"][row])
        label = int(predictions["label"][row])
        image = data.test_batch([number])["image"][0].permute(1, 2, 0).numpy()
        tiles = [image]
        if maps is not None:
            region = region_mask(predictions["positions"][row], grid, (data.size, data.size))
            mask = predictions["mask"][row] if sample.mask else None
            target = folder / overlay_path(sample.kind, sample.path)
            figures.localization_panel(
                image, maps[row], region, mask, score, threshold, label, target, low, high, data.source_name
            )
            tiles = figures.localization_tiles(image, maps[row], region, mask, score > threshold, low, high)[1:]
        shown.append(
            {
                "path": str(sample.path.relative_to(data.folder)),
                "kind": sample.kind,
                "label": label,
                "score": score,
                "thumbnail": thumbnail(tiles),
            }
        )
    return shown
