"""Add good photographs to a saved detector and calibrate it anew, without the photographs that it was fitted on.

Order of reading: `update`, then `cross_fit`.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from texture_ad.data.drift import brightness, training_statistics
from texture_ad.environment import versions
from texture_ad.errors import ParameterError
from texture_ad.evaluation.calibration import FalseAlarmRate, images_needed
from texture_ad.methods.base import AnomalyDetector, Measurement
from texture_ad.parameters import Count, checked

FOLDS = 5  # of the new photographs, for measuring each by a detector that has not learnt from it


class Change(NamedTuple):
    """Say what an update changed.

    Attributes:
        images: how many were added.
        threshold_before: of the image scores.
        threshold: now.
        above_before: how many of the new photographs the detector called anomalous before.
        above: now, each by a detector that has not learnt from it.
    """

    images: int
    threshold_before: float
    threshold: float
    above_before: int
    above: int


@checked
def update(
    detector: AnomalyDetector, paths: Sequence[Path], batch_size: Count, false_alarm_rate: FalseAlarmRate
) -> Change:
    """Add photographs to what a detector learnt, and set its thresholds by them.

    The scores of the first calibration images belong to the moments of then, so the new photographs alone calibrate:
    the promise is about images like them. Each is measured by a detector that was updated with the others (see
    `cross_fit`), which makes it as new to that detector as an image to come.

    Args:
        detector: loaded; it is changed.
        paths: of good photographs.
        batch_size: photographs that are read at a time.
        false_alarm_rate: share of normal images above the thresholds.

    Raises:
        ParameterError: a method that can't be updated, or too few photographs for the rate.
        UserError: a photograph that can't be read.
    """
    needed = images_needed(false_alarm_rate)
    if len(paths) < needed:
        problem = f"{len(paths)} images calibrate a false-alarm rate of {1 / (len(paths) + 1):.3g} at best"
        raise ParameterError("false_alarm_rate", false_alarm_rate, f"{problem}; give at least {needed}, or a higher rate")
    before = detector.decision()
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    scores = torch.cat([detector(detector.read(*batch)).scores for batch in batches])
    measured = cross_fit(detector, paths, batch_size)
    detector.update(read(detector, batches))
    detector.calibrate(measured, false_alarm_rate)
    if detector.provenance is not None:
        detector.provenance = extended(detector, paths, batches, false_alarm_rate)
    return Change(
        images=len(paths),
        threshold_before=before.threshold,
        threshold=float(detector.threshold),
        above_before=int((scores > before.threshold).sum()),
        above=int((detector.calibration_scores > detector.threshold).sum()),
    )


def read(detector: AnomalyDetector, batches: Sequence[Sequence[Path]]) -> Iterator[Tensor]:
    """Yield each batch of files as images."""
    return (detector.read(*batch) for batch in batches)


@torch.no_grad()
def cross_fit(detector: AnomalyDetector, paths: Sequence[Path], batch_size: int) -> list[Measurement]:
    """Measure each photograph by a copy of the detector that was updated with the photographs of the other folds."""
    measured = []
    for fold in range(min(FOLDS, len(paths))):
        inside = paths[fold::FOLDS]
        outside = [path for number, path in enumerate(paths) if number % FOLDS != fold]
        other = copy.deepcopy(detector)
        other.update(read(other, split(outside, batch_size)))
        measured += [other.measure(images) for images in read(other, split(inside, batch_size))]
    return measured


def split(paths: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Return paths in batches."""
    return [paths[start : start + size] for start in range(0, len(paths), size)]
