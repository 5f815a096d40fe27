"""Changed copies of training images, and what images look like under changed conditions."""

import numpy as np
import pytest
import torch
from helpers import make, untrained_detector

from experiments.robustness import CHANGES, measure
from texture_ad.data.augmentation import ramp
from texture_ad.errors import ParameterError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def image():
    return torch.randint(60, 190, (3, 40, 40), generator=seeded(), dtype=torch.uint8)


def test_light_stays_within_its_range_and_changes_no_place(image):
    light = make("augmentation", ["augmentation=light"])
    changed = torch.stack([light(image, seeded(seed)) for seed in range(30)]).float()
    ratio = changed.mean((1, 2, 3)) / image.float().mean()
    assert 0.65 < ratio.min() < 0.95 and 1.05 < ratio.max() < 1.35
    for one in changed:
        assert np.corrcoef(one.flatten(), image.flatten())[0, 1] > 0.9
    assert torch.equal(light(image, seeded(3)), light(image, seeded(3)))


def test_geometry_moves_pixels_and_makes_none(image):
    turn = make("augmentation", ["augmentation=geometry"])
    found = [turn(image, seeded(seed)) for seed in range(40)]
    assert all(torch.equal(one.flatten(1).sort(1).values, image.flatten(1).sort(1).values) for one in found)
    assert len({one.numpy().tobytes() for one in found}) == 8
    wide = turn(image[:, :, :20], seeded(1))
    assert wide.shape == (3, 40, 20)


def test_a_gradient_rises_from_one_edge_to_the_other(image):
    plane = ramp(image, 90.0)
    assert plane[0].allclose(torch.tensor(-1.0)) and plane[-1].allclose(torch.tensor(1.0))
    assert ramp(image, 33.0).mean().abs() < 1e-5


def test_no_augmentation_changes_nothing(image):
    assert torch.equal(make("augmentation")(image, seeded()), image)


@pytest.mark.parametrize("bad", [{"copies": -1}, {"brightness": 2.0}, {"gamma": "much"}])
def test_a_range_is_checked(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        make("augmentation", **bad)


def test_copies_enter_every_pass_over_the_training_images():
    plain, light = (
        make("data", size=64, eval_batch_size=16, augmentation=make("augmentation", [f"augmentation={name}"]))
        for name in ("none", "light")
    )
    plain.setup()
    light.setup()
    before, after = (list(data.normal_dataloader()) for data in (plain, light))
    before, after = ({k: torch.cat([b[k] for b in found]) for k in ("image", "index")} for found in (before, after))
    n = len(before["image"])
    assert light.num_originals == n and len(light.train_samples) == len(after["image"]) == 2 * n
    assert torch.equal(after["image"][:n], before["image"]) and after["index"].tolist() == list(range(2 * n))
    copies = after["image"][n:].float()
    assert (copies != before["image"]).flatten(1).any(1).all()
    assert (copies.mean((1, 2, 3)) / before["image"].float().mean((1, 2, 3)) - 1).abs().max() < 0.4
    assert torch.equal(plain.test_batch([0])["image"], light.test_batch([0])["image"])


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_stronger_where_it_says_so_and_keeps_the_images_size(name):
    change, strengths = CHANGES[name]
    images = torch.randint(60, 190, (2, 3, 64, 48), generator=seeded(), dtype=torch.uint8)
    changed = [change(images, strength) for strength in strengths]
    assert all(one.shape == images.shape and one.dtype == torch.uint8 for one in changed)
    differences = [(one.float() - images).abs().mean() for one in changed]
    if name not in ("brightness", "contrast", "gamma", "shift"):
        assert differences == sorted(differences)
    assert min(differences) > 0


def test_what_is_measured_is_of_the_detectors_threshold():
    detector = untrained_detector()
    images = torch.randint(0, 256, (6, 3, 64, 64), generator=seeded(), dtype=torch.uint8)
    scores = detector(images).scores
    detector.threshold.copy_(scores[:3].median())
    batches = [{"image": images, "label": torch.tensor([0, 0, 0, 1, 1, 1])}]
    found = measure(detector, batches, lambda batch, _: batch, 0.0)
    assert found["false_alarms"] == pytest.approx(1 / 3)
    assert found["image_auroc"] == pytest.approx(float((scores[3:, None] > scores[:3]).float().mean()))
