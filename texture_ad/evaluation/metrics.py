"""Compute detection metrics of whole images and of pixels: pure functions of scores and truth.

Undefined values are None rather than NaN, so that a run's metrics stay valid JSON.
"""

from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from texture_ad.errors import UserError

FPR_LIMIT = 0.3

# The middle plane alone: 8-connected within an image, never from one image to the next.
_EIGHT_CONNECTED = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(bool)


class Predictions(TypedDict):
    """Hold what a detector says of n test images, and the truth. A method without a map has None for the last three.

    Keys:
        score: (n,) image scores.
        label: (n,) 0 normal, 1 anomalous.
        index: (n,) numbers of the test images.
        mask: (n, H, W) bool, True = defect.
        anomaly_maps: (n, H, W).
        positions: (n, k, 2) top positions on the patch map.
        grid: (h, w) of the patch map.
    """

    score: np.ndarray
    label: np.ndarray
    index: np.ndarray
    mask: np.ndarray
    anomaly_maps: np.ndarray | None
    positions: np.ndarray | None
    grid: tuple[int, int] | None


def prediction_metrics(predictions: Predictions, threshold: float, known: np.ndarray) -> dict[str, float | int | None]:
    """Return the metrics of the images and, where there are maps and masks, of the pixels.

    Args:
        predictions: of all test images.
        threshold: an image is called anomalous where its score is greater.
        known: (n,) bool, whether each image's pixels have labels: an anomalous image without a mask has none.
    """
    metrics = image_metrics(predictions["score"], predictions["label"], threshold)
    if predictions["anomaly_maps"] is not None and predictions["label"][known].any():
        metrics |= pixel_metrics(predictions["anomaly_maps"][known], predictions["mask"][known])
    return metrics


def outcome(anomalous: bool, label: int) -> str:
    """Return what a verdict is worth: "correct", "false alarm" or "missed".

    Args:
        anomalous: whether the image is called anomalous.
        label: 0 normal, 1 anomalous.
    """
    if anomalous == bool(label):
        return "correct"
    return "false alarm" if anomalous else "missed"


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return image scores (n,) as float64 and labels (n,) as an array, checked.

    Raises:
        UserError: scores that are empty or not finite, labels of another shape or other than 0 and 1.
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
        raise UserError(
            f"image metrics: scores {scores.shape} and labels {labels.shape} must be two equally long, "
            "non-empty vectors; give one label for each score"
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise UserError(
            f"image metrics: {bad.size} of {scores.size} image scores are not finite (the first is number "
            f"{bad[0]}); the detector is broken, train it again with a lower learning rate"
        )
    if not np.isin(labels, (0, 1)).all():
        found = np.unique(labels)[:5].tolist()
        raise UserError(f"image metrics: labels are {found}; give 0 (normal) or 1 (anomalous)")
    return scores, labels


def image_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float | int | None]:
    """Measure how well the image scores part the anomalous images from the normal ones.

    Args:
        scores: (n,) finite, any range, higher is more anomalous.
        labels: (n,) 0 normal, 1 anomalous.
        threshold: an image is called anomalous where its score is greater.

    Returns:
        `image_auroc` and `image_ap` over all thresholds; `image_f1`, `precision`, `recall` and `false_positive_rate`
        at `threshold`, all in [0, 1]; `threshold`, `normal_images` and `anomalous_images` beside them. A value that the
        test set leaves undefined is None: AUROC and AP where one class is missing, F1 and recall without anomalous
        images, the false positive rate without normal ones, precision where nothing is called anomalous.

    Raises:
        UserError: scores that are empty or not finite, labels of another shape or other than 0 and 1.
    """
    scores, labels = check_scores(scores, labels)
    truth = labels.astype(bool)
    flagged = scores > threshold
    positives = int(truth.sum())
    negatives = int((~truth).sum())
    hits = int((flagged & truth).sum())
    false_alarms = int((flagged & ~truth).sum())
    auroc, average_precision = _ranking_metrics(scores, truth) if positives and negatives else (None, None)
    return {
        "image_auroc": auroc,
        "image_ap": average_precision,
        "image_f1": 2 * hits / (hits + false_alarms + positives) if positives else None,
        "precision": hits / (hits + false_alarms) if hits + false_alarms else None,
        "recall": hits / positives if positives else None,
        "false_positive_rate": false_alarms / negatives if negatives else None,
        "threshold": float(threshold),
        "normal_images": negatives,
        "anomalous_images": positives,
    }


