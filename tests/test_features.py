"""What the figures of features and atoms are made of."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make, tiny_backbone, untrained_detector

from texture_ad.data.geometry import Geometry
from texture_ad.methods.fusion.explain import atom_crops, patch_labels, sample_features
from texture_ad.models.backbone import flatten_patches
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
    few = SimpleNamespace(
        normal_dataloader=lambda: [{"image": images[:4]}, {"image": images[4:]}], geometry=Geometry((64, 64))
    )
    crops, ids, usage = atom_crops(detector, few, num_atoms=5, num_crops=3)
    dictionary = detector.dictionary
    features = detector.dictionary_features(detector.whitening(flatten_patches(detector.patch_features(images))))
    used = (omp_spams(features, dictionary.atoms, dictionary.nonzeros, 0.0) != 0).mean(1)
    assert np.allclose(usage, np.sort(used.A1)[::-1][:5]) and used[ids[0]] == used.max()
    # Every patch is a part of a training image, and no image is shown twice for one atom.
    side = crops[0].shape[1]
    windows = [np.lib.stride_tricks.sliding_window_view(i.permute(1, 2, 0).numpy(), (side, side, 3)) for i in images]
    for patches in crops:
        found = [[(w == patch).all(axis=(-1, -2, -3)).any() for w in windows] for patch in patches]
        assert len(patches) <= 3 and (np.sum(found, axis=1) >= 1).all() and np.sum(found, axis=0).max() == 1
