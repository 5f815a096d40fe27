import pytest
import torch
from helpers import make

from texture_ad.errors import UserError
from texture_ad.models.whitening import Whitening


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def fitted(whitening, patches, batch=1000):
    """On patch features (images, P, C), streamed; its features of them, (images, P, length)."""
    whitening.fit(lambda: patches.split(batch))
    return whitening(patches.flatten(0, 1)).view(*patches.shape[:2], -1)


def test_position_whitening_knows_each_place():
    """Two places whose features vary in different directions: each becomes white by itself, not by their mixture."""
    scale = torch.full((2, 12), 1e-3)
    scale[0, :4] = torch.tensor([8.0, 6.0, 4.0, 5.0])
    scale[1, :4] = torch.tensor([4.0, 5.0, 8.0, 6.0])
    offset = torch.tensor([0.1, -0.1])[:, None]
    features = fitted(make("whitening", channels=[12], components=4), noise(4000, 2, 12) * scale + offset)
    assert torch.allclose(features.square().sum(2).mean(), torch.tensor(1.0), atol=0.02)
    for place in range(2):
        covariance = torch.cov(features[:, place].T)
        spread = covariance.diagonal()
        # The ridge leaves directions of little variance below 1, and no further.
        assert spread.max() < 1.5 * spread.min()
        assert (covariance - torch.diag(spread)).abs().max() < 0.1 * spread.max()
        assert features[:, place].mean(0).abs().max() < 0.05


@pytest.mark.parametrize("mode", ["global", "none"])
def test_one_matrix_for_all_places(mode):
    whitening = make("whitening", channels=[6], mode=mode)
    features = fitted(whitening, noise(500, 3, 6) * torch.arange(1, 7) + 3)
    assert whitening.matrix.shape == (1, 36) and features.mean((0, 1)).abs().max() < 1e-5
    assert torch.allclose(features.square().sum(2).mean(), torch.tensor(1.0), atol=1e-4)
    spread = torch.linalg.eigvalsh(torch.cov(features.flatten(0, 1).T))
    assert (spread[-1] < 5 * spread[0]) == (mode == "global")


def test_channels_are_standardised_each_for_itself():
    scale = torch.tensor([1.0, 3.0, 9.0, 0.0])
    patches = (noise(500, 3, 4) + noise(500, 3, 1)) * scale + 3
    features = fitted(make("whitening", channels=[4], components=2, mode="channel"), patches)
    spread = features.flatten(0, 1).std(0)
    # The ridge takes more from a channel that varies less, and leaves one that never varies at 0.
    mean = scale.square().mean()
    expected = scale / (scale.square() + 0.03 * mean).sqrt()
    assert torch.allclose(spread / spread[2], expected / expected[2], atol=0.02) and spread[3] < 1e-6
    before, after = (torch.corrcoef(x.flatten(0, 1)[:, :3].T) for x in (patches, features))
    assert torch.allclose(before, after, atol=1e-4) and before[0, 1] > 0.4


@pytest.mark.parametrize("mode", ["position", "global"])
def test_each_layer_is_whitened_as_if_it_were_alone(mode):
    """Also where layers have much in common, which is left in."""
    common = noise(400, 3, 5)
    layers = [common @ noise(5, 6) + noise(400, 3, 6), 100 * (common @ noise(5, 9) + noise(400, 3, 9))]
    together = make("whitening", channels=[6, 9], components=7, mode=mode)
    features = fitted(together, torch.cat(layers, 2))
    assert together.lengths == [6, 7]
    for layer, found in zip(layers, features.split([6, 7], 2), strict=True):
        alone = fitted(make("whitening", channels=[layer.shape[2]], components=7, mode=mode), layer)
        assert torch.allclose(found / found.norm(), alone / alone.norm(), rtol=1e-3, atol=1e-5)
    correlation = torch.corrcoef(features.flatten(0, 1).T)[:6, 6:]
    assert correlation.abs().max() > 0.3


@pytest.mark.parametrize("mode", ["position", "global", "channel", "none"])
def test_the_unit_of_the_features_means_nothing(mode):
    patches = noise(60, 3, 6) @ noise(6, 6)
    found = [fitted(make("whitening", channels=[6], components=4, mode=mode), unit * patches) for unit in (1, 1000)]
    assert torch.allclose(found[0].abs(), found[1].abs(), rtol=1e-3, atol=1e-4)


