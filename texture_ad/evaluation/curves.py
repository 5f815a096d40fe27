"""Compute the curves and bins that charts of the image scores draw.

scikit-learn is imported where it is used, so that a run without pictures does not wait for it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from texture_ad.errors import UserError
from texture_ad.evaluation.metrics import check_scores

BINS = 30


class Curve(NamedTuple):
    """Hold the points of a curve over all thresholds, both coordinates in [0, 1]."""

    x: np.ndarray  # (m,)
    y: np.ndarray  # (m,)


class ScoreBins(NamedTuple):
    """Hold how many images of each class have a score in each bin."""

    edges: np.ndarray  # (BINS + 1,)
    normal: np.ndarray  # (BINS,)
    anomalous: np.ndarray  # (BINS,)


def bin_scores(scores: ArrayLike, labels: ArrayLike) -> ScoreBins:
    """Count the image scores (n,) of both classes, labels (n,) 0 normal and 1 anomalous, in bins of equal width.

    Raises:
        UserError: scores and labels that `check_scores` refuses.
    """
    scores, labels = check_scores(scores, labels)
    edges = np.histogram_bin_edges(scores, bins=BINS)
    normal, anomalous = (np.histogram(scores[labels == label], edges)[0] for label in (0, 1))
    return ScoreBins(edges, normal, anomalous)


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return the true positive rate over the false positive rate of image scores (n,) with labels (n,).

    Raises:
        UserError: scores and labels that `check_scores` refuses, or one class is missing.
    """
    from sklearn import metrics

    scores, labels = _of_both_classes(scores, labels)
    false_positive_rates, true_positive_rates, _ = metrics.roc_curve(labels, scores)
    return Curve(false_positive_rates, true_positive_rates)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Return the precision over the recall of image scores (n,) with labels (n,).

    Raises:
        UserError: scores and labels that `check_scores` refuses, or one class is missing.
    """
    from sklearn import metrics

    scores, labels = _of_both_classes(scores, labels)
    precisions, recalls, _ = metrics.precision_recall_curve(labels, scores)
    return Curve(recalls, precisions)


def _of_both_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = check_scores(scores, labels)
    if len(np.unique(labels)) < 2:
        raise UserError(f"all {labels.size} images are of one class; a ROC curve needs normal and anomalous ones")
    return scores, labels
