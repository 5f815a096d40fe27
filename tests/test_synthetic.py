"""Synthetic defects: what they change, how large they are, and that what they are drawn from stays as it was."""

import pytest
import torch

from texture_ad.data import synthetic
from texture_ad.data.synthetic import FILLS, SHAPES, VISIBLE, _fill, _shape, synthetic_defects


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    """A texture whose left half is dark and whose right half is bright."""
    texture = torch.randint(0, 60, (40, 3, 64, 96), generator=seeded())
    texture[..., 48:] += 190
    return texture.to(torch.uint8)


def test_a_mask_is_where_an_image_changed_visibly_and_the_normal_ones_stay(images):
    before = images.clone()
    damaged, masks = synthetic_defects(images, seeded(1))
    assert torch.equal(images, before) and damaged.dtype == torch.uint8
    change = (damaged.int() - images.int()).abs().amax(1)
    assert torch.equal(masks, change > VISIBLE) and masks.any((1, 2)).all()
    again, _ = synthetic_defects(images, seeded(1))
    assert torch.equal(again, damaged)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_is_lighter_as_often_as_darker_and_of_its_images_size(fill, shape):
    image, donor = torch.randint(80, 120, (2, 3, *shape), generator=seeded()).float()
    found = [_fill(fill, image, donor, seeded(seed)) for seed in range(40)]
    assert all(one.shape == image.shape for one in found)
    means = torch.stack([one.mean() for one in found])
    assert 0.2 < (means > 102).float().mean() < 0.8 and 0.2 < (means < 98).float().mean() < 0.8


def test_a_picture_of_a_few_pixels_can_be_damaged_too():
    images = torch.randint(0, 256, (60, 3, 3, 90), generator=seeded(), dtype=torch.uint8)
    damaged, masks = synthetic_defects(images, seeded(1))
    assert damaged.shape == images.shape and masks.any((1, 2)).float().mean() > 0.9


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_are_compact_and_of_all_sizes_up_to_half_of_the_image(kind):
    areas = []
    for seed in range(60):
        soft = _shape(kind, 128, 160, seeded(seed))
        assert soft.shape == (128, 160) and soft.min() >= 0 and soft.max() <= 1
        areas.append(float((soft > 0.5).float().mean()))
    areas = torch.tensor(areas)
    assert areas.max() < 0.25 and areas.median() < 0.05 and areas.max() > 2 * areas.median() > 0


def test_every_shape_and_every_fill_occurs(images, monkeypatch):
    drawn = []
    for name, draw in (("_shape", _shape), ("_fill", _fill)):
        monkeypatch.setattr(synthetic, name, lambda kind, *rest, draw=draw: drawn.append(kind) or draw(kind, *rest))
    synthetic_defects(images, seeded(3))
    assert set(drawn) == {*SHAPES, *FILLS} and max(map(drawn.count, FILLS)) < len(drawn) / 4


def test_defects_differ(images):
    damaged, masks = synthetic_defects(images[:1].repeat(40, 1, 1, 1), seeded(2))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 40
    lighter = (damaged.float() - images[:1].float()).mean((1, 2, 3)) > 0
    assert 0.2 < lighter.float().mean() < 0.8
