"""From scores to a decision: what thresholds promise, levels, masks and regions, the result of a photograph."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import untrained_detector
from scipy import ndimage
from scipy.stats import binomtest

from texture_ad.deploy.results import Result, decide
from texture_ad.errors import ParameterError, UserError
from texture_ad.evaluation.calibration import conformal_threshold, false_alarms, images_needed
from texture_ad.evaluation.regions import find_regions, resize_map
from texture_ad.methods.base import Prediction
from texture_ad.methods.evaluation import Evaluation
from texture_ad.methods.registry import load

# --- thresholds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (20, 0.05), (40, 0.05), (57, 0.1), (99, 0.01), (9, 0.5)])
def test_the_promised_rate_holds_whatever_the_scores_are(count, rate):
    # New normal images come above the threshold at most at the rate, and at least at the rate less 1 / (n + 1).
    generator = torch.Generator().manual_seed(count)
    above = trials = 0
    for kind in (lambda x: x, torch.exp, lambda x: x.pow(3)):
        for scores in kind(torch.randn(300, count + 40, generator=generator)):
            above += int((scores[count:] > conformal_threshold(scores[:count], rate)).sum())
            trials += 40
    assert rate - 1 / (count + 1) - 0.012 < above / trials < rate + 0.012


@pytest.mark.parametrize("percent", [1, 3, 5, 7, 10, 15, 20, 29, 30, 45, 50])
def test_the_threshold_is_the_score_of_the_rank_that_exact_fractions_give(percent):
    rate = Fraction(percent, 100)
    for count in range(1, 200):
        assert images_needed(1 / (count + 1)) == count
        rank = min(math.ceil((count + 1) * (1 - rate)), count)
        assert conformal_threshold(torch.arange(1.0, count + 1).flip(0), percent / 100) == rank


def test_more_false_alarms_than_chance_gives_are_told():
    generator = torch.Generator().manual_seed(0)
    unlikely = 0
    for scores in torch.rand(2000, 39 + 50, generator=generator):
        told = false_alarms(scores[:39], conformal_threshold(scores[:39], 0.05))
        unlikely += told.unlikely(int((scores[39:] > conformal_threshold(scores[:39], 0.05)).sum()), 50)
    assert unlikely <= 0.015 * 2000  # of images of one kind, at most one time in a hundred
    told = false_alarms(torch.arange(10.0), 9.0)
    assert told.unlikely(45, 50) and not told.unlikely(5, 50) and not told.unlikely(0, 50)
    assert not false_alarms(torch.arange(10.0), -1.0).unlikely(50, 50)


def test_a_threshold_below_all_scores_promises_nothing():
    told = false_alarms(torch.arange(20.0), -1.0)
    assert told.expected == told.high == 1 and told.low == pytest.approx(0.025 ** (1 / 20))
    assert false_alarms(torch.zeros(0), 0.0)[:3] == (1, 0, 1)


@pytest.mark.parametrize("count", [3, 19, 45])
def test_the_interval_holds_the_true_rate_as_often_as_it_says(count):
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(500, count, generator=generator)  # of which the share above t is 1 - t
    held = 0
    for one in scores:
        threshold = conformal_threshold(one, 0.1)
        told = false_alarms(one, threshold)
        held += told.low <= 1 - threshold <= told.high
    assert binomtest(held, len(scores), 0.95).pvalue > 0.001
    assert told.expected == pytest.approx(max(np.floor((count + 1) * 0.1 + 1e-9), 1) / (count + 1))


def test_too_few_images_for_the_rate_give_their_maximum_and_say_what_is_needed():
    detector = untrained_detector()
    assert images_needed(0.05) == 19 and images_needed(0.01) == 99 and images_needed(0.5) == 1
    for count in (18, 19):
        scores = torch.arange(float(count))
        detector.calibrate(scores, scores, 0.05, 0.05)
        assert detector.decision().threshold == count - 1
        assert ("a rate of 0.05 needs 19 of them" in detector.decision().promise()) == (count == 18)
    share = "5.0% (95% interval 0.1% to 17.6%)"
    pixels = f"{share} to have a pixel above the pixel threshold, which is marked only in images called anomalous"
    told = f"of normal images {share} are expected above the threshold, and {pixels}; by 19 calibration images"
    assert detector.decision().promise() == told
    assert "and 20.0% (" in detector.decision(pixel_threshold=15.0).promise()
    assert detector.decision(pixel_false_alarm_rate=0.05).promise() == told
    few = detector.decision(pixel_false_alarm_rate=0.01)
    assert few.promise() == f"{told}; the pixel threshold is their maximum, since a rate of 0.01 needs 99 of them"
    assert few.pixel_images_needed == 99 and not few.images_needed


def test_another_decision_needs_no_training(tmp_path):
    detector = untrained_detector()
    scores = torch.arange(100.0)
    detector.calibrate(scores, 10 * scores, 0.05, 0.1)
    detector.save(tmp_path / "detector.pt")
    loaded = load(tmp_path / "detector.pt")
    assert loaded.decision() == detector.decision()
    assert (loaded.decision().threshold, loaded.decision().pixel_threshold) == (95, 900)
    other = loaded.decision(false_alarm_rate=0.2)
    assert (other.threshold, other.pixel_threshold) == (80, 900)
    assert loaded.decision(pixel_false_alarm_rate=0.3).pixel_threshold == 700
    assert other.false_alarms.expected == pytest.approx(20 / 101)
    given = loaded.decision(threshold=49.5, pixel_threshold=3)
    assert (given.threshold, given.pixel_threshold, given.false_alarm_rate) == (49.5, 3, None)
    assert given.false_alarms.expected == pytest.approx(51 / 101)
    assert given.pixel_false_alarms.expected == pytest.approx(100 / 101)
    assert loaded.decision(threshold=-1).false_alarms.expected == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_alarm_rate": 0}, "false_alarm_rate=0: expected a number above 0 and at most 0.5"),
        ({"threshold": float("nan")}, r"threshold=nan: expected a number from -3e\+38 to 3e\+38"),
        ({"threshold": 1.7e308}, r"threshold=1.7e\+308: expected a number from -3e\+38 to 3e\+38"),
        ({"pixel_threshold": -1e39}, r"pixel_threshold=-1e\+39: expected a number from"),
        ({"min_area": 0}, "min_area=0: expected an integer of at least 1"),
        ({"threshold": 3, "false_alarm_rate": 0.1}, "false_alarm_rate=0.1: sets a threshold, which is given as 3"),
        ({"pixel_threshold": 3, "pixel_false_alarm_rate": 0.1}, "pixel_false_alarm_rate=0.1: sets a threshold"),
    ],
)
def test_decisions_that_make_no_sense(arguments, message):
    with pytest.raises(ParameterError, match=message):
        untrained_detector().decision(**arguments)


def test_a_method_without_maps_has_no_threshold_of_pixels():
    detector = untrained_detector()
    detector.calibration_maxima = torch.zeros(0)
    detector.calibrate(torch.arange(19.0), None, 0.05, 0.2)
    assert detector.decision().promise() == (
        "of normal images 5.0% (95% interval 0.1% to 17.6%) are expected above the threshold; by 19 calibration images"
    )
    for name in ("pixel_threshold", "pixel_false_alarm_rate"):
        with pytest.raises(ParameterError, match=f"{name}=0.1: method fusion has no anomaly map"):
            detector.decision(**{name: 0.1})
    with pytest.raises(ParameterError, match="pixel_threshold=0: method fusion has no anomaly map"):
        detector.decision(pixel_threshold=0)


def test_scores_that_are_not_finite_set_no_threshold():
    with pytest.raises(UserError, match="not finite"):
        conformal_threshold(torch.tensor([1.0, float("nan")]), 0.05)


def test_levels_are_readable():
    detector = untrained_detector()
    detector.calibrate(torch.randn(50, generator=torch.Generator().manual_seed(0)), None, 0.1, 0.2)
    decision = detector.decision()
    scores = [*np.linspace(-5, 5, 101).tolist(), 1e3, 1e6]
    levels = [decision.level(score) for score in scores]
    assert all(a < b for a, b in zip(levels, levels[1:], strict=False)) and levels[0] > 0 and levels[-1] < 1
    assert decision.level(decision.threshold) == 0.5 and not decision.is_anomalous(decision.threshold)
    deviation = float(detector.calibration_scores.std(unbiased=False))
    for away in (-2, 1, 3):
        expected = 0.5 + 0.5 * away / (1 + abs(away))
        assert decision.level(decision.threshold + away * deviation) == pytest.approx(expected)
    assert [level > 0.5 for level in levels] == [decision.is_anomalous(score) for score in scores]
    assert (detector.decision(threshold=3e38).level(0), detector.decision(threshold=-3e38).level(0)) == (0, 1)


@pytest.mark.parametrize("scores", [torch.full((20,), 3.0), torch.zeros(20), torch.zeros(0)])
def test_equal_scores_leave_levels_that_can_be_read(scores):
    detector = untrained_detector()
    detector.calibration_scores = scores
    decision = detector.decision(threshold=3)
    levels = [decision.level(score) for score in (2, 3, 4)]
    assert 0 <= levels[0] < levels[1] == 0.5 < levels[2] <= 1


# --- pixels -------------------------------------------------------------------------------------------


def test_regions_equal_an_independent_labelling():
    rng = np.random.default_rng(0)
    for _ in range(5):
        anomaly_map = ndimage.gaussian_filter(rng.standard_normal((60, 45)), 2).astype(np.float32)
        mask, regions = find_regions(anomaly_map, 0.1, 1)
        labels, count = ndimage.label(anomaly_map > 0.1, np.ones((3, 3)))
        assert np.array_equal(mask, labels > 0) and len(regions) == count > 3
        expected = set()
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            peak = float(anomaly_map[labels == number].max())
            y, x = ndimage.center_of_mass(labels == number)
            expected.add((box, int((labels == number).sum()), peak, round(x, 6), round(y, 6)))
        assert {(r.box, r.area, r.peak, *(round(v, 6) for v in r.centre)) for r in regions} == expected
        assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)


def test_small_regions_are_left_out_of_mask_and_list():
    anomaly_map = np.zeros((20, 20), np.float32)
    anomaly_map[2, 2] = 9
    anomaly_map[10:13, 10:14] = 5
    mask, regions = find_regions(anomaly_map, 1, min_area=2)
    assert mask.sum() == 12 and [(r.box, r.area, r.peak, r.centre) for r in regions] == [
        ((10, 10, 4, 3), 12, 5, (11.5, 11))
    ]
    mask, regions = find_regions(anomaly_map, 9, 1)  # a score at the threshold is normal
    assert not mask.any() and regions == ()


def test_results_of_a_batch():
    detector = untrained_detector()
    maps = torch.zeros(2, 8, 8)
    maps[1, 2:4, 4:6] = 3
    detector.calibrate(torch.linspace(0, 1, 20), torch.linspace(0, 2, 20), 0.05, 0.05)
    maps[0, 0, 0] = 5  # above the pixels' threshold, which counts in anomalous images alone
    prediction = Prediction(torch.tensor([0.5, 4.0]), maps, None, None)
    normal, defect = decide(prediction, detector.decision(), ["a", "b"], [(16, 32), (16, 32)], ["", "dark"])
    assert (normal.label, normal.regions, normal.mask.shape, normal.mask.any()) == ("normal", (), (16, 32), False)
    assert (defect.label, defect.warning, defect.size) == ("anomalous", "dark", (16, 32))
    (region,) = defect.regions
    x, y, width, height = region.box
    assert (x + width / 2, y + height / 2) == (20, 6) and region.peak <= 3  # in pixels of the photograph
    assert defect.mask.sum() == region.area == round(defect.area * 16 * 32)
    told = json.loads(json.dumps(defect.to_dict()))
    assert told["label"] == "anomalous" and told["anomalous"] is True and told["regions"][0]["box"] == list(region.box)
    assert Result("c", error="no image").label == ""


def test_a_test_set_keeps_what_makes_its_maps():
    detector = untrained_detector()
    evaluation = Evaluation(detector)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    for rows in torch.arange(5).split(2):
        evaluation.test_step({"image": images[rows], "label": rows % 2, "index": rows}, 0)
    found = evaluation.predictions()
    maps = found["anomaly_maps"]
    expected = detector(images)
    assert found["index"].tolist() == [0, 1, 2, 3, 4] and len(maps) == 5
    assert np.allclose(found["score"], expected.scores) and np.allclose(np.stack(list(maps)), expected.anomaly_maps)
    assert maps.rows.numel() * 4 <= expected.anomaly_maps.numel() and np.array_equal(maps[1:][0], maps[1])


@pytest.mark.parametrize("size", [(9, 14), (37, 53), (20, 61)])
def test_regions_in_pixels_of_a_larger_image_are_those_of_its_mask(size):
    anomaly_map = np.random.default_rng(0).random((9, 14)).astype(np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, anomaly_map.shape, strict=True))
    mask, regions = find_regions(anomaly_map, 0.8, 3, size)
    expected_mask, expected = find_regions(anomaly_map[rows][:, columns], 0.8, 3)
    assert (mask[rows][:, columns] == expected_mask).all() and len(regions) > 2
    for one, other in zip(regions, expected, strict=True):
        assert (one.box, one.area, one.peak) == (other.box, other.area, other.peak)
        assert one.centre == pytest.approx(other.centre)


def test_an_enlarged_map_has_no_higher_score():
    anomaly_map = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    for size in ((7, 9), (50, 31), (3, 4)):
        assert resize_map(anomaly_map, size).shape == size and resize_map(anomaly_map, size).max() <= anomaly_map.max()