def test_a_layer_that_never_changes_is_no_obstacle():
    patches = torch.cat((noise(50, 3, 4), torch.ones(50, 3, 2)), 2)
    features = fitted(make("whitening", channels=[4, 2]), patches)
    assert features.isfinite().all() and features[..., :4].std() > 0.1


@pytest.mark.parametrize("copies", [1, 7])
def test_images_that_are_all_alike_leave_the_length_of_new_ones_near_1(copies):
    """Where each position varies by nothing, a new image's features were a million times too long."""
    whitening = make("whitening", channels=[6, 9])
    fitted(whitening, noise(1, 40, 15).repeat(copies, 1, 1))
    new = torch.randn(50, 40, 15, generator=torch.Generator().manual_seed(1))
    assert 0.5 < float(whitening(new.flatten(0, 1)).square().sum(1).mean()) < 10


def test_the_stream_may_be_cut_anywhere():
    patches = noise(50, 4, 5)
    first = make("whitening", channels=[5])
    second = make("whitening", channels=[5])
    assert torch.allclose(fitted(first, patches, 50).abs(), fitted(second, patches, 7).abs(), atol=1e-4)


def test_few_images_are_whitened_by_all_positions():
    features = fitted(
        make("whitening", channels=[9], components=4), noise(1, 3, 9)
    )  # no position has a covariance of its own
    assert features.isfinite().all() and features.abs().max() > 0.1


def test_refit_follows_features_that_moved_and_keeps_the_basis():
    whitening = make("whitening", channels=[6], components=3)
    patches = noise(300, 4, 6) @ noise(6, 6)
    features = fitted(whitening, patches)
    basis = whitening.basis.clone()
    whitening.refit((2 * patches + 1).split(100))
    moved = whitening((2 * patches + 1).flatten(0, 1)).view_as(features)
    assert torch.equal(whitening.basis, basis) and torch.allclose(moved, features, atol=0.02)


def quartered(images, positions, first, others):
    """Patch features (images, P, 5 first + others) that begin with those of quarters, whose mean is the layer's."""
    quarters = noise(images, positions, 4, first) @ noise(first, first) + 3
    mean = quarters.mean(2)
    return torch.cat((quarters.flatten(2), mean, noise(images, positions, others) + mean[..., :1]), 2)


@pytest.mark.parametrize("mode", ["position", "global", "channel", "none"])
def test_quarters_are_whitened_by_what_the_four_share_and_change_nothing_else(mode):
    patches = quartered(400, 3, 5, 6)
    with_quarters = make("whitening", channels=[5, 6], components=4, mode=mode, quarters=True)
    found = fitted(with_quarters, patches)
    layers = make("whitening", channels=[5, 6], components=4, mode=mode)
    expected = fitted(layers, patches[..., 20:])
    assert with_quarters.lengths == layers.lengths and with_quarters.length == layers.width
    assert torch.allclose(found[..., -layers.width :], expected, rtol=1e-3, atol=1e-5)
    # As if each quarter of an image were an image of that layer alone, but for how much a few images count.
    length = layers.lengths[0]
    alone = fitted(
        make("whitening", channels=[5], components=4, mode=mode),
        patches[..., :20].unflatten(2, (4, 5)).permute(0, 2, 1, 3).flatten(0, 1),
    )
    mine = found[..., : 4 * length].unflatten(2, (4, length)).permute(0, 2, 1, 3).flatten(0, 1)
    assert torch.allclose(mine / mine.norm(), alone / alone.norm(), rtol=0.1, atol=1e-3)
    # They are treated alike.
    order = [2, 0, 3, 1]
    changed = torch.cat((patches[..., :20].unflatten(2, (4, 5))[:, :, order].flatten(2), patches[..., 20:]), 2)
    moved = with_quarters(changed.flatten(0, 1)).view_as(found)[..., : 4 * length].unflatten(2, (4, length))
    assert torch.allclose(moved, found[..., : 4 * length].unflatten(2, (4, length))[:, :, order], atol=1e-6)


