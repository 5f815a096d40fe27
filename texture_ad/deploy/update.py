"""Add good photographs to a saved detector and calibrate it anew, without the photographs that it was fitted on.

Order of reading: `update`, then `cross_fit`.
"""

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from texture_ad.data.drift import Unlike, brightness, either, training_statistics
from texture_ad.data.geometry import Shape
from texture_ad.data.images import Header, header
from texture_ad.data.layouts import copies
from texture_ad.environment import versions
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import FalseAlarmRate, images_needed, spread_of
from texture_ad.files import content_digest
from texture_ad.methods.base import AnomalyDetector, Measurement, Provenance
from texture_ad.parameters import Count, checked

FOLDS = 5  # of the new photographs, at most, for measuring each by a detector that has not learnt from it


class Change(NamedTuple):
    """Say what an update changed.

    Attributes:
        images: how many were added.
        copies: photographs that are copies of those, and were left out.
        threshold_before: of the image scores.
        threshold: now.
        rise: from the one to the other, in deviations of the calibration scores of before.
        above_before: new photographs that the detector called anomalous before, the highest score first.
        above: how many it does now, each by a detector that has not learnt from it.
        unlike: a sentence for each respect in which new photographs differ from the training images of before.
    """

    images: int
    copies: tuple[Path, ...]
    threshold_before: float
    threshold: float
    rise: float
    above_before: tuple[Path, ...]
    above: int
    unlike: tuple[str, ...]


@checked
def update(
    detector: AnomalyDetector,
    source: Path,
    paths: Sequence[Path],
    batch_size: Count,
    false_alarm_rate: FalseAlarmRate | None = None,
    pixel_false_alarm_rate: FalseAlarmRate | None = None,
) -> Change:
    """Add photographs to what a detector learnt, and set its thresholds by them.

    The scores of the first calibration images belong to the moments of then, so the new photographs alone calibrate:
    the promise is about images like them. Each is measured by a detector that was updated with the others (see
    `cross_fit`), to which it is as new as an image to come. Each is read once and kept until the end. Of
    files with the same content one counts.

    Args:
        detector: loaded; it is changed.
        source: folder of the photographs, for the detector's provenance.
        paths: of good photographs.
        batch_size: photographs that are read and measured at a time.
        false_alarm_rate: share of normal images above the threshold, None for the one that was asked for before.
        pixel_false_alarm_rate: share of them with a pixel above the pixel threshold, likewise.

    Raises:
        ParameterError: a method or a geometry that can't be updated, or too few photographs for the rate.
        UserError: fewer than two photographs, or one that can't be read.
    """
    if detector.geometry.tiled:
        problem = "the detector cuts pictures into tiles and can't be updated; fit it again on all images"
        raise ParameterError("data.tile", min(detector.geometry.size), problem)
    detector.check_updatable()  # before all photographs are read
    same = dict.fromkeys(path for group in copies(paths) for path in group[1:])
    paths = [path for path in paths if path not in same]
    if len(paths) < 2:
        raise UserError(
            f"{source}: {len(paths)} different photographs; at least 2 are needed, to measure each without it"
        )
    rate = _rate(detector, "false_alarm_rate", false_alarm_rate)
    check_count(len(paths), "false_alarm_rate", rate)
    pixel_rate = rate  # means nothing to a method without maps
    if len(detector.calibration_maxima):
        pixel_rate = _rate(detector, "pixel_false_alarm_rate", pixel_false_alarm_rate)
        check_count(len(paths), "pixel_false_alarm_rate", pixel_rate)
    before = detector.threshold.item()
    spread = spread_of(detector.calibration_scores)
    images = read(detector, paths, batch_size)
    scores = torch.cat([detector(batch).scores for batch in images.split(batch_size)])
    above = [path for score, path in sorted(zip(scores.tolist(), paths, strict=True), reverse=True) if score > before]
    unlike = Unlike()
    statistics = detector.provenance.training_images if detector.provenance else None
    grey = brightness(images)
    headers = [header(path) for path in paths]
    for path, image, levels in zip(paths, headers, grey, strict=True):
        unlike.compare(path.name, statistics, image, levels)
    measured = cross_fit(detector, images, batch_size)
    detector.update(images.split(batch_size))
    detector.calibrate_on(measured, rate, pixel_rate)
    if detector.provenance is not None:
        detector.provenance = extended(detector.provenance, headers, grey, source, paths, rate, pixel_rate)
    threshold = detector.threshold.item()
    return Change(
        images=len(paths),
        copies=tuple(same),
        threshold_before=before,
        threshold=threshold,
        rise=(threshold - before) / spread,
        above_before=tuple(above),
        above=int((detector.calibration_scores > threshold).sum()),
        unlike=tuple(unlike.sentences(len(paths))),
    )


def _rate(detector: AnomalyDetector, name: str, given: float | None) -> float:
    """Return a rate that was given, or that the detector's run was asked for."""
    rate = given or (getattr(detector.provenance, name) if detector.provenance else None)
    if rate is None:
        raise ParameterError(name, rate, "the detector holds none; give a share of normal images")
    return float(rate)


def check_count(count: int, name: str, rate: float) -> None:
    """Check that this many photographs can promise a rate of false alarms, the parameter of this name.

    Raises:
        ParameterError: they can't.
    """
    needed = images_needed(rate)
    if count < needed:
        found = f"{count} photographs promise no less than {1 / (count + 1):.2g}"
        raise ParameterError(name, rate, f"{found}; give at least {needed}, or a higher rate")


def read(detector: AnomalyDetector, paths: Sequence[Path], batch_size: int) -> Tensor:
    """Return files as images, uint8 (n, 3, H, W) on the CPU, without what lies outside the region of interest."""
    found = []
    for start in range(0, len(paths), batch_size):
        images = detector.read(*paths[start : start + batch_size])
        assert isinstance(images, Tensor)  # tiles are refused by `update`
        found.append(detector.fill(images).cpu())
    return torch.cat(found)


@torch.no_grad()
def cross_fit(detector: AnomalyDetector, images: Tensor, batch_size: int) -> list[tuple[Measurement, Shape]]:
    """Measure each image (n, 3, H, W) by a copy of the detector that was updated with those of the other folds."""
    measured: list[tuple[Measurement, Shape]] = []
    folds = min(FOLDS, len(images))
    for fold in range(folds):
        inside = torch.arange(len(images)) % folds == fold
        other = copy.deepcopy(detector)
        other.update(images[~inside].split(batch_size))
        for batch in images[inside].split(batch_size):
            measured += other.measure_all(batch)
    return measured


def extended(
    provenance: Provenance,
    headers: Sequence[Header],
    grey: Tensor,
    source: Path,
    paths: Sequence[Path],
    false_alarm_rate: float,
    pixel_false_alarm_rate: float,
) -> Provenance:
    """Return what a detector was made from, after an update with n photographs, of this `brightness` (n, 2)."""
    new = training_statistics(headers, grey)
    old = provenance.training_images
    digest = hashlib.sha256(provenance.data_fingerprint.encode())
    for path in paths:
        digest.update(content_digest(path))
    return replace(
        provenance,
        data_source=f"{provenance.data_source} and {len(paths)} photographs of {Path(os.path.abspath(source)).name}",
        data_fingerprint=digest.hexdigest()[:16],
        false_alarm_rate=false_alarm_rate,
        pixel_false_alarm_rate=pixel_false_alarm_rate,
        versions=versions(),
        training_images=old and either(old, new),
    )
