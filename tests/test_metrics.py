import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torchmetrics.functional.classification import binary_average_precision

from texture_ad.errors import UserError
from texture_ad.evaluation.calibration import Decision, FalseAlarms
from texture_ad.evaluation.metrics import aupro, image_intervals, image_metrics, pixel_metrics, prediction_metrics
from texture_ad.evaluation.regions import resize_map


def brute_force_aupro(maps, masks, limit):
    """One threshold after another, one region after another, as the definition reads."""
    regions = []
    for image, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(image, labels == k) for k in range(1, count + 1)]
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        flagged = maps >= threshold
        fpr = flagged[~masks].mean()
        curve.append((fpr, np.mean([flagged[image][region].mean() for image, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x1 > limit and x0 < limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def random_case(seed, levels=None):
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 4), rng.integers(5, 11), rng.integers(5, 11))
    masks = rng.random(shape) < rng.uniform(0.05, 0.5)
    masks[0, 0, 0] = True
    masks[0, 0, 1] = False
    maps = (rng.standard_normal(shape) + masks * rng.uniform(0, 2)).astype(np.float32)
    return (maps if levels is None else np.round(maps * levels) / levels), masks


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [None, 4, 1])
def test_aupro_equals_brute_force(levels, limit):
    for seed in range(12):
        maps, masks = random_case(seed, levels)
        expected = brute_force_aupro(maps, masks, limit)
        assert aupro(maps, masks, limit) == pytest.approx(expected, abs=1e-9), seed


@pytest.mark.parametrize("levels", [None, 4])
def test_metrics_of_pixels_equal_independent_ones(levels):
    for seed in range(8):
        maps, masks = random_case(seed, levels)
        found = pixel_metrics(maps, masks, [0.5] * len(maps))
        truth, scores = masks.ravel(), maps.ravel()
        assert found["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert found["pixel_ap"] == pytest.approx(
            float(
                binary_average_precision(torch.from_numpy(1 / (1 + np.exp(-scores))), torch.from_numpy(truth).long())
            ),
            abs=1e-4,
        )
        assert found["aupro_05"] == pytest.approx(brute_force_aupro(maps, masks, 0.05), abs=1e-9)
        assert found["seg_f1"] == pytest.approx(f1_score(truth, scores > 0.5))
        low, high = found["seg_f1_interval"]
        assert low <= found["seg_f1"] <= high


def test_images_of_different_sizes_come_one_by_one():
    maps, masks = random_case(5)
    again = pixel_metrics((m for m in maps), (m for m in masks), (0.5 for _ in maps))
    assert again == pixel_metrics(maps, masks, [0.5] * len(maps))
    wide = pixel_metrics([maps[0], np.repeat(maps[0], 2, 1)], [masks[0], np.repeat(masks[0], 2, 1)])
    assert wide["pixel_auroc"] == pytest.approx(pixel_metrics(maps[:1], masks[:1])["pixel_auroc"])


def test_a_share_of_the_normal_pixels_stands_for_all(monkeypatch):
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 320, 320), bool)
    masks[:, 40:60, 50:70] = True
    # Enlarged by a power of two, as maps are: what lies between positions is smoother than what lies on them.
    noise = [resize_map(one, (320, 320)) for one in rng.standard_normal((4, 40, 40)).astype(np.float32)]
    maps = np.array(noise) + masks.astype(np.float32)
    exact = pixel_metrics(maps, masks, [1.0] * len(maps))
    monkeypatch.setattr("texture_ad.evaluation.metrics.NORMAL_PIXELS", 100_000)
    fewer = pixel_metrics(maps, masks, [1.0] * len(maps))
    assert fewer != exact
    for name in ("pixel_auroc", "pixel_ap", "aupro", "aupro_05", "seg_f1"):
        assert fewer[name] == pytest.approx(exact[name], abs=1e-2), name


