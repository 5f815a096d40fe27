"""What a threshold promises, held against new normal images: simulated, real textures, held out and cross-fitted."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import skimage.data
import torch
from helpers import baseline, composed, tiny_backbone
from PIL import Image

from texture_ad.data import batches
from texture_ad.data.layouts import Sample, calibration_folds, split_calibration
from texture_ad.evaluation.calibration import conformal_threshold, false_alarms
from texture_ad.methods.ganomaly import GANomaly
from texture_ad.methods.padim import PaDiM
from texture_ad.methods.registry import load
from texture_ad.pipeline import cross_fits

SIDE = 64  # pixels


def crops(name):
    """The 64 squares that a photograph of 512 pixels is cut into, uint8 (64, SIDE, SIDE)."""
    picture = getattr(skimage.data, name)()
    return picture.reshape(8, SIDE, 8, SIDE).transpose(0, 2, 1, 3).reshape(64, SIDE, SIDE)


def real_photographs(count):
    """Normal images of the folder of real photographs, of training and of test, drawn at random."""
    root = Path(os.environ["TEXTURE_AD_REAL_DATA"])
    paths = sorted(root.glob("train/good/*")) + sorted(root.glob("test/good/*"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return np.stack([np.asarray(Image.open(paths[i]).convert("L").resize((SIDE, SIDE))) for i in chosen])


def mahalanobis(train, new):
    """Distances of new rows from the training rows' Gaussian: a detector that overfits where there are few rows."""
    covariance = np.cov(train.T) + 0.1 * np.eye(train.shape[1])
    centred = new - train.mean(0)
    return torch.from_numpy(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred))


@pytest.mark.parametrize(("count", "rate", "heavy"), [(28, 0.05, False), (60, 0.1, True)])
def test_a_cross_fitted_threshold_holds_its_promise(count, rate, heavy):
    # The detector is fitted on all, and each of them is scored by one that was fitted without its fold.
    rng = np.random.default_rng(count)
    samples = [Sample(Path(str(i))) for i in range(count)]
    rates, held, bounded = [], 0, 0
    for trial in range(100):
        x, new = (rng.standard_t(3, (n, 10)) if heavy else rng.standard_normal((n, 10)) for n in (count, 500))
        rest, first = split_calibration(samples, 0.2, trial)
        folds = [[int(s.name) for s in fold] for fold in (first, *calibration_folds(rest, len(first), trial))]
        assert sorted(sum(folds, [])) == list(range(count))
        scores = torch.cat([mahalanobis(np.delete(x, fold, 0), x[fold]) for fold in folds])
        threshold = conformal_threshold(scores, rate)
        told = false_alarms(scores, threshold)
        rates.append(float((mahalanobis(x, new) > threshold).float().mean()))
        held += told.low <= rates[-1] <= told.high
        bounded += rates[-1] <= told.high
    assert told.images == count and told.expected == pytest.approx(max(int((count + 1) * rate), 1) / (count + 1))
    # To a detector that learnt more images new ones look a little more normal: it raises fewer false alarms than told.
    assert 0.4 * told.expected < np.mean(rates) < told.expected
    # Detectors of different folds differ: the interval is narrower than it says, but seldom too low.
    assert held >= 70 and bounded >= 95


@pytest.mark.parametrize(
    ("count", "size", "number"), [(1, 1, 1), (2, 6, 1), (7, 1, 7), (10, 4, 3), (21, 5, 4), (22, 6, 4), (47, 5, 9)]
)
def test_folds_are_even(count, size, number):
    samples = [Sample(Path(str(i))) for i in range(count)]
    folds = calibration_folds(samples, size, 0)
    assert sorted(sum(folds, []), key=samples.index) == samples
    lengths = set(map(len, folds))
    assert max(lengths) - min(lengths) <= 1 and len(folds) == number


