"""Compute detection metrics of whole images and of pixels: pure functions of scores and truth.

Undefined values are None rather than NaN, so that a run's metrics stay valid JSON.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage

from texture_ad.errors import UserError
from texture_ad.evaluation.calibration import Decision
from texture_ad.evaluation.regions import resize_map

FPR_LIMIT = 0.3
STRICT_FPR_LIMIT = 0.05
NORMAL_PIXELS = 20_000_000  # whose scores are kept, about 80 MB, and sorted in a copy
CURVE = 500  # points of an image's own curve, of which bootstraps are made
SAMPLE = 200_000  # normal pixels that choose the thresholds of these points
BOOTSTRAPS = 1000  # draws of as many images as there are

Row = tuple[Any, Any, float | None]  # a map, its mask, and the threshold of its pixels


class Predictions(TypedDict):
    """Hold what a detector says of n test images, and the truth. A method without a map has None for the last three.

    Keys:
        score: (n,) image scores.
        label: (n,) 0 normal, 1 anomalous.
        index: (n,) numbers of the test images.
        anomaly_maps: n of (H, W).
        positions: (n, k, 2) top positions on the patch map.
        grid: (h, w) of the patch map.
    """

    score: np.ndarray
    label: np.ndarray
    index: np.ndarray
    anomaly_maps: Sequence[np.ndarray] | None
    positions: np.ndarray | None
    grid: tuple[int, int] | None


def prediction_metrics(
    predictions: Predictions, decision: Decision, masks: Iterable[np.ndarray | None] | None
) -> dict[str, Any]:
    """Return the metrics of the images and, where there are maps and masks, of the pixels.

    Args:
        predictions: of all test images.
        decision: thresholds for images and pixels.
        masks: the true mask of each test image, (H, W) bool at its own resolution, to which its map is brought, or None
            where its pixels have no labels; None without masks.
    """
    metrics: dict[str, Any] = image_metrics(predictions["score"], predictions["label"], decision.threshold)
    metrics |= image_intervals(predictions["score"], predictions["label"], decision.threshold)
    maps = predictions["anomaly_maps"]
    if maps is not None and decision.pixel_threshold is not None:
        metrics["pixel_threshold"] = decision.pixel_threshold
    if maps is not None and masks is not None:
        thresholds = [decision.pixel_threshold_of(float(score)) for score in predictions["score"]]
        metrics |= metrics_at_masks(maps, masks, thresholds)
    return metrics


def metrics_at_masks(
    maps: Iterable[np.ndarray], masks: Iterable[np.ndarray | None], thresholds: Iterable[float] | None = None
) -> dict[str, float | list[float] | None]:
    """Return `pixel_metrics` of maps (h, w), brought to their masks' sizes; those without a mask don't count."""
    known = ((one, mask, threshold) for one, mask, threshold in _rows(maps, masks, thresholds) if mask is not None)
    return _pixel_metrics(_collect((resize_map(one, mask.shape), mask, threshold) for one, mask, threshold in known))


def _rows(maps: Iterable[Any], masks: Iterable[Any], thresholds: Iterable[float] | None) -> Iterator[Row]:
    """Yield each map with its mask and its threshold, None without thresholds."""
    if thresholds is None:
        return ((one, mask, None) for one, mask in zip(maps, masks, strict=True))
    return zip(maps, masks, thresholds, strict=True)


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
        `image_auroc` and `image_ap` over all thresholds; `image_f1_max` at the best one, which test labels choose;
        `image_f1`, `precision`, `recall` and `false_positive_rate` at `threshold`, all in [0, 1];
        `threshold`, `normal_images` and `anomalous_images` beside them. A value that the test set leaves undefined is
        None: AUROC and AP where one class is missing, F1 and recall without anomalous
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
        "image_f1_max": _best_f1(scores, truth) if positives else None,
        "image_f1": 2 * hits / (hits + false_alarms + positives) if positives else None,
        "precision": hits / (hits + false_alarms) if hits + false_alarms else None,
        "recall": hits / positives if positives else None,
        "false_positive_rate": false_alarms / negatives if negatives else None,
        "threshold": float(threshold),
        "normal_images": negatives,
        "anomalous_images": positives,
    }


def image_intervals(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, list[float] | None]:
    """Return 95 % intervals of `image_auroc`, `image_ap`, `image_f1` and `image_f1_max`, by bootstrap over the images.

    Each is under the metric's name with "_interval", None where the metric is.

    Args:
        scores: (n,) finite.
        labels: (n,) 0 normal, 1 anomalous.
        threshold: an image is called anomalous where its score is greater.
    """
    scores, labels = check_scores(scores, labels)
    truth = labels.astype(bool)
    names = ("image_auroc_interval", "image_ap_interval", "image_f1_interval", "image_f1_max_interval")
    if not 0 < truth.sum() < len(truth):
        return dict.fromkeys(names)
    distinct, ranks = np.unique(-scores, return_inverse=True)  # descending
    called = -distinct > threshold
    draws = []
    for chosen in _draws(len(scores)):
        positive, negative = (
            np.bincount(ranks[chosen][truth[chosen] == kind], minlength=len(distinct)) for kind in (True, False)
        )
        if not positive.any() or not negative.any():
            continue
        hits = positive.cumsum()
        alarms = negative.cumsum()
        auroc = np.sum(negative * (hits - positive / 2)) / (hits[-1] * alarms[-1])
        precision = hits / np.maximum(hits + alarms, 1)
        found = positive[called].sum()
        f1 = _f1(found, negative[called].sum(), hits[-1] - found)
        best = np.max(2 * hits / (hits + alarms + hits[-1]))
        draws.append((auroc, np.sum(positive * precision) / hits[-1], f1, best))
    return {name: _interval(values) for name, values in zip(names, np.transpose(draws), strict=True)}


def _draws(count: int) -> np.ndarray:
    """Return the same BOOTSTRAPS draws with replacement, (BOOTSTRAPS, count), at every call."""
    return np.random.default_rng(0).integers(count, size=(BOOTSTRAPS, count))


def _interval(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.025, 0.975))]


def _f1(hits: float, false_alarms: float, missed: float) -> float:
    total = 2 * hits + false_alarms + missed
    return float(2 * hits / total) if total else 0.0


def _best_f1(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the highest F1 over all thresholds."""
    order = np.argsort(-scores)
    last = _last_of_equal(scores[order])
    hits = truth[order].cumsum()[last]
    return float(np.max(2 * hits / (last + 1 + truth.sum())))


