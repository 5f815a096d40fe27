"""From an anomaly map of patches to the located region and the image's score.

The paper: "The five locations with the highest anomalous ratings are combined." Here they are the
highest-scoring patches kept apart by a minimum distance, the region is the union of their cells, and the
image score is their mean.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from texture_ad.errors import UserError

TOP = 5


def top_positions(maps: Tensor, count: int = TOP, min_distance: int = 1) -> tuple[Tensor, Tensor]:
    """The highest-scoring patches of each map, greedily, none closer to another than `min_distance`.

    Runs on the maps' device: `count` steps, each over the whole batch.

    Args:
        maps: (B, h, w) finite floating point scores.
        count: positions a map, at least 1.
        min_distance: patches, at least 1. The Chebyshev distance between two positions is this or more; 1
            only keeps them from being the same patch.

    Returns:
        Rows and columns (B, count, 2) long and scores (B, count), by descending score; of equal scores the
        first in reading order. Where a map has room for fewer, the positions left over are (-1, -1) with score
        -inf.

    Raises:
        UserError: another shape, scores that are not finite, `count` or `min_distance` below 1.
    """
    if maps.ndim != 3 or not maps.numel() or not maps.is_floating_point():
        raise UserError(
            f"top positions: got {maps.dtype} {tuple(maps.shape)}; give anomaly maps (B, h, w), floating "
            "point and not empty"
        )
    if count < 1 or min_distance < 1:
        raise UserError(f"top positions: count={count}, min_distance={min_distance}; give whole numbers above 0")
    if not torch.isfinite(maps).all():
        raise UserError(
            "top positions: an anomaly map holds scores that are not finite; the detector is broken, train "
            "it again with a lower learning rate"
        )
    return separate_positions(maps, count, min_distance)


def separate_positions(maps: Tensor, count: int, min_distance: int) -> tuple[Tensor, Tensor]:
    """`top_positions` without its checks, which an exported graph can't hold."""
    height, width = maps.shape[1:]
    left = maps.clone()
    rows = torch.arange(height, device=maps.device).view(1, -1, 1)
    columns = torch.arange(width, device=maps.device).view(1, 1, -1)
    positions = []
    scores = []
    for _ in range(count):
        flat = left.flatten(1)
        best = flat.argmax(1)  # the first of equal maxima
        score = flat.gather(1, best[:, None]).squeeze(1)
        row = best // width
        column = best % width
        near = ((rows - row.view(-1, 1, 1)).abs() < min_distance) & (
            (columns - column.view(-1, 1, 1)).abs() < min_distance
        )
        left = left.masked_fill(near, -torch.inf)
        position = torch.stack([row, column], dim=1)
        positions.append(position.masked_fill(torch.isneginf(score)[:, None], -1))
        scores.append(score)
    return torch.stack(positions, dim=1), torch.stack(scores, dim=1)


def top_positions_of_one(
    anomaly_map: ArrayLike, count: int = TOP, min_distance: int = 1
) -> list[tuple[int, int, float]]:
    """`top_positions` of one map (h, w): `(row, column, score)` for each position that there is."""
    one = torch.as_tensor(anomaly_map)
    rows_columns, scores = top_positions(one[None], count, min_distance)
    found = zip(rows_columns[0].tolist(), scores[0].tolist(), strict=True)
    return [(row, column, score) for (row, column), score in found if row >= 0]


def image_scores(scores: Tensor) -> Tensor:
    """The mean of each map's top positions, (B, count) from `top_positions` to (B,), without -inf."""
    there = ~torch.isneginf(scores)
    return scores.masked_fill(~there, 0).sum(1) / there.sum(1)


def region_mask(
    rows_columns: ArrayLike, map_size: tuple[int, int], image_size: tuple[int, int], radius: int = 0
) -> np.ndarray:
    """The located region in the image: the cells of the given patches, each grown by `radius`, joined.

    The cell of patch (r, c) is the part of the image that the patch stands for when the map is laid over the
    image: rows r*H/h to (r+1)*H/h, columns likewise, outwards to whole pixels.

    Args:
        rows_columns: (k, 2) patches, as `top_positions` gives them for one map; (-1, -1) is left out.
        map_size: (h, w) patches.
        image_size: (H, W) pixels.
        radius: pixels added on all four sides, for what a patch's receptive field sees beyond its cell.

    Returns:
        (H, W) bool, True inside.

    Raises:
        UserError: a position outside the map, a negative radius.
    """
    positions = np.asarray(rows_columns, dtype=np.int64).reshape(-1, 2)
    positions = positions[(positions >= 0).all(axis=1)]
    (h, w) = map_size
    (height, width) = image_size
    if radius < 0 or (positions >= (h, w)).any():
        raise UserError(
            f"region: positions {positions.tolist()} with radius {radius} do not fit a map of {h} x {w} "
            "patches; give the size of the map that the positions came from and a radius of 0 or more"
        )
    region = np.zeros((height, width), dtype=bool)
    for row, column in positions:
        top = row * height // h - radius
        bottom = -((row + 1) * height // -h) + radius
        left = column * width // w - radius
        right = -((column + 1) * width // -w) + radius
        region[max(top, 0) : bottom, max(left, 0) : right] = True
    return region