def test_folds_leave_groups_undivided():
    samples = [Sample(Path(str(i)), group=str(i // 3)) for i in range(14)]
    folds = calibration_folds(samples, 4, 0)
    assert sum(map(len, folds)) == 14 and set().union(*folds) == set(samples)
    groups = [{s.group for s in fold} for fold in folds]
    assert len(folds) > 1 and sum(map(len, groups)) == len(set.union(*groups)) == 5
    assert calibration_folds(samples[:2], 1, 0) == [samples[:2]]  # one group


@pytest.mark.parametrize(
    ("images", "own", "overrides", "expected"),
    [
        (1, 0, [], False),  # two photographs in all, of which each would be scored by the other
        (18, 0, [], True),
        (19, 0, [], False),  # as many as 0.05 needs
        (19, 0, ["false_alarm_rate=0.04"], True),
        (9, 0, ["false_alarm_rate=0.1"], False),
        (9, 0, ["false_alarm_rate=0.1", "pixel_false_alarm_rate=0.05"], True),
        (5, 5, [], False),  # the data set's own
        (5, 5, ["cross_fit=true"], True),
        (18, 0, ["cross_fit=false"], False),
    ],
)
def test_too_few_calibration_images_are_cross_fitted(images, own, overrides, expected):
    data = SimpleNamespace(
        calibration_samples=[None] * images,
        normal_samples=[None] * 2 * images,
        layout=SimpleNamespace(calibration=[None] * own),
    )
    assert cross_fits(composed(*overrides), data) is expected


def padim():
    torch.manual_seed(0)
    backbone = tiny_backbone("efficientnet_lite0", ["block2", "block3"], "pretrained").eval()
    return baseline("padim", backbone, size=SIDE, channels=12).eval()


real = pytest.mark.skipif("TEXTURE_AD_REAL_DATA" not in os.environ, reason="TEXTURE_AD_REAL_DATA names no folder")


@pytest.mark.parametrize("source", ["brick", "gravel", pytest.param("photographs", marks=real)])
def test_the_promise_holds_on_real_textures(source):
    pictures = torch.from_numpy(real_photographs(64) if source == "photographs" else crops(source))
    images = pictures[:, None].expand(-1, 3, -1, -1).contiguous()
    detector = padim()
    features, grid = detector.features(images)
    above = []
    for seed in range(15):  # splits of the same images: their mean varies by about 0.02
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        detector.features = lambda rows: (features[rows], grid)  # each image passes the backbone once
        detector.learn([{"image": order[:24]}])
        detector.features = lambda images: (images, grid)
        scores = detector.conclude(detector.measure(features[order[24:]]), (SIDE, SIDE)).scores
        above.append(scores[19:] > conformal_threshold(scores[:19], 0.05))
    assert 0.005 <= torch.cat(above).float().mean() <= 0.1


def test_a_run_calibrates_on_images_that_each_detector_has_not_seen(tmp_path, command, monkeypatch):
    for number, crop in enumerate(crops("brick")[np.random.default_rng(0).permutation(64)]):
        path = tmp_path / ("data/train/good" if number < 28 else "data/test/good") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path)
    learnt = []
    held_out = []
    decoded = []
    learn, measure_all, load_sample = PaDiM.learn, PaDiM.measure_all, batches.load_sample

    def learning(self, normal):
        learnt.append(torch.cat([batch["image"] for batch in normal]))
        held_out.append([])
        learn(self, normal)

    def measuring(self, images):
        held_out[-1].append(images)
        return measure_all(self, images)

    def loading(sample, *arguments):
        decoded.append(sample.path)
        return load_sample(sample, *arguments)

    monkeypatch.setattr(PaDiM, "learn", learning)
    monkeypatch.setattr(PaDiM, "measure_all", measuring)
    monkeypatch.setattr(batches, "load_sample", loading)
    options = [f"data.root={tmp_path / 'data'}", f"data.size={SIDE}", "pictures=false", "logger=none", "method=padim"]
    options += ["backbone=resnet18", "backbone.weights=none", "backbone.layers=[layer1]", "method.channels=12"]
    options += [f"backbone.min_size={SIDE}"]
    found = {}
    for cross_fit in ("auto", "false"):
        folder = tmp_path / cross_fit
        code, out, errors = command("run", "data=folder", f"run_dir={folder}", f"cross_fit={cross_fit}", *options)
        assert code == 0, errors
        found[cross_fit] = out
        if cross_fit == "auto":
            *seen, (everything, _) = [(fitted, kept[0]) for fitted, kept in zip(learnt, held_out, strict=True)]
            tested = [path for path in decoded if path.is_relative_to(tmp_path / "data/test")]
            assert len(tested) == len(set(tested)) == 36  # not once more for each fold
    # Every normal image was scored once, by a detector that was fitted on all the others but for its fold.
    assert [len(kept) for _, kept in seen] == [6, 6, 5, 6, 5]
    for fitted, kept in seen:
        both = torch.cat([fitted, kept]).flatten(1)
        assert len(both) == 28 and len(both.unique(dim=0)) == 28
    assert len(torch.cat([kept for _, kept in seen]).flatten(1).unique(dim=0)) == 28
    # The detector was fitted on all of them.
    assert len(everything) == len(torch.cat([everything, *(kept for _, kept in seen)]).flatten(1).unique(dim=0)) == 28
    detector, plain = (load(tmp_path / name / "detector.pt") for name in ("auto", "false"))
    assert not torch.equal(detector.whitening, plain.whitening)
    # The first fold is what is held out without cross-fitting, and has the same scores.
    assert torch.equal(detector.calibration_scores[:6], plain.calibration_scores)
    told = detector.decision().false_alarms
    assert told.images == 28 and told.expected == pytest.approx(1 / 29)
    assert {path.name for path in (tmp_path / "auto/folds").iterdir()} == {f"{n}.pt" for n in range(1, 6)}
    assert "by 28 calibration images" in found["auto"] and "advice" not in found["auto"]
    assert "make the intervals too narrow" in found["auto"] and "too narrow" not in found["false"]
    told_first = "cross-fit 6 held-out images are too few for the false-alarm rates: all 28 normal images train"
    assert f"{told_first} and calibrate, and 5 more fits come first" in found["auto"]
    assert "cross-fit" not in found["false"]
    assert found["auto"].index(told_first) < found["auto"].index("fit      padim")  # while there is time to stop it
    assert [line for line in found["auto"].splitlines() if line.startswith("fold")] == [
        f"fold     {number} of 5: {count} of the normal images are held out"
        for number, count in enumerate((6, 6, 5, 6, 5), 1)
    ]
    assert "advice   cross_fit=true calibrates on all 28 normal images" in found["false"]
    new = torch.from_numpy(
        np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "data/test/good").iterdir())])
    )
    above = float((detector(new[:, None].expand(-1, 3, -1, -1)).scores > detector.threshold).float().mean())
    assert above <= told.high


