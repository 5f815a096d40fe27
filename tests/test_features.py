"""What the figures of features and atoms are made of."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make, tiny_backbone, untrained_detector
from scipy.stats import t as student

from texture_ad.data.geometry import Geometry
from texture_ad.data.roi import Roi
from texture_ad.methods.base import Measurement, enlarge
from texture_ad.methods.fusion.density import paste_all
from texture_ad.methods.fusion.detector import FusionDetector
from texture_ad.methods.fusion.explain import atom_crops, patch_labels, sample_features
from texture_ad.methods.fusion.features import KeptFeatures
from texture_ad.models.backbone import flatten_patches
from texture_ad.models.flow import negative_log_likelihood
from texture_ad.models.sparse import omp_spams


@pytest.fixture(scope="module")
def data():
    module = make("data", ["data=embedded"], size=64)
    module.setup()
    return module


def test_only_sure_patches_are_labelled():
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = True  # the first of 2 x 2 patches, wholly
    masks[1, 0, 0] = masks[1, 7, 6:] = True  # small: the largest part stands for it
    found = patch_labels(masks, torch.tensor([1, 1, 1, 0]), (2, 2))
    assert found.tolist() == [[[1, 0], [0, 0]], [[-1, 0], [0, 1]], [[-1, -1], [-1, -1]], [[0, 0], [0, 0]]]


def test_features_are_of_the_same_patches_before_and_after(data):
    detector = untrained_detector()
    torch.manual_seed(1)
    other = tiny_backbone("efficientnet_lite0", ["block2", "block4"])
    features, labels = sample_features(other, detector, data, 0)
    assert list(features) == ["pretrained backbone", "after the pretext", "whitened", "after the flow"]
    assert {len(f) for f in features.values()} == {len(labels)} and set(labels) == {0, 1}
    latent = detector.flow(torch.from_numpy(features["whitened"]))[0]
    assert np.allclose(latent, features["after the flow"], atol=1e-5)
    again, _ = sample_features(other, detector, data, 0)
    assert all(np.array_equal(features[k], again[k]) for k in features)
    # A pretext that left the backbone as it was has no panel of its own.
    for pretrained, first in ((detector.backbone, "pretrained backbone"), (None, "after the pretext")):
        assert list(sample_features(pretrained, detector, data, 0)[0]) == [first, "whitened", "after the flow"]


def test_without_masks_images_stand_for_their_patches(data):
    maskless = SimpleNamespace(has_masks=False, test_samples=data.test_samples[:9], test_batch=data.test_batch)
    features, labels = sample_features(None, untrained_detector(), maskless, 0)
    assert labels.tolist() == [s.label for s in data.test_samples[:9]] and len(features["after the flow"]) == 9


def test_atoms_are_shown_by_patches_of_training_images_that_use_them(data):
    detector = untrained_detector()
    images = next(iter(data.normal_dataloader()))["image"][:6]
    geometry = Geometry((64, 64))
    few = SimpleNamespace(normal_dataloader=lambda: [{"image": images[:4]}, {"image": images[4:]}], geometry=geometry)
    crops, ids, usage = atom_crops(detector, few, num_atoms=5, num_crops=3)
    dictionary = detector.dictionary
    maps = detector.patch_features(images)
    features = detector.dictionary_features(detector.whitening(flatten_patches(maps)))
    used = (omp_spams(features, dictionary.atoms, dictionary.nonzeros, 0.0) != 0).mean(1)
    assert np.allclose(usage, np.sort(used.A1)[::-1][:5]) and used[ids[0]] == used.max()
    # Every patch is a part of a training image, and no image is shown twice for one atom.
    side = crops[0].shape[1]
    windows = [np.lib.stride_tricks.sliding_window_view(i.permute(1, 2, 0).numpy(), (side, side, 3)) for i in images]
    for patches in crops:
        found = [[(w == patch).all(axis=(-1, -2, -3)).any() for w in windows] for patch in patches]
        assert len(patches) <= 3 and (np.sum(found, axis=1) >= 1).all() and np.sum(found, axis=0).max() == 1


def test_training_features_do_not_depend_on_whether_they_were_kept(data):
    detector = untrained_detector()
    batches = list(data.normal_dataloader())[:2]
    device = torch.device("cpu")
    keeping, extracting = (make("features", detector=detector, memory_mb=mb) for mb in (1024, 0))
    first, again, anew = (list(f.stream(batches, device)) for f in (keeping, keeping, extracting))
    assert len(keeping.kept) == sum(len(b["index"]) for b in batches) and not extracting.kept
    for a, b, c in zip(first, again, anew, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b) and torch.equal(a, c)
    maps = detector.patch_features(batches[0]["image"])
    assert torch.allclose(first[0].flatten(0, 1), flatten_patches(maps), rtol=1e-3, atol=1e-5)


def test_kept_features_are_given_once_and_only_for_their_images_while_there_is_room():
    images, others = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    features = torch.ones(3, 2, 4, 4)
    kept = KeptFeatures(features.nbytes)
    kept.keep(images, features)
    kept.keep(others, features)
    extract = lambda x: torch.zeros(len(x), 2, 4, 4)  # noqa: E731
    assert kept(others, extract).sum() == 0
    assert kept(images.clone(), extract).sum() == 96 and kept(images, extract).sum() == 0


def test_every_changed_pixel_counts_as_pasted():
    images = torch.rand(6, 3, 64, 64)
    damaged, mask = paste_all(images)
    changed = (damaged != images).any(1)
    assert (mask | ~changed).all() and (changed.flatten(1).sum(1) > 0).all() and mask.float().mean() < 0.5


def test_the_dictionary_models_the_deepest_layers():
    """Of features whose mean squared length is 1 in all layers together, and again in those that are left."""
    detector = untrained_detector()
    first, deepest = 40, detector.whitening.length - 40
    features = torch.randn(6000, first + deepest) / (first + deepest) ** 0.5
    detector.dictionary = make("dictionary", channels=[first, deepest], last=1)
    found = detector.dictionary_features(features)
    assert torch.allclose(F.normalize(found), F.normalize(features[:, first:]), atol=1e-6)
    assert found.square().sum(1).mean() == pytest.approx(1, rel=0.02)
    detector.dictionary = make("dictionary", channels=[first, deepest], last=0)
    assert torch.equal(detector.dictionary_features(features), features)


def test_the_flow_models_the_finest_layers():
    detector = untrained_detector()
    finest, others = 40, detector.whitening.length - 40
    features = torch.randn(60, finest + others)
    detector.flow = make("flow", channels=[finest, others], first=1, blocks=2, hidden=4)
    torch.nn.init.normal_(detector.flow.blocks[0].first.out.weight)
    scores = detector._score_whitened(features)[:, 2]
    assert torch.allclose(scores, negative_log_likelihood(*detector.flow(features[:, :finest])))
    changed = torch.cat((features[:, :finest], torch.randn(60, others)), 1)
    assert torch.equal(detector._score_whitened(changed)[:, 2], scores)
    detector.flow = make("flow", channels=[finest, others], first=0, blocks=2, hidden=4)
    assert torch.equal(detector.flow_features(features), features)


def test_of_the_quarters_of_a_position_the_least_likely_counts():
    detector = untrained_detector()
    finest, others = 6, 9
    detector.whitening = make("whitening", channels=[finest, others], mode="none", quarters=True)
    detector.flow = make("flow", channels=[finest, others], first=1, blocks=2, hidden=4)
    torch.nn.init.normal_(detector.flow.blocks[0].first.out.weight)
    detector.head = make("head", dim=finest + others)
    features = torch.randn(60, detector.whitening.width)
    gaussian, head, flow = detector._score_whitened(features).T
    each = [negative_log_likelihood(*detector.flow(part)) for part in features[:, : 4 * finest].split(finest, 1)]
    assert torch.allclose(flow, torch.stack(each).amax(0))
    layers = features[:, 4 * finest :]
    assert torch.equal(gaussian, layers.square().sum(1)) and torch.equal(head, detector.head(layers))


@pytest.mark.parametrize(
    ("first", "grid", "quarters"), [(1, "block4", True), (0, "block4", False), (1, "block2", False)]
)
def test_quarters_are_taken_where_the_flow_models_a_finer_layer_alone(first, grid, quarters):
    parts = {
        "backbone": lambda **_: tiny_backbone("efficientnet_lite0", ["block2", "block4"], grid=grid),
        "flow": partial(make, "flow", first=first),
    }
    detector = FusionDetector.assemble(lambda name, **options: parts.get(name, partial(make, name))(**options))
    assert detector.whitening.quarters is quarters
    maps = detector.patch_features(torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8))
    assert maps.shape[1] == 64 + 4 * 24 * quarters
    assert detector.flow.dim == (24 if first else detector.whitening.length)


def test_a_part_that_explodes_does_not_outvote_the_others():
    detector = untrained_detector(gaussian_weight=1.0, trust=0)
    parts = torch.zeros(2, 4, 3, 3)
    parts[0, 2, 0, 0] = 1e9 * detector.patch_statistics[2, 1]  # the flow alone
    parts[1, :, 0, 0] = 100 * detector.patch_statistics[:, 1]  # all of them
    parts += detector.patch_statistics[:, 0, None, None]
    one, several = detector.fuse(parts)[:, 0, 0]
    assert several > 0.5 * one > 0


def test_the_flows_map_is_centred_on_each_image_and_no_other_part_is():
    parts = torch.randn(3, 4, 5, 6)
    centred = untrained_detector().standardised(parts)
    plain = untrained_detector(flow_centred=False).standardised(parts)
    assert centred[:, 2].mean((1, 2)).abs().max() < 1e-6 < plain[:, 2].mean((1, 2)).abs().min()
    for part in (0, 1, 3):
        assert torch.equal(centred[:, part], plain[:, part])
    assert torch.allclose(centred[:, 2], plain[:, 2] - plain[:, 2].mean((1, 2), keepdim=True))


def test_what_all_positions_share_counts_in_the_score_beyond_what_is_normal():
    detector = untrained_detector(gaussian_weight=1.0, trust=0)
    calibration = torch.randn(20, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    calibration[:, 2] += torch.linspace(-1, 1, 20)[:, None, None]
    detector.calibrate_on([(Measurement(None, calibration), (64, 64))], 0.05, 0.2)
    levels = detector.shared(calibration)
    # Student's prediction interval: of normal distributions, one mean in a hundred lies beyond.
    expected = levels.mean() + student.ppf(0.99, 19) * levels.std() * (1 + 1 / 20) ** 0.5
    assert float(detector.shared_limit) == pytest.approx(float(expected), rel=1e-5)
    blurred = calibration[:1].repeat(3, 1, 1, 1)
    blurred[1, 2] += 50  # all over, where its compressed map is flat
    blurred[2, 2] -= 50
    found = detector.predict(Measurement(None, blurred), (64, 64))
    excess = float(detector.shared(blurred)[1] - detector.shared_limit)
    own = [float(detector.fuse(one[None]).flatten().topk(5)[0].mean()) for one in blurred]
    assert found.scores.tolist() == pytest.approx([own[0], own[1] + 0.5 * detector.weights[2] * excess, own[2]])
    assert own[1] < own[0] < found.scores[1]
    plain = untrained_detector(gaussian_weight=1.0, trust=0, flow_centred=False)
    plain.calibrate_on([(Measurement(None, calibration), (64, 64))], 0.05, 0.2)
    own = float(plain.fuse(blurred[1:2]).flatten().topk(5)[0].mean())
    assert float(plain.predict(Measurement(None, blurred[1:2]), (64, 64)).scores) == pytest.approx(own)


def calibrated_on_noise(**options):
    detector = untrained_detector(gaussian_weight=1.0, trust=0, **options)
    calibration = torch.randn(20, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    detector.calibrate_on([(Measurement(None, calibration), (96, 96))], 0.05, 0.2)
    return detector, calibration


def test_wide_areas_are_marked_whole_and_no_score_changes():
    detector, calibration = calibrated_on_noise(raise_areas=True)
    plain, _ = calibrated_on_noise(raise_areas=False)
    lower = detector.fuse(calibration).amax((1, 2)).quantile(0.1)
    assert float(detector.area_limits[0]) == pytest.approx(float(lower))
    # No normal image has a wide area, so its limits come from the threshold that they leave as it is.
    assert detector.pixel_threshold == plain.pixel_threshold and torch.equal(detector.threshold, plain.threshold)
    expected = lower + 1.3 * (plain.pixel_threshold - lower)
    assert float(detector.area_limits[1]) == pytest.approx(float(expected))
    parts = calibration[:1] * 0.1
    parts[:, :, 2:16, 2:16] = 2.0 * calibration.abs().amax()
    parts[:, :, 3:15, 3:15] = 0.2 * calibration.abs().amax()
    level = detector.fuse(parts)[0, 9, 9]  # below the threshold
    detector.area_limits[0] = level - 0.3 * (detector.area_limits[1] - level)
    found, without = (one.predict(Measurement(None, parts), (96, 96)) for one in (detector, plain))
    assert torch.equal(found.scores, without.scores) and torch.equal(found.positions, without.positions)
    inside = (0, slice(20, 52), slice(20, 52))
    assert (found.anomaly_maps[inside] > detector.pixel_threshold).all()
    assert (without.anomaly_maps[inside] < detector.pixel_threshold).all()


def test_measurements_of_several_detectors_set_the_scale_the_thresholds_and_the_limits_of_areas():
    detector, calibration = calibrated_on_noise()
    others = 2 + torch.randn(30, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    measured = [(Measurement(None, parts), (96, 96)) for parts in (calibration, others)]
    detector.calibrate_on(measured, 0.05, 0.2)
    everything = torch.cat((calibration, others))
    scale = torch.stack((everything.mean((0, 2, 3)), everything.std((0, 2, 3))), 1)
    assert torch.allclose(detector.patch_statistics, scale, rtol=1e-3)
    lower = detector.fuse(everything).amax((1, 2)).quantile(0.1)
    assert float(detector.area_limits[0]) == pytest.approx(float(lower))
    assert len(detector.calibration_scores) == 50


def test_what_lies_outside_the_region_of_interest_changes_no_limit_and_raises_nothing():
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[:, :32] = True
    calibration = torch.randn(20, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for beyond in (0.0, 90.0):
        detector = untrained_detector(gaussian_weight=1.0, trust=0, raise_areas=True)
        detector.roi = Roi(inside)
        parts = calibration.clone()
        parts[:, :, :, 12:] = beyond
        detector.calibrate_on([(Measurement(None, parts), (64, 64))], 0.05, 0.2)
        parts[:, :, :, :12] = torch.linspace(-2, 30, 24)[:, None]  # a defect of which some is raised
        limits = detector.area_limits.clone()
        maps = detector.predict(Measurement(None, parts), (64, 64)).anomaly_maps
        detector.area_limits.zero_()
        plain = detector.predict(Measurement(None, parts), (64, 64)).anomaly_maps
        found.append((limits, detector.pixel_threshold, maps, plain))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert (maps > plain + 0.1)[:, inside].any()


def test_calibrating_again_on_another_scale_forgets_the_areas_of_the_last():
    detector, calibration = calibrated_on_noise()
    before = [buffer.clone() for buffer in (detector.area_limits, detector.pixel_threshold)]
    detector.area_limits.copy_(torch.tensor([-10.0, 90.0]))  # everything would be raised
    detector.calibrate_on([(Measurement(None, calibration), (96, 96))], 0.05, 0.2)
    assert torch.equal(detector.area_limits, before[0]) and torch.equal(detector.pixel_threshold, before[1])
    detector.standardise(calibration)
    assert torch.equal(detector.area_limits, torch.zeros(2))


def test_of_one_calibration_image_no_limit_can_be_told():
    detector = untrained_detector()
    detector.limit_shared(torch.tensor([0.3]))
    assert float(detector.shared_limit) == float("inf")
    detector.limit_shared(torch.randn(5))
    assert detector.shared_limit.isfinite()
    detector.limit_shared(torch.tensor([0.3]))
    assert float(detector.shared_limit) == float("inf")
    parts = torch.randn(2, 4, 6, 6)
    assert detector.predict(Measurement(None, parts), (64, 64)).scores.isfinite().all()


@pytest.mark.parametrize("upsampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(96, 60), (7, 9), (3, 4)])
def test_maps_are_enlarged_as_torch_does(upsampling, size):
    maps = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[:, None], size, mode=upsampling, align_corners=False)[:, 0]
    torch.testing.assert_close(enlarge(maps, size, upsampling), expected, rtol=1e-4, atol=1e-5)


def test_the_fusion_s_maps_are_its_patch_maps_enlarged_bicubically():
    detector = untrained_detector()
    measured = detector.measure(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    expected = F.interpolate(detector.fuse(measured.parts)[:, None], (64, 64), mode="bicubic", align_corners=False)
    torch.testing.assert_close(detector.predict(measured, (64, 64)).anomaly_maps, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_what_is_taught_weighs_as_much_as_there_are_images_to_teach_it():
    parts = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    weights = {"gaussian_weight": 2.0, "head_weight": 0.5, "flow_weight": 1.0, "dictionary_weight": 1.5}
    for trust, images, learnt in ((40.0, 10, 0.2), (40.0, 120, 0.75), (0.0, 10, 1.0)):
        detector = untrained_detector(trust=trust, **weights)
        detector.set_trust(images)
        gaussian, head, flow, dictionary = detector.standardised(parts).unbind(1)
        expected = (1 - learnt) * 2 * gaussian + learnt * (0.5 * head + flow + 1.5 * dictionary)
        torch.testing.assert_close(detector.fuse(parts), expected)
        alone = untrained_detector(trust=trust, **{name: float(name == "gaussian_weight") for name in weights})
        alone.set_trust(images)
        torch.testing.assert_close(alone.fuse(parts), alone.standardised(parts)[:, 0])