def _ranking_metrics(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    # Imported here: it takes seconds, and predict, which draws with this module's names, has no use for it.
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # torchmetrics puts scores outside [0, 1] through a sigmoid, which makes large scores equal. Both metrics depend on
    # the order alone, so they get the scores' ranks.
    distinct, inverse = np.unique(scores, return_inverse=True)
    ranks = torch.from_numpy(inverse / distinct.size)
    target = torch.from_numpy(truth).long()
    return float(binary_auroc(ranks, target)), float(binary_average_precision(ranks, target))


def pixel_metrics(
    maps: Iterable[ArrayLike], masks: Iterable[ArrayLike], thresholds: Iterable[float] | None = None
) -> dict[str, float | list[float] | None]:
    """Measure how well the anomaly maps part the pixels of defects from all others.

    Images may be of different sizes and come one by one; of each, only its pixels' scores are kept. The values are
    exact while no more than NORMAL_PIXELS normal pixels come; beyond, a half, a quarter, ... of them, drawn at random,
    stands for all.
    Intervals are 95 % bootstraps over images, of curves of CURVE points.
    The AUROC is the Mann-Whitney statistic, computed from the same sort as AUPRO: torchmetrics' exact AUROC needs
    several 64-bit copies of every pixel, and its binned one isn't exact.

    Args:
        maps: n anomaly maps (H, W), finite scores, any range, higher is more anomalous.
        masks: n of (H, W) bool, True = defect; all False for normal images. Masked entries of masked arrays don't
            count.
        thresholds: n; a pixel is called anomalous where its score is greater than that of its map. None for none.

    Returns:
        `pixel_auroc`, `pixel_ap`, `aupro` (FPR <= 0.3) and `aupro_05` (FPR <= 0.05) in [0, 1]; `seg_f1` at the
        thresholds; the interval of each under its name with "_interval". None where no pixel or every pixel is a
        defect, or without thresholds.

    Raises:
        UserError: shapes that differ, scores that are not finite.
    """
    return _pixel_metrics(_collect(_rows(maps, masks, thresholds)))


def _pixel_metrics(pixels: "_Pixels") -> dict[str, float | list[float] | None]:
    if not pixels.defects or not pixels.normals:
        names = ("pixel_auroc", "pixel_ap", "aupro", "aupro_05", "seg_f1")
        return dict.fromkeys((*names, *(f"{name}_interval" for name in names)))
    steps = _rank(pixels)
    mean_false_positives = (steps.above.mean() + steps.not_below.mean()) / 2
    seg_f1 = interval = None
    if pixels.counts:
        counts = np.array(pixels.counts)
        seg_f1 = _f1(*counts.sum(0))
        interval = _interval(np.array([_f1(*counts[chosen].sum(0)) for chosen in _draws(len(counts))]))
    return {
        "pixel_auroc": float(1 - mean_false_positives / steps.normals),
        "pixel_ap": _average_precision(steps),
        "aupro": _area(steps, FPR_LIMIT),
        "aupro_05": _area(steps, STRICT_FPR_LIMIT),
        **_curve_intervals(pixels),
        "seg_f1": seg_f1,
        "seg_f1_interval": interval,
    }


def aupro(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike], fpr_limit: float = FPR_LIMIT) -> float:
    """Return the area under the per-region-overlap curve up to a false positive rate, normalised to [0, 1].

    Each threshold gives a point: the share of normal pixels above it, and the share of each defect region
    above it, averaged over the regions, so that small defects count as much as large ones. A region is an
    8-connected component of a mask. Exact: every distinct score is a threshold, equal scores are one step (a
    straight line), and the curve is interpolated linearly at the limit. A constant map gives `fpr_limit / 2`.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.

    Args:
        maps: n anomaly maps (H, W), finite scores, any range, higher is more anomalous.
        masks: n of (H, W) bool, True = defect.
        fpr_limit: in (0, 1].

    Raises:
        UserError: shapes that differ, scores that are not finite, no defect pixel, no normal pixel, a limit
            outside (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise UserError(f"aupro: fpr_limit is {fpr_limit}; give a number above 0 and up to 1")
    pixels = _collect(_rows(maps, masks, None))
    if not pixels.defects or not pixels.normals:
        found = "no normal pixel" if pixels.defects else "no defect pixel"
        raise UserError(f"aupro: the masks hold {found}; give masks of a defect on a normal background")
    return _area(_rank(pixels), fpr_limit)


class _Pixels(NamedTuple):
    """Hold what the metrics of pixels need of all images.

    Attributes:
        normal: scores of normal pixels, all or a share, of each image.
        normals: how many normal pixels there are.
        defective: scores of the pixels of defects, of each image.
        areas: pixels of the region that each of them belongs to.
        regions: how many regions there are.
        counts: of each image, pixels called anomalous rightly, wrongly, and missed; none without thresholds.
    """

    normal: list[np.ndarray]
    normals: int
    defective: list[np.ndarray]
    areas: list[np.ndarray]
    regions: int
    counts: list[tuple[int, int, int]]

    @property
    def defects(self) -> int:
        return sum(map(len, self.defective))


class _Steps(NamedTuple):
    """Hold, for every defect pixel by descending score, what is flagged when the threshold reaches it."""

    scores: np.ndarray  # (m,)
    weights: np.ndarray  # (m,) 1 / (pixels of its region * number of regions); they sum to 1
    above: np.ndarray  # (m,) normal pixels with a higher score
    not_below: np.ndarray  # (m,) normal pixels with a higher or the same score
    normals: int


def _collect(rows: Iterable[Row]) -> _Pixels:
    normal: list[np.ndarray] = []
    defective = []
    areas = []
    counts = []
    bad = []
    normals = regions = total = 0
    share = 1.0
    generator = np.random.default_rng(0)
    for number, (scores, mask, threshold) in enumerate(rows):
        counted = ~np.ma.getmaskarray(np.ma.asarray(mask))
        scores, mask = _checked(scores, mask)
        mask = mask & counted
        total += 1
        if not np.isfinite(scores).all():
            bad.append(number)
            continue
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        inside = labels[mask]
        defective.append(scores[mask])
        areas.append((np.bincount(inside)[inside] if count else inside).astype(np.int32))
        regions += count
        outside = scores[counted & ~mask]
        normals += len(outside)
        normal.append(outside if share == 1 else _drawn(outside, share, generator))
        while sum(map(len, normal)) > NORMAL_PIXELS:
            normal = [_drawn(values, 0.5, generator) for values in normal]
            share /= 2
        if threshold is not None:
            hits = int((defective[-1] > threshold).sum())
            counts.append((hits, int((outside > threshold).sum()), len(inside) - hits))
    if bad:
        raise UserError(
            f"pixel metrics: {len(bad)} of {total} anomaly maps hold scores that are not finite (the "
            f"first is number {bad[0]}); the detector is broken, train it again with a lower learning rate"
        )
    return _Pixels(normal, normals, defective, areas, regions, counts)


def _drawn(values: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Return a random share of values (n,); every second or fourth one would lie on the grid of enlarged maps."""
    return values[generator.random(len(values), np.float32) < share]


