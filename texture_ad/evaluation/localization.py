"""From a patch map to the located region and the image's score.

Guo, Song, Ma: "The five locations with the highest anomalous ratings are combined." Here they are the highest-scoring
positions of the patch map, kept apart by a minimum distance. The region is the union of their cells in the image, and
the image score is their mean.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from texture_ad.errors import UserError
from texture_ad.parameters import Count, checked

AREA = 9  # positions of the side of a wide area
SHARE = (0.5, 0.7)  # of its positions that count: from where on it is raised, and from where on wholly
RAMP = 0.2  # of the way from `lower` to `upper`, over which a position comes to count


@checked
def top_positions(
    patch_maps: Tensor, count: Count, min_distance: Count, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the highest-scoring positions of each patch map, none closer to another than `min_distance`.

    Chooses greedily, on the maps' device: `count` steps, each over the whole batch.

    Args:
        patch_maps: (B, h, w), finite floating point scores.
        count: positions in each map.
        min_distance: smallest Chebyshev distance between two positions; 1 only keeps them from being the same one.
        inside: bool (h, w), which positions may be chosen; None for all.

    Returns:
        Rows and columns (B, count, 2) long and scores (B, count), by descending score; of equal scores the first in
        reading order. Where a map has room for fewer, the positions left over are (-1, -1) with score -inf.

    Raises:
        UserError: another shape, scores that are not finite.
        ParameterError: `count` or `min_distance` below 1.
    """
    _check_maps(patch_maps)
    return separate_positions(patch_maps, count, min_distance, inside)


def _check_maps(patch_maps: Tensor) -> None:
    if patch_maps.ndim != 3 or not patch_maps.numel() or not patch_maps.is_floating_point():
        raise UserError(
            f"top positions: got {patch_maps.dtype} {tuple(patch_maps.shape)}; give patch maps (B, h, w), floating "
            "point and not empty"
        )
    if not torch.isfinite(patch_maps).all():
        raise UserError(
            "top positions: a patch map holds scores that are not finite; the detector is broken, train "
            "it again with a lower learning rate"
        )


def separate_positions(
    patch_maps: Tensor, count: int, min_distance: int, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `top_positions` returns, without its checks, which an exported graph can't hold."""
    height, width = patch_maps.shape[1:]
    left = patch_maps.clone() if inside is None else patch_maps.masked_fill(~inside.to(patch_maps.device), -torch.inf)
    rows = torch.arange(height, device=patch_maps.device).view(1, -1, 1)
    columns = torch.arange(width, device=patch_maps.device).view(1, 1, -1)
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


def image_scores(scores: Tensor) -> Tensor:
    """Return the mean of each map's top positions, (B, count) from `top_positions` to (B,), without -inf."""
    there = ~torch.isneginf(scores)
    return scores.masked_fill(~there, 0).sum(1) / there.sum(1)


def raise_areas(patch_maps: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return patch maps (B, h, w) in which positions of wide areas count as at least `upper`.

    Such a position lies above `lower`, as most of the AREA x AREA positions around it do, as far as they are on the
    map. Nothing jumps, so that runtimes whose last digits differ raise alike. Where `upper` does not lie above
    `lower`, nothing is raised.
    """
    above = ((patch_maps - lower) / (RAMP * (upper - lower)).clamp(min=1e-6)).clamp(0, 1)
    share = F.avg_pool2d(above[:, None], AREA, 1, AREA // 2, count_include_pad=False)[:, 0]
    wide = ((share - SHARE[0]) / (SHARE[1] - SHARE[0])).clamp(0, 1)
    return patch_maps + wide * above * (upper - patch_maps).clamp(min=0)


def region_mask(positions: ArrayLike, grid: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Return the located region in the image: the union of the cells of the given positions.

    The cell of position (r, c) is the part of the image that the position stands for when the patch map is laid over
    the image: rows r*H/h to (r+1)*H/h, columns likewise, outwards to whole pixels.

    Args:
        positions: (k, 2), as `top_positions` gives them for one map; (-1, -1) is left out.
        grid: (h, w) of the patch map.
        image_size: (H, W) of the image in pixels.

    Returns:
        (H, W) bool, True inside.

    Raises:
        UserError: a position outside the map.
    """
    chosen = np.asarray(positions, dtype=np.int64).reshape(-1, 2)
    chosen = chosen[(chosen >= 0).all(axis=1)]
    (h, w) = grid
    (height, width) = image_size
    if (chosen >= (h, w)).any():
        raise UserError(
            f"region: positions {chosen.tolist()} do not fit a map of {h} x {w} patches; give the size of the map "
            "that the positions came from"
        )
    region = np.zeros((height, width), dtype=bool)
    for row, column in chosen:
        rows = slice(row * height // h, -((row + 1) * height // -h))
        columns = slice(column * width // w, -((column + 1) * width // -w))
        region[rows, columns] = True
    return region
