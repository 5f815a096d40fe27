import numpy as np
import pytest
import torch

from texture_ad.data.cutpaste import AREA, CHIP_AREA, KINDS, TASKS, _draw_moves, chips, cutpaste, pretext_batch


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(64, 3, 128, 128)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mask_changes(images, kind):
    pasted, mask = cutpaste(images, kind)
    changed = (pasted != images).any(1)
    assert not (changed & ~mask).any()
    assert mask.flatten(1).any(1).all()
    assert pasted.min() >= 0 and pasted.max() <= 1


def test_areas_lie_in_the_papers_range(images):
    share = cutpaste(images, "cutpaste")[1].float().mean((1, 2))
    assert share.min() > 0.9 * AREA[0] and share.max() < 1.1 * AREA[1]
    assert share.max() > 2 * share.min()


def test_scars_are_thin_and_small(images):
    share = cutpaste(images, "scar")[1].float().mean((1, 2))
    assert share.max() < 1.3 * 16 * 25 / 256**2


def test_a_patch_is_a_copy_of_another_place_up_to_its_colour(images, monkeypatch):
    monkeypatch.setattr("texture_ad.data.cutpaste.JITTER", 0.0)
    pasted, mask = cutpaste(images, "cutpaste")
    values = set(images[0, 0].flatten().tolist())
    inside = pasted[0, 0][mask[0]]
    assert all(min(abs(v - w) for w in values) < 1e-6 for v in inside[:20].tolist())


def test_a_rectangle_is_the_pixels_of_another_place(monkeypatch):
    monkeypatch.setattr("texture_ad.data.cutpaste.JITTER", 0.0)
    torch.manual_seed(0)
    images = torch.rand(12, 3, 24, 40)
    pasted, masks = cutpaste(images, "cutpaste")
    moves = []
    for image, other, mask in zip(images, pasted, masks, strict=True):
        rows, columns = mask.nonzero().T
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        patch = other[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        places = image.unfold(1, height, 1).unfold(2, width, 1)  # (3, down, across, height, width)
        same = (places - patch[:, None, None]).abs().amax((0, 3, 4)) < 1e-5
        assert mask.sum() == height * width and same.sum() == 1
        moves.append((same.nonzero()[0] - torch.stack((rows.min(), columns.min()))).tolist())
    down, across = zip(*moves, strict=True)
    assert min(down) < 0 < max(down) and min(across) < 0 < max(across)


def test_a_rectangle_has_its_share_of_an_image_of_any_shape():
    torch.manual_seed(0)
    for height, width in ((96, 64), (64, 128)):
        share = cutpaste(torch.rand(64, 3, height, width), "cutpaste")[1].float().mean((1, 2))
        assert share.min() > 0.9 * AREA[0] and share.max() < 1.1 * AREA[1]


@pytest.mark.parametrize("kind", KINDS)
def test_colours_change_a_little_and_by_chance(kind):
    torch.manual_seed(0)
    pasted, mask = cutpaste(torch.full((64, 3, 64, 64), 0.5), kind)
    factor = torch.stack([image[:, inside].mean() for image, inside in zip(pasted, mask, strict=True)]) / 0.5
    assert factor.min() > 0.9 - 1e-4 and factor.max() < 1.1 + 1e-4 and factor.std() > 0.03


def test_an_image_does_not_depend_on_the_others_of_its_batch(images):
    found = []
    for others in (images[1:], images[1:].flip(0) / 3):
        torch.manual_seed(3)
        found.append(cutpaste(torch.cat((images[:1], others)), "scar")[0][0])
    assert torch.equal(*found)


def test_the_patches_of_both_kinds_lie_either_way(images):
    _, scars = cutpaste(images, "scar")
    tilts = []
    for mask in scars:
        down, across = mask.nonzero().float().T
        tilts.append(float(((down - down.mean()) * (across - across.mean())).mean()))
    assert np.mean(np.array(tilts) > 0.1) > 0.2 and np.mean(np.array(tilts) < -0.1) > 0.2
    _, rectangles = cutpaste(images, "cutpaste")
    wide = rectangles.any(1).sum(1) > rectangles.any(2).sum(1)
    assert 0.25 < wide.float().mean() < 0.75


def test_a_patch_lies_inside_its_image():
    torch.manual_seed(0)
    w, h = 60 * torch.rand(500) + 1, 30 * torch.rand(500) + 1
    angle = (torch.rand(500) - 0.5) * torch.pi
    from_x, from_y, x, y = _draw_moves(w, h, angle, 64, 96)
    assert ((from_x >= w / 2) & (from_x <= 96 - w / 2) & (from_y >= h / 2) & (from_y <= 64 - h / 2)).all()
    fits = ((w * angle.cos() + h * angle.sin().abs()) <= 96) & ((w * angle.sin().abs() + h * angle.cos()) <= 64)
    for u, v in ((w / 2, h / 2), (-w / 2, h / 2), (w / 2, -h / 2), (-w / 2, -h / 2)):
        across, down = x + u * angle.cos() - v * angle.sin(), y + u * angle.sin() + v * angle.cos()
        inside = (across > -1e-3) & (across < 96 + 1e-3) & (down > -1e-3) & (down < 64 + 1e-3)
        assert fits.sum() > 400 and inside[fits].all()


@pytest.mark.parametrize("kind", KINDS)
def test_small_and_narrow_images_have_patches_too(kind):
    torch.manual_seed(0)
    assert cutpaste(torch.rand(200, 3, 32, 32), kind)[1].flatten(1).any(1).float().mean() > 0.98
    narrow = cutpaste(torch.rand(200, 3, 32, 320), kind)[1]
    assert not narrow.any(2).all(1).any()  # none from edge to edge


def test_chips_are_small_and_of_the_image_before(images):
    """They are bright where that one is: a flat image shows nothing of its own."""
    flat = torch.linspace(0.1, 0.9, 64)[:, None, None, None].expand(64, 3, 128, 128)
    pasted, mask = chips(flat)
    share = mask.float().mean((1, 2))
    assert share.max() < 1.1 * CHIP_AREA[1] and 0 < share.median() < 0.01
    shown = torch.stack([pasted[i, :, mask[i]].mean() for i in range(64)])
    factor = shown / flat.roll(1, 0)[:, 0, 0, 0]
    assert ((factor > 0.64) & (factor < 1.36))[shown < 0.99].all() and factor.std() > 0.1


def test_images_differ_in_their_patches(images):
    mask = cutpaste(images, "cutpaste")[1]
    assert len({m.nonzero()[0].tolist().__repr__() for m in mask}) > 30


def test_the_seed_repeats_it(images):
    torch.manual_seed(5)
    first = cutpaste(images, "scar")[0]
    torch.manual_seed(5)
    assert torch.equal(first, cutpaste(images, "scar")[0])


@pytest.mark.parametrize("task", TASKS)
def test_pretext_batch_starts_with_the_normal_images(images, task):
    batch, classes, masks = pretext_batch(images[:4], task)
    assert torch.equal(batch[:4], images[:4]) and not masks[:4].any()
    assert classes.tolist() == [c for c in range(1 + len(TASKS[task])) for _ in range(4)]
    assert masks[4:].flatten(1).any(1).all()


def test_unknown_kind(images):
    with pytest.raises(ValueError, match="kind='cut'"):
        cutpaste(images, "cut")
