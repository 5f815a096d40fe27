import pytest
import torch

from texture_ad.data.cutpaste import AREA, KINDS, TASKS, cutpaste, pretext_batch


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
