import numpy as np
import pytest
import torch

from texture_ad.errors import UserError
from texture_ad.evaluation.localization import AREA, RAMP, SHARE, image_scores, raise_areas, region_mask, top_positions

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def top_of_one(anomaly_map, count, min_distance):
    """`top_positions` of a batch of one: (row, column, score) for each position that there is."""
    positions, scores = top_positions(torch.as_tensor(anomaly_map)[None], count, min_distance)
    found = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
    return [(*position, score) for position, score in found if score != -np.inf]


def brute_force(anomaly_map, count, min_distance):
    chosen = []
    for (row, column), score in sorted(np.ndenumerate(anomaly_map), key=lambda entry: -entry[1]):  # stable
        if all(max(abs(row - r), abs(column - c)) >= min_distance for r, c, _ in chosen):
            chosen.append((row, column, score))
    return chosen[:count]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("min_distance", [1, 2, 4])
def test_top_positions_equal_brute_force_with_and_without_ties(min_distance, device):
    rng = np.random.default_rng(min_distance)
    for levels in (1000, 3):
        maps = rng.integers(0, levels, (6, 7, 9)).astype(np.float32)
        positions, scores = top_positions(torch.from_numpy(maps).to(device), 5, min_distance)
        assert positions.dtype == torch.long and positions.shape == (6, 5, 2) and scores.shape == (6, 5)
        for one, position, score in zip(maps, positions.tolist(), scores.tolist(), strict=True):
            expected = brute_force(one, 5, min_distance)
            found = [(*p, s) for p, s in zip(position, score, strict=True) if s != -np.inf]
            assert found == expected == top_of_one(one, 5, min_distance)


def test_a_hot_cluster_does_not_take_all_the_positions():
    anomaly_map = np.zeros((10, 10), dtype=np.float32)
    anomaly_map[1:4, 1:4] = 5
    anomaly_map[2, 2] = 9
    anomaly_map[8, 8] = 1
    assert top_of_one(anomaly_map, 2, min_distance=2) == [(2, 2, 9.0), (8, 8, 1.0)]
    assert top_of_one(anomaly_map, 2, min_distance=1) == [(2, 2, 9.0), (1, 1, 5.0)]


def test_too_few_positions_are_marked_and_left_out():
    maps = torch.arange(8.0).view(2, 2, 2)
    positions, scores = top_positions(maps, 5, min_distance=2)
    assert positions[0].tolist() == [[1, 1]] + [[-1, -1]] * 4
    assert scores[0].tolist() == [3.0] + [-np.inf] * 4
    assert top_of_one(maps[1], 5, min_distance=2) == [(1, 1, 7.0)]
    assert image_scores(scores).tolist() == [3.0, 7.0]
    assert region_mask(positions[0], (2, 2), (4, 4)).sum() == 4


def test_image_score_is_the_mean_of_the_five():
    maps = torch.arange(100.0).view(1, 10, 10)
    _, scores = top_positions(maps, 5, 1)
    assert image_scores(scores).tolist() == [97.0]


def test_the_maps_are_left_as_they_were():
    maps = torch.rand(2, 5, 5)
    before = maps.clone()
    top_positions(maps, 3, 2)
    assert torch.equal(maps, before)


@pytest.mark.parametrize("shape", [(24, 30), (4, 13), (1, 1)])
def test_wide_areas_are_raised_as_counting_every_neighbourhood_says(shape):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, *shape)) + np.array([0.0, 0.3, 1.5])[:, None, None]
    expected = maps.copy()
    above = np.interp(maps, [0.5, 0.5 + RAMP], [0, 1])
    for i, r, c in np.ndindex(maps.shape):
        around = above[i, max(0, r - AREA // 2) : r + AREA // 2 + 1, max(0, c - AREA // 2) : c + AREA // 2 + 1]
        wide = np.interp(around.mean(), SHARE, [0, 1])
        expected[i, r, c] += wide * above[i, r, c] * max(0, 1.5 - maps[i, r, c])
    found = raise_areas(torch.from_numpy(maps), torch.tensor(0.5), torch.tensor(1.5))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert (found.numpy() >= maps).all()
    if shape == (24, 30):
        changed = (found.numpy() > maps + 0.01).mean((1, 2))
        assert changed[0] < 0.02 < changed[2] < 0.9
    for limits in ((0.0, 0.0), (2.0, 2.0), (0.5, 0.2)):
        nowhere = raise_areas(torch.from_numpy(maps), *map(torch.tensor, limits))
        assert np.array_equal(nowhere.numpy(), maps)


def test_a_large_defects_inside_is_raised_and_a_specks_surroundings_are_not():
    maps = torch.zeros(3, 24, 24)
    maps[0, 4:18, 4:18] = 5.0  # of whose border alone the threshold below is exceeded
    maps[0, 5:17, 5:17] = 2.0
    maps[1, 10:13, 10:13] = 9.0
    maps[1, 9:14, 9:14] += 2.0
    maps[2, :, 11:13] = 2.0  # long, not wide
    raised = raise_areas(maps, torch.tensor(1.0), torch.tensor(4.0))
    assert (raised[0, 6:16, 6:16] > 3.0).all() and torch.allclose(raised[0, 8:14, 8:14], torch.tensor(4.0))
    assert torch.equal(raised[1:], maps[1:])
    assert torch.equal(raised[0] > 0, maps[0] > 0)  # nothing grows


def test_region_is_the_union_of_the_cells():
    region = region_mask([(0, 0), (3, 1)], (4, 4), (32, 64))
    expected = np.zeros((32, 64), dtype=bool)
    expected[:8, :16] = expected[24:, 16:32] = True
    assert region.dtype == bool and np.array_equal(region, expected)


@pytest.mark.parametrize(("map_size", "image_size"), [((3, 7), (32, 50)), ((5, 5), (128, 128)), ((8, 8), (8, 8))])
def test_cells_cover_the_whole_image_where_sizes_do_not_divide(map_size, image_size):
    every = [(r, c) for r in range(map_size[0]) for c in range(map_size[1])]
    assert region_mask(every, map_size, image_size).all()
    rows = -(-image_size[0] // map_size[0])
    columns = -(-image_size[1] // map_size[1])
    assert region_mask(every[:1], map_size, image_size).sum() == rows * columns


def test_bad_input_is_refused():
    with pytest.raises(UserError, match=r"\(B, h, w\)"):
        top_positions(torch.zeros(4, 4), 5, 1)
    with pytest.raises(UserError, match="min_distance=0"):
        top_positions(torch.zeros(1, 4, 4), 5, 0)
    with pytest.raises(UserError, match="not finite"):
        top_positions(torch.tensor([[[0.0, np.nan]]]), 5, 1)
    with pytest.raises(UserError, match="do not fit a map of 2 x 2"):
        region_mask([(2, 0)], (2, 2), (8, 8))