@pytest.mark.parametrize("quarters", [False, True])
@pytest.mark.parametrize("mode", ["position", "global", "channel"])
@pytest.mark.parametrize("first", [3, 40])
def test_an_update_is_a_refit_on_all_images(mode, first, quarters):
    patches = quartered(60, 4, 4, 2) + torch.arange(4)[:, None]
    patches = patches if quarters else patches[..., 16:] @ noise(6, 6)
    patches[first:] = 1.3 * patches[first:] + 0.2  # later images are unlike the first
    options = {"channels": [4, 2], "components": 3, "mode": mode, "quarters": quarters}
    updated, expected = (make("whitening", **options) for _ in range(2))
    for whitening in (updated, expected):
        fitted(whitening, patches[:first], 7)
    updated.update(patches[first:50].split(7))
    updated.update(patches[50:].split(7))
    expected.refit(patches.split(7))
    for name, buffer in expected.named_buffers():
        found = updated.get_buffer(name)
        assert torch.allclose(found, buffer, rtol=1e-3, atol=1e-3 * float(buffer.abs().max())), name


def test_features_that_are_only_centred_and_scaled_need_no_ridge(monkeypatch):
    monkeypatch.setattr(Whitening, "_ridge", lambda *_: pytest.fail("computed"))
    patches = noise(20, 4, 6) + 3
    features = fitted(make("whitening", channels=[6], mode="none"), patches)
    centred = patches - patches.mean((0, 1))
    assert torch.allclose(features, centred / centred.square().sum(2).mean().sqrt(), atol=1e-5)


def test_features_that_are_only_centred_cannot_be_updated():
    whitening = make("whitening", channels=[6], mode="none")
    fitted(whitening, noise(20, 4, 6))
    with pytest.raises(UserError, match=r"mode=none: keeps no covariance"):
        whitening.update(noise(5, 4, 6).split(5))


def test_training_images_are_whitened_by_statistics_of_others_with_quarters_too():
    patches = quartered(9, 2, 3, 2)
    whitening = make("whitening", channels=[3, 2], quarters=True)
    fitted(whitening, patches)
    found = whitening.cross_fitted(patches, torch.arange(9))
    assert found.shape == (9, 2, whitening.width)
    for fold in range(3):
        others = make("whitening", channels=[3, 2], quarters=True)
        others.load_state_dict(whitening.state_dict())
        others.refit([patches[torch.arange(9) % 3 != fold]])
        inside = patches[fold::3]
        expected = others(inside.flatten(0, 1)).view(3, 2, -1) * (others.energy / whitening.energy)
        assert torch.allclose(found[fold::3], expected, rtol=1e-3, atol=1e-5)


def test_what_is_of_one_picture_is_whitened_by_statistics_of_other_pictures():
    """Changed copies lie behind their originals: what lies in no fold of theirs must not depend on them."""
    patches = noise(7, 2, 5)
    copies = torch.cat((patches, patches + 0.1 * noise(7, 2, 5)))
    pictures = torch.arange(7).repeat(2)
    whitening = make("whitening", channels=[5])
    whitening.fit(lambda: copies.split(4), pictures)
    found = whitening.cross_fitted(copies, torch.arange(14))
    others = make("whitening", channels=[5])
    for picture in range(7):
        others.load_state_dict(whitening.state_dict())
        others.refit([copies[pictures % 3 != picture % 3]])
        own = copies[pictures == picture]
        expected = others(own.flatten(0, 1)).view(2, 2, -1) * (others.energy / whitening.energy)
        assert torch.allclose(found[pictures == picture], expected, rtol=1e-3, atol=1e-5)
    whitening.fit(lambda: copies[:10].split(4), torch.arange(5).repeat(2))
    assert not whitening.folds  # five pictures are too few, though they are ten images
    whitening.fit(lambda: copies[:6].split(4), torch.arange(6))
    assert len(whitening.folds) == 3  # two pictures in each


def test_a_state_brings_its_number_of_positions():
    whitening = make("whitening", channels=[1, 4, 1])
    other = make("whitening", channels=[1, 4, 1])
    features = fitted(whitening, noise(20, 4, 6))
    other.load_state_dict(whitening.state_dict())
    assert torch.equal(other(noise(20, 4, 6).flatten(0, 1)).view_as(features), features)


def test_a_state_of_another_shape_is_refused():
    state = make("whitening", channels=[6]).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for matrix"):
        make("whitening", channels=[3, 3]).load_state_dict(state)


@pytest.mark.parametrize(("bad", "key"), [({"mode": "place"}, "mode=place"), ({"components": 0}, "components=0")])
def test_parameters_are_checked(bad, key):
    with pytest.raises(UserError, match=f"whitening.{key}"):
        make("whitening", channels=[4], **bad)