def test_a_share_is_of_all_images_alike(monkeypatch):
    """Images differ: those that come last must not stand for more than the first."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((60, 20, 20)) + np.linspace(-3, 3, 60)[:, None, None]
    masks = np.zeros(maps.shape, bool)
    masks[::2, :4, :4] = True
    exact = pixel_metrics(maps, masks)
    monkeypatch.setattr("texture_ad.evaluation.metrics.NORMAL_PIXELS", 3000)
    for name in ("pixel_auroc", "aupro"):
        assert pixel_metrics(maps, masks)[name] == pytest.approx(exact[name], abs=0.03)


def test_a_test_sets_metrics_are_those_of_its_images_and_known_pixels():
    rng = np.random.default_rng(0)
    masks = [np.zeros((16, 24), bool) for _ in range(6)]
    for mask in masks[3:]:
        mask[3:9, 5:12] = True
    masks[2] = masks[5] = None  # of unknown pixels
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.7, 0.2, 0.9, 0.3, 0.8])
    maps = rng.standard_normal((6, 8, 12)).astype(np.float32)
    maps[3:, 1:5, 2:6] += 2
    rate = FalseAlarms(0.05, 0.0, 0.2, 19)
    decision = Decision(0.5, 1.0, 1, 1.0, rate, rate, 0.05, 0.05)
    predictions = {"score": scores, "label": labels, "index": np.arange(6), "anomaly_maps": maps}
    found = prediction_metrics(predictions | {"positions": None, "grid": (8, 12)}, decision, iter(masks))
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores)) and found["pixel_threshold"] == 1
    known = [0, 1, 3, 4]
    truth = np.stack([masks[i] for i in known]).ravel()
    enlarged = np.stack([resize_map(maps[i], (16, 24)) for i in known])
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, enlarged.ravel()))
    # Pixels are called anomalous in anomalous images alone.
    called = (enlarged > 1) & (scores[known] > 0.5)[:, None, None]
    assert found["seg_f1"] == pytest.approx(f1_score(truth, called.ravel()))
    assert "pixel_auroc" not in prediction_metrics(predictions, decision, None)


def test_draws_of_one_class_alone_leave_the_intervals_defined():
    scores, labels = np.array([0.1, 0.4, 0.3, 0.5]), np.array([0, 0, 0, 1])
    for low, high in image_intervals(scores, labels, 0.35).values():
        assert 0 <= low <= high <= 1
    maps = np.random.default_rng(0).standard_normal((4, 6, 6))
    masks = np.zeros(maps.shape, bool)
    masks[0] = True  # all of it
    found = pixel_metrics(maps, masks)
    for name in ("pixel_auroc", "pixel_ap", "aupro", "aupro_05"):
        low, high = found[f"{name}_interval"]
        assert 0 <= low <= high <= 1


def test_best_f1_equals_the_best_of_all_thresholds():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 30)
        scores = np.round(rng.standard_normal(30) + labels, 1)
        best = max(f1_score(labels, scores >= t) for t in scores)
        assert image_metrics(scores, labels, 0.0)["image_f1_max"] == pytest.approx(best)


def test_intervals_are_those_of_a_plain_bootstrap(monkeypatch):
    monkeypatch.setattr("texture_ad.evaluation.metrics.BOOTSTRAPS", 60)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 50)
    scores = np.round(rng.standard_normal(50) + labels, 1)
    found = image_intervals(scores, labels, 0.5)
    draws = np.random.default_rng(0).integers(50, size=(60, 50))
    for name, metric in (
        ("image_auroc", lambda d: roc_auc_score(labels[d], scores[d])),
        ("image_ap", lambda d: average_precision_score(labels[d], scores[d])),
        ("image_f1", lambda d: f1_score(labels[d], scores[d] > 0.5)),
        ("image_f1_max", lambda d: max(f1_score(labels[d], scores[d] >= t) for t in set(scores))),
    ):
        expected = np.quantile([metric(d) for d in draws], (0.025, 0.975))
        assert found[f"{name}_interval"] == pytest.approx(expected)
        low, high = found[f"{name}_interval"]
        assert low < image_metrics(scores, labels, 0.5)[name] < high
    assert set(image_intervals([1.0, 2.0], [1, 1], 0.5).values()) == {None}


def test_intervals_of_pixels_are_those_of_a_plain_bootstrap(monkeypatch):
    monkeypatch.setattr("texture_ad.evaluation.metrics.BOOTSTRAPS", 40)
    rng = np.random.default_rng(2)
    masks = np.zeros((12, 40, 40), bool)
    for i in range(8):
        masks[i, 5 : 8 + i, 10:15] = masks[i, 30:33, 30:33] = True
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 1, 1))
    maps = noise * 4 + masks * rng.uniform(0, 3, (12, 1, 1))
    found = pixel_metrics(maps, masks)
    draws = np.random.default_rng(0).integers(12, size=(40, 12))
    for name, metric in (
        ("pixel_auroc", lambda d: roc_auc_score(masks[d].ravel(), maps[d].ravel())),
        ("pixel_ap", lambda d: average_precision_score(masks[d].ravel(), maps[d].ravel())),
        ("aupro", lambda d: aupro(maps[d], masks[d], 0.3)),
        ("aupro_05", lambda d: aupro(maps[d], masks[d], 0.05)),
    ):
        expected = np.quantile([metric(d) for d in draws], (0.025, 0.975))
        assert found[f"{name}_interval"] == pytest.approx(expected, abs=2e-3), name
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_aupro_of_a_perfect_a_constant_and_an_inverted_map():
    masks = np.zeros((2, 16, 16), dtype=bool)
    masks[0, 3:6, 3:6] = True
    assert aupro(masks.astype(np.float32), masks) == pytest.approx(1)
    assert aupro(np.ones(masks.shape), masks) == pytest.approx(0.15)
    assert aupro(1 - masks.astype(np.float32), masks) == pytest.approx(0)


def test_aupro_counts_a_small_defect_as_much_as_a_large_one():
    masks = np.zeros((1, 40, 40), dtype=bool)
    masks[0, 2:4, 2:4] = masks[0, 10:30, 10:30] = True
    small, large = np.zeros((2, 1, 40, 40), dtype=np.float32)
    small[0, 2:4, 2:4] = large[0, 10:30, 10:30] = 1
    assert aupro(small, masks) == pytest.approx(aupro(large, masks))
    assert pixel_metrics(small, masks)["pixel_auroc"] < pixel_metrics(large, masks)["pixel_auroc"] - 0.3


def test_a_region_may_be_larger_than_small_integers_count():
    masks = np.zeros((1, 300, 300), dtype=bool)
    masks[0, :, :240] = True
    maps = np.where(masks, np.linspace(2, 1, 300), 0).astype(np.float32)
    assert aupro(maps, masks) == pytest.approx(1)
    maps[0, :, 120:240] = -1  # half of the only region
    assert aupro(maps, masks, 1.0) == pytest.approx(0.5)


def test_aupro_regions_touch_at_corners_but_not_across_images():
    maps = np.zeros((2, 9, 9), dtype=np.float32)
    diagonal = np.zeros((2, 9, 9), dtype=bool)
    diagonal[0, 2, 2] = diagonal[0, 3, 3] = diagonal[0, 4, 4] = True
    diagonal[0, 7, 0] = True
    maps[0, 7, 0] = 1
    # Two regions: the detected dot and the missed diagonal line, which is one region and not three.
    assert aupro(maps, diagonal, 0.01) == pytest.approx(0.5, abs=0.01)
    stacked = np.zeros((2, 9, 9), dtype=bool)
    stacked[0, :, 4] = stacked[1, 0, 4] = True
    maps = np.zeros((2, 9, 9), dtype=np.float32)
    maps[1, 0, 4] = 1
    # The same place in the next image is another region.
    assert aupro(maps, stacked, 0.01) == pytest.approx(0.5, abs=0.01)


def test_aupro_depends_on_the_order_of_scores_alone():
    maps, masks = random_case(3)
    assert aupro(maps, masks) == aupro(np.exp(maps.astype(np.float64)) * 1e6, masks)
    shuffle = np.random.default_rng(0).permutation(len(maps))
    assert aupro(maps[shuffle], masks[shuffle]) == pytest.approx(aupro(maps, masks))


@pytest.mark.parametrize("levels", [None, 2])
def test_pixel_auroc_equals_an_independent_one(levels):
    for seed in range(12):
        maps, masks = random_case(seed, levels)
        found = pixel_metrics(maps, masks)
        assert found["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
        assert found["aupro"] == aupro(maps, masks, 0.3)


@pytest.mark.parametrize("scale", [1, 1e3, 1e-6])
def test_image_metrics_equal_independent_ones_at_any_scale(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    # Far from 0..1 and with ties: torchmetrics alone would squash these.
    scores = scale * (40 + np.round(rng.standard_normal(60) + labels, 1))
    found = image_metrics(scores, labels, 40.6 * scale)
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found["image_f1"] == pytest.approx(f1_score(labels, scores > 40.6 * scale))


def test_image_metrics_at_the_threshold():
    found = image_metrics([1, 2, 3, 4], [0, 1, 0, 1], threshold=2)  # a score at the threshold is normal
    assert (found["precision"], found["recall"], found["false_positive_rate"]) == (0.5, 0.5, 0.5)
    assert (found["normal_images"], found["anomalous_images"], found["threshold"]) == (2, 2, 2.0)
    none_flagged = image_metrics([1, 2, 3, 4], [0, 1, 0, 1], threshold=9)
    assert (none_flagged["precision"], none_flagged["recall"], none_flagged["image_f1"]) == (None, 0, 0)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_the_undefined_none_and_the_json_valid(label):
    found = image_metrics([1.0, 2.0, 3.0], [label] * 3, threshold=2.5)
    assert found["image_auroc"] is None and found["image_ap"] is None
    assert (found["recall"] is None) == (label == 0)
    assert (found["false_positive_rate"] is None) == (label == 1)
    masks = np.full((1, 4, 4), bool(label))
    found |= pixel_metrics(np.random.default_rng(0).random((1, 4, 4)), masks)
    assert found["pixel_auroc"] is None and found["aupro"] is None
    json.loads(json.dumps(found, allow_nan=False))
    with pytest.raises(UserError, match="normal pixel" if label else "no defect pixel"):
        aupro(np.zeros((1, 4, 4)), masks)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(UserError, match=r"1 of 2 image scores.*number 1"):
        image_metrics([0.0, bad], [0, 1], 0.5)
    maps = np.zeros((3, 4, 4))
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, 0, 0] = True
    maps[2, 1, 1] = bad
    for metric in (aupro, pixel_metrics):
        with pytest.raises(UserError, match=r"1 of 3 anomaly maps.*number 2"):
            metric(maps, masks)


def test_other_bad_input_is_refused():
    with pytest.raises(UserError, match="equally long"):
        image_metrics([1.0, 2.0], [0], 0)
    with pytest.raises(UserError, match="equally long"):
        image_metrics([], [], 0)
    with pytest.raises(UserError, match="normal.*anomalous"):
        image_metrics([1.0, 2.0], [0, 2], 0)
    with pytest.raises(UserError, match="map's size"):
        pixel_metrics(np.zeros((2, 4, 4)), np.zeros((2, 4, 5)))
    with pytest.raises(UserError, match="fpr_limit is 0"):
        aupro(np.zeros((1, 2, 2)), np.eye(2)[None], 0)