def _ranking_metrics(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    # torchmetrics puts scores outside [0, 1] through a sigmoid, which makes large scores equal. Both metrics depend on
    # the order alone, so they get the scores' ranks.
    distinct, inverse = np.unique(scores, return_inverse=True)
    ranks = torch.from_numpy(inverse / distinct.size)
    target = torch.from_numpy(truth).long()
    return float(binary_auroc(ranks, target)), float(binary_average_precision(ranks, target))


def pixel_metrics(maps: ArrayLike, masks: ArrayLike) -> dict[str, float | None]:
    """Measure how well the anomaly maps part the pixels of defects from all others, over all thresholds.

    Both values are exact. The AUROC is the Mann-Whitney statistic, computed from the same sort as AUPRO:
    torchmetrics' exact AUROC needs several 64-bit copies of every pixel, and its binned one isn't exact.

    Args:
        maps: anomaly maps (n, H, W), finite scores, any range, higher is more anomalous.
        masks: (n, H, W) bool, True = defect; all False for normal images.

    Returns:
        `pixel_auroc` and `aupro` (FPR <= 0.3) in [0, 1]; both None where no pixel or every pixel is a defect.

    Raises:
        UserError: shapes that differ, scores that are not finite.
    """
    maps, masks = _checked(maps, masks)
    if not masks.any() or masks.all():
        return {"pixel_auroc": None, "aupro": None}
    steps = _rank(maps, masks)
    mean_false_positives = (steps.above.mean() + steps.not_below.mean()) / 2
    return {
        "pixel_auroc": float(1 - mean_false_positives / steps.normals),
        "aupro": _area(steps, FPR_LIMIT),
    }


def aupro(maps: ArrayLike, masks: ArrayLike, fpr_limit: float = FPR_LIMIT) -> float:
    """Return the area under the per-region-overlap curve up to a false positive rate, normalised to [0, 1].

    Each threshold gives a point: the share of normal pixels above it, and the share of each defect region
    above it, averaged over the regions, so that small defects count as much as large ones. A region is an
    8-connected component of a mask. Exact: every distinct score is a threshold, equal scores are one step (a
    straight line), and the curve is interpolated linearly at the limit. A constant map gives `fpr_limit / 2`.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.

    Args:
        maps: anomaly maps (n, H, W), finite scores, any range, higher is more anomalous.
        masks: (n, H, W) bool, True = defect.
        fpr_limit: in (0, 1].

    Raises:
        UserError: shapes that differ, scores that are not finite, no defect pixel, no normal pixel, a limit
            outside (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise UserError(f"aupro: fpr_limit is {fpr_limit}; give a number above 0 and up to 1")
    maps, masks = _checked(maps, masks)
    if not masks.any() or masks.all():
        found = "no normal pixel" if masks.any() else "no defect pixel"
        raise UserError(f"aupro: the masks hold {found}; give masks of a defect on a normal background")
    return _area(_rank(maps, masks), fpr_limit)


class _Steps(NamedTuple):
    """Hold, for every defect pixel by descending score, what is flagged when the threshold reaches it."""

    scores: np.ndarray  # (m,)
    weights: np.ndarray  # (m,) 1 / (pixels of its region * number of regions); they sum to 1
    above: np.ndarray  # (m,) normal pixels with a higher score
    not_below: np.ndarray  # (m,) normal pixels with a higher or the same score
    normals: int


def _checked(maps: ArrayLike, masks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    maps = np.asarray(maps)
    masks = np.asarray(masks, dtype=bool)
    if maps.dtype not in (np.float32, np.float64):
        maps = maps.astype(np.float32)
    if maps.ndim != 3 or maps.shape != masks.shape or not maps.size:
        raise UserError(
            f"pixel metrics: maps {maps.shape} and masks {masks.shape} must both be (n, H, W) and not empty; "
            "give one mask of the map's size for each map"
        )
    # Image by image: a mask of all the pixels at once would be another large array.
    bad = [i for i, one in enumerate(maps) if not np.isfinite(one).all()]
    if bad:
        raise UserError(
            f"pixel metrics: {len(bad)} of {len(maps)} anomaly maps hold scores that are not finite (the "
            f"first is number {bad[0]}); the detector is broken, train it again with a lower learning rate"
        )
    return maps, masks


def _rank(maps: np.ndarray, masks: np.ndarray) -> _Steps:
    # The curves bend only at defect pixels' scores. So the many normal pixels are sorted as bare values,
    # several times faster than sorting their indices, and counted; the few defect pixels carry the weights.
    normal = maps[~masks]
    normal.sort()
    defective = masks.any(axis=(1, 2))
    regions, count = ndimage.label(masks[defective], structure=_EIGHT_CONNECTED)
    regions = regions[masks[defective]]
    scores = maps[masks]
    weights = 1 / (np.bincount(regions)[regions] * float(count))
    order = np.argsort(scores)
    scores = scores[order]
    return _Steps(
        scores=scores[::-1],
        weights=weights[order][::-1],
        above=normal.size - np.searchsorted(normal, scores, side="right")[::-1],
        not_below=normal.size - np.searchsorted(normal, scores, side="left")[::-1],
        normals=normal.size,
    )


def _area(steps: _Steps, fpr_limit: float) -> float:
    last = np.flatnonzero(np.append(steps.scores[1:] != steps.scores[:-1], True))  # of equal scores
    overlap = np.cumsum(steps.weights)[last]
    # From one defect score to the next the overlap stands still while the FPR grows; at a score both grow.
    fpr = np.column_stack([steps.above[last], steps.not_below[last]]).ravel() / steps.normals
    pro = np.column_stack([np.append(0, overlap[:-1]), overlap]).ravel()
    fpr = np.concatenate([[0], fpr, [1]])
    pro = np.concatenate([[0], pro, [1]])
    end = np.searchsorted(fpr, fpr_limit, side="right")
    if end < fpr.size:
        share = (fpr_limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
        at_limit = pro[end - 1] + share * (pro[end] - pro[end - 1])
        fpr = np.append(fpr[:end], fpr_limit)
        pro = np.append(pro[:end], at_limit)
    return float(np.sum(np.diff(fpr) * (pro[1:] + pro[:-1])) / 2 / fpr_limit)
