"""One image of the data set: a surface, perhaps a defect on it, a shot of both, and the mask of the difference."""

import zlib

import numpy as np
from scipy import ndimage

from texture_ad.data.embedded.camera import camera
from texture_ad.data.embedded.defects import DEFECTS, SEVERITY
from texture_ad.data.embedded.textures import SURFACES

VERSION = 1
# A change of fewer grey levels than this is lost in the sensor noise: it is neither kept nor marked.
VISIBLE = 6
GAP = 3  # pixels, half of the widest gap between changed pixels that is closed
SPECK = 12  # pixels: a smaller group of them is dropped
LEAST = 24  # pixels of the smallest mask


def _solid(changed: np.ndarray) -> np.ndarray:
    """Return compact regions (S, S) of the changed pixels: specks dropped, gaps closed and holes filled."""
    padded = np.pad(changed, GAP + 1)
    groups, count = ndimage.label(ndimage.distance_transform_edt(~padded) <= GAP)
    large = ndimage.sum_labels(padded, groups, np.arange(count + 1)) >= SPECK
    large[0] = False
    kept = padded & large[groups]
    closed = kept | (ndimage.distance_transform_edt(large[groups]) > GAP)
    return ndimage.binary_fill_holes(closed)[GAP + 1 : -GAP - 1, GAP + 1 : -GAP - 1]


def _exposure_and_contrast(key: list[int], index: int) -> np.ndarray:
    """Return exposure and contrast of a folder's image, (2,), each from -1 to 1.

    They come from a low-discrepancy walk (Roberts' R2) instead of independent draws. Every folder, however few its
    images, then spans the same exposures and contrasts, so that neither says anything about the label.
    """
    start = np.random.default_rng(key).random(2)
    return 2 * np.mod(start + index * np.array([0.7548776662, 0.5698402910]), 1) - 1


def render(
    category: str, kind: str, index: int, size: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one image of the data set before and after its damage, and the mask of the damage.

    Outside the mask the two images are equal. Inside are the pixels that differ by more than `VISIBLE` grey levels, the
    holes they enclose and the gaps of at most 6 pixels between them. Specks of fewer than 12 pixels are neither kept
    nor marked.

    Args:
        category: one of `TEXTURES`.
        kind: a kind of defect, or "train" or "good" for the two draws of undamaged images.
        index: the image's number within its folder.
        size: side in pixels. The magnification stays: a smaller image shows a smaller piece of material.
        seed: non-negative.

    Returns:
        The intact image, uint8 (S, S, 3), the damaged one, uint8 (S, S, 3), and the mask, bool (S, S).
    """
    key = [VERSION, seed, zlib.crc32(category.encode()), zlib.crc32(kind.encode())]
    rng = np.random.default_rng([*key, index])
    exposure, contrast = _exposure_and_contrast(key, index)
    take = camera(rng, size, exposure, contrast)
    surface = SURFACES[category](rng, size)
    intact = take(surface)
    if kind not in DEFECTS:
        return intact, intact, np.zeros((size, size), bool)
    while True:
        severity = min(SEVERITY[category] * rng.uniform(0.35, 1), 1)
        damaged = take(DEFECTS[kind](rng, surface, severity))
        change = np.abs(damaged.astype(np.int16) - intact).max(-1)
        mask = _solid(change > VISIBLE)
        if mask.sum() >= LEAST:
            return intact, np.where(mask[..., None], damaged, intact), mask