def _checked(scores: ArrayLike, mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores)
    mask = np.asarray(mask, dtype=bool)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32)
    if scores.ndim != 2 or scores.shape != mask.shape or not scores.size:
        raise UserError(
            f"pixel metrics: a map {scores.shape} and its mask {mask.shape} must both be (H, W) and not empty; "
            "give one mask of the map's size for each map"
        )
    return scores, mask


def _rank(pixels: _Pixels) -> _Steps:
    # The curves bend only at defect pixels' scores. So the many normal pixels are sorted as bare values,
    # several times faster than sorting their indices, and counted; the few defect pixels carry the weights.
    normal = np.concatenate(pixels.normal)
    normal.sort()
    each = pixels.normals / normal.size
    scores = np.concatenate(pixels.defective)
    weights = 1 / (np.concatenate(pixels.areas) * float(pixels.regions))
    order = np.argsort(scores)
    scores = scores[order]
    return _Steps(
        scores=scores[::-1],
        weights=weights[order][::-1],
        above=each * (normal.size - np.searchsorted(normal, scores, side="right"))[::-1],
        not_below=each * (normal.size - np.searchsorted(normal, scores, side="left"))[::-1],
        normals=pixels.normals,
    )


def _curve_intervals(pixels: _Pixels) -> dict[str, list[float]]:
    """Return bootstrap intervals over images of the metrics that are areas below a curve.

    A draw's curve is the sum of its images' curves. These have common thresholds: CURVE scores of normal pixels, by
    which the false positive rate grows from 0 to 1, in steps that are small where it is, and as many of defects, by
    which the recall does in equal steps.
    """
    stride = 1 + sum(map(len, pixels.normal)) // SAMPLE
    normal = np.sort(np.concatenate([values[::stride] for values in pixels.normal]))
    thresholds = normal[np.round((1 - np.linspace(1, 0, CURVE) ** 2) * (len(normal) - 1)).astype(int)]
    defective = np.quantile(np.concatenate(pixels.defective), np.linspace(0, 1, CURVE), method="nearest")
    thresholds = np.union1d(thresholds, defective)
    false_positives = np.array([_reached(values, None, thresholds) for values in pixels.normal])
    false_positives = false_positives * (pixels.normals / false_positives[:, -1].sum())  # where a share stands for all
    hits = np.array([_reached(scores, None, thresholds) for scores in pixels.defective], float)
    pairs = zip(pixels.defective, pixels.areas, strict=True)
    overlaps = np.array([_reached(scores, 1 / areas, thresholds) for scores, areas in pairs])
    found = []
    times = np.array([np.bincount(chosen, minlength=len(hits)) for chosen in _draws(len(hits))], float)  # drawn
    for wrong, right, overlap in zip(times @ false_positives, times @ hits, times @ overlaps, strict=True):
        if wrong[-1] and right[-1]:
            fpr, recall, pro = wrong / wrong[-1], right / right[-1], overlap / overlap[-1]
            precision = right / np.maximum(right + wrong, 1)
            auroc = np.sum(np.diff(fpr, prepend=0) * (recall + np.append(0, recall[:-1]))) / 2
            areas = [_area_below(fpr, pro, limit) for limit in (FPR_LIMIT, STRICT_FPR_LIMIT)]
            found.append([auroc, np.sum(np.diff(recall, prepend=0) * precision), *areas])
    names = ("pixel_auroc", "pixel_ap", "aupro", "aupro_05")
    return {f"{name}_interval": _interval(values) for name, values in zip(names, np.transpose(found), strict=True)}


