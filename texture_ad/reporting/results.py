"""Write what a run leaves in its folder about the test images: scores, pictures and report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from texture_ad.data.datamodule import TextureDataModule
from texture_ad.data.layouts import Sample
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.curves import bin_scores, precision_recall_curve, roc_curve
from texture_ad.evaluation.metrics import Predictions
from texture_ad.evaluation.regions import locate_regions
from texture_ad.files import csv_text, write_atomic
from texture_ad.reporting import charts
from texture_ad.reporting.cards import Card
from texture_ad.reporting.panels import colour_scale, localization_panel, overlay_path, shown_region
from texture_ad.reporting.report import GalleryImage, thumbnail, write_report


def write_results(
    predictions: Predictions,
    floor: float,
    decision: Decision,
    metrics: dict,
    data: TextureDataModule,
    folder: Path,
    pictures: bool,
    command: str,
    cards: Sequence[Card],
) -> None:
    """Write scores.csv, the pictures and report.html of n test images.

    Args:
        predictions: of the test images; without maps, overlays and the region are left out.
        floor: low end of the anomaly maps' colour scale.
        decision: thresholds for images and pixels.
        metrics: all that metrics.json will hold.
        data: the test images.
        folder: the run folder.
        pictures: draw overlays, figures and the report's gallery.
        command: for the shell, repeats the run.
        cards: of the detector and the images, for the report.
    """
    samples = [data.test_samples[number] for number in predictions["index"]]
    write_atomic(folder / "scores.csv", _scores_csv(predictions, samples, decision, data))
    images: list[GalleryImage] = []
    if pictures:
        images = _Overlays(predictions, floor, decision, data, folder).write()
        _write_charts(predictions, metrics, data.source_name, folder)
    write_report(folder, metrics, images, command, cards)


def _scores_csv(
    predictions: Predictions, samples: Sequence[Sample], decision: Decision, data: TextureDataModule
) -> bytes:
    rows: list[tuple] = [("path", "kind", "label", "score", "level", "threshold", "anomalous", "source", "name")]
    threshold = f"{decision.threshold:.8g}"
    for sample, score, label in zip(samples, predictions["score"], predictions["label"], strict=True):
        path = sample.below(data.folder)
        told = (f"{score:.8g}", f"{decision.level(score):.4f}", threshold, int(decision.is_anomalous(score)))
        rows.append((path, sample.kind, label, *told, data.source_name, sample.name))
    return csv_text(rows)


def _write_charts(predictions: Predictions, metrics: dict, source: str, folder: Path) -> None:
    scores = predictions["score"]
    labels = predictions["label"]
    threshold = metrics["threshold"]
    charts.score_line_graph(scores, labels, threshold, folder / "scores.png", source)
    charts.score_histogram(bin_scores(scores, labels), threshold, folder / "histogram.png", source)
    if metrics["normal_images"] and metrics["anomalous_images"]:
        roc = roc_curve(scores, labels)
        charts.roc_pr(roc, precision_recall_curve(scores, labels), metrics, folder / "roc_pr.png", source)


@dataclass(frozen=True)
class _Overlays:
    """Write the panels of n test images, and return what the report's gallery shows of each.

    Args:
        predictions: of the test images.
        floor: low end of the colour scale.
        decision: thresholds for images and pixels.
        data: the test images.
        folder: the run folder.
    """

    predictions: Predictions
    floor: float
    decision: Decision
    data: TextureDataModule
    folder: Path

    def write(self) -> list[GalleryImage]:
        """Write a panel of every test image, where there are maps."""
        return [self._gallery_image(row, number) for row, number in enumerate(self.predictions["index"].tolist())]

    def _gallery_image(self, row: int, number: int) -> GalleryImage:
        sample = self.data.test_samples[number]
        image = self.data.test_view(number)
        return {
            "path": sample.below(self.data.folder),
            "kind": sample.kind,
            "label": int(self.predictions["label"][row]),
            "score": float(self.predictions["score"][row]),
            "thumbnail": thumbnail(self._write_panel(row, number, image)),
        }

    def _write_panel(self, row: int, number: int, image: np.ndarray) -> list[np.ndarray]:
        """Write the panel of a test image, where there is a map; return the pictures of its thumbnail."""
        sample = self.data.test_samples[number]
        maps = self.predictions["anomaly_maps"]
        positions = self.predictions["positions"]
        grid = self.predictions["grid"]
        if maps is None or positions is None or grid is None or self.decision.pixel_threshold is None:
            return [image]
        vmin, vmax = colour_scale(self.floor, self.decision.pixel_threshold)
        score = float(self.predictions["score"][row])
        called = self.decision.is_anomalous(score)
        threshold = self.decision.pixel_threshold_of(score)
        anomaly_map = maps[row]
        roi = self.data.interest
        # In pixels of the photograph, as `predict` has them.
        found, regions = locate_regions(
            anomaly_map, self.data.test_shape(number), threshold, self.decision.min_area, roi
        )
        size = (image.shape[0], image.shape[1])
        inside = None if roi is None else roi.inside.numpy()
        region, region_name = shown_region(found, len(regions), positions[row], grid, size, called, inside)
        tiles = localization_panel(
            image,
            anomaly_map,
            region=region,
            region_name=region_name,
            mask=self.data.test_mask(number),
            score=score,
            threshold=self.decision.threshold,
            label=int(self.predictions["label"][row]),
            path=self.folder / overlay_path(Path(sample.kind, sample.name)),
            vmin=vmin,
            vmax=vmax,
            source=self.data.source_name,
        )
        return tiles[1:]