@pytest.fixture
def trained_on_twelve(tmp_path, command):
    """Return a function that runs a method that Lightning trains, on twelve images, two of which are held out."""
    for number, crop in enumerate(crops("gravel")[:14]):
        path = tmp_path / ("data/train/good" if number < 12 else "data/test/good") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path)
    options = [f"data.root={tmp_path / 'data'}", f"data.size={SIDE}", "method=ganomaly", "method.epochs=1"]
    options += ["method.input_size=32", "method.width=4", f"run_dir={tmp_path / 'run'}", "pictures=false"]
    return lambda *more: command("run", "data=folder", *options, *more)


def test_a_folds_detector_is_gone_before_the_next_is_fitted(trained_on_twelve, monkeypatch):
    fitted = []

    def learning(self, _):
        fitted.append(weakref.ref(self))
        alive.append(sum(detector() is not None for detector in fitted))

    alive = []
    monkeypatch.setattr(GANomaly, "learn", learning)
    gc.disable()  # it would come by at times
    try:
        code, _, errors = trained_on_twelve()
    finally:
        gc.enable()
    assert code == 0, errors
    assert alive == [1] * 7


CTRL_C = """
import gc, os, signal, weakref
from torch import nn
from texture_ad.training.resources import collect_garbage
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()
one, other = nn.Module(), nn.Module()
one.other, other.other = [other], [one]
gone = weakref.ref(one, lambda _: os.kill(os.getpid(), signal.SIGINT))
del one, other
try:
    collect_garbage()
except KeyboardInterrupt:
    print("interrupted", gone() is None)
"""


def test_a_ctrl_c_while_a_fold_is_freed_is_not_lost():
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True)
    assert done.stdout == "interrupted True\n", done.stderr


def test_a_run_that_is_resumed_after_its_folds_fits_none_again(trained_on_twelve, monkeypatch, tmp_path):
    steps = []
    step = GANomaly.training_step
    monkeypatch.setattr(GANomaly, "training_step", lambda self, *given: steps.append(self) or step(self, *given))
    with monkeypatch.context() as patched:
        patched.setattr("texture_ad.pipeline.write_results", Mock(side_effect=KeyboardInterrupt))
        assert trained_on_twelve()[0] == 130
    assert len({id(one) for one in steps}) == 7
    first = (tmp_path / "run/detector.pt").read_bytes()
    steps.clear()
    code, out, errors = trained_on_twelve()
    assert code == 0, errors
    assert not steps and "fold     " not in out
    assert (tmp_path / "run/detector.pt").read_bytes() == first
    (tmp_path / "run/folds/2.pt").write_bytes(b"damaged")
    code, _, errors = trained_on_twelve()
    assert code == 2 and "folds/2.pt: not a checkpoint of this program, or damaged; remove it" in errors
    (tmp_path / "run/folds/2.pt").unlink()
    code, out, errors = trained_on_twelve()
    assert code == 0, errors
    assert len({id(one) for one in steps}) == 1 and "fold     2 of 6: 2 of the normal images are held out" in out
    assert (tmp_path / "run/detector.pt").read_bytes() == first