def _reached(scores: np.ndarray, weights: np.ndarray | None, thresholds: np.ndarray) -> np.ndarray:
    """Return how many scores, or which weight of them, reach each threshold, from the last to the first, then all.

    Args:
        scores: (n,).
        weights: (n,), None for 1 each.
        thresholds: (m,) ascending.

    Returns:
        (m + 1,), ascending.
    """
    below = np.searchsorted(thresholds, scores, side="right")
    return np.bincount(below, weights, len(thresholds) + 1)[::-1].cumsum()


def _area_below(fpr: np.ndarray, pro: np.ndarray, limit: float) -> float:
    """Return the area below a curve up to a false positive rate, divided by the latter."""
    x = np.linspace(0, limit, CURVE)
    y = np.interp(x, np.append(0, fpr), np.append(0, pro))
    return float(np.sum(y[1:] + y[:-1]) / 2 / (CURVE - 1))


def _last_of_equal(scores: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def _average_precision(steps: _Steps) -> float:
    last = _last_of_equal(steps.scores)
    hits = last + 1.0
    return float(np.sum(np.diff(hits, prepend=0) * hits / (hits + steps.not_below[last])) / hits[-1])


def _area(steps: _Steps, fpr_limit: float) -> float:
    last = _last_of_equal(steps.scores)
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
