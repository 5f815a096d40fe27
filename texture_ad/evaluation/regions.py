"""From an anomaly map to a mask of the pixels that are called anomalous, and to its connected regions."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from texture_ad.data.roi import Roi

ENLARGED = 2**24  # pixels up to which a map is enlarged to its photograph before regions are looked for


@dataclass(frozen=True)
class Region:
    """Describe one connected region of anomalous pixels, in pixels of the image.

    Attributes:
        box: (x, y, width, height); x and y of its left upper pixel.
        area: number of pixels.
        peak: highest score in it.
        centre: (x, y), mean of its pixels.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    centre: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def find_regions(
    anomaly_map: np.ndarray, threshold: float, min_area: int, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[Region, ...]]:
    """Return the pixels that are called anomalous, and their 8-connected regions, the highest peak first.

    Args:
        anomaly_map: (h, w) scores.
        threshold: a pixel is called anomalous where its score is greater.
        min_area: pixels; smaller regions are left out, of the mask as well.
        size: (H, W) of the image, whose pixel (r, c) is that of the map at (r h // H, c w // W), and in whose pixels
            areas and regions are; None for the map's own.

    Returns:
        The mask, (h, w) bool, and the regions.
    """
    mask = anomaly_map > threshold
    if not mask.any():  # of most images: nothing more to compute
        return mask, ()
    from skimage.measure import label, regionprops

    # The first of the image's pixels that each row and column of the map stands for, and the end.
    rows, columns = (-(np.arange(m + 1) * -n // m) for n, m in zip(size or mask.shape, mask.shape, strict=True))
    labels = label(mask, connectivity=2)
    weights = None if size is None else np.outer(np.diff(rows), np.diff(columns)).ravel()
    small = np.bincount(labels.ravel(), weights) < min_area
    labels[small[labels]] = 0
    found = []
    for properties in regionprops(labels, intensity_image=anomaly_map):
        top, left, bottom, right = properties.bbox
        y, x = properties.coords.T
        pixels = np.diff(rows)[y] * np.diff(columns)[x]
        centre = [
            float(np.average((edges[i] + edges[i + 1] - 1) / 2, weights=pixels))
            for edges, i in ((columns, x), (rows, y))
        ]
        box = (columns[left], rows[top], columns[right] - columns[left], rows[bottom] - rows[top])
        found.append(
            Region(
                box=(int(box[0]), int(box[1]), int(box[2]), int(box[3])),
                area=int(pixels.sum()),
                peak=float(properties.intensity_max),
                centre=(centre[0], centre[1]),
            )
        )
    return labels > 0, tuple(sorted(found, key=lambda region: -region.peak))


def resize_map(anomaly_map: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return an anomaly map (h, w) as float32 (H, W) of `size`, bilinear: nowhere higher than its pixels."""
    if anomaly_map.shape == tuple(size):
        return anomaly_map
    enlarged = F.interpolate(torch.from_numpy(anomaly_map)[None, None], size, mode="bilinear", align_corners=False)
    return enlarged[0, 0].numpy()


def locate_regions(
    anomaly_map: np.ndarray, size: tuple[int, int], pixel_threshold: float, min_area: int, roi: "Roi | None"
) -> tuple[np.ndarray, tuple[Region, ...]]:
    """Return mask (H, W) bool and regions of an anomaly map (h, w), in pixels of a photograph of `size` (H, W)."""
    # Between pixels a map is never higher than on them: most maps need not be enlarged.
    if (anomaly_map <= pixel_threshold).all():
        return np.zeros(size, bool), ()
    if math.prod(size) <= ENLARGED:
        return find_regions(enlarged_map(anomaly_map, size, roi), pixel_threshold, min_area)
    mask, regions = find_regions(anomaly_map, pixel_threshold, min_area, size)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, mask.shape, strict=True))
    return mask[rows][:, columns], regions


def joined_pixels(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) bool at another size, (h, w) bool: True where any of the pixels is that it joins."""
    if not mask.any():
        return np.zeros(size, bool)
    return F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), size)[0].bool().numpy()


def enlarged_map(anomaly_map: np.ndarray, size: tuple[int, int], roi: "Roi | None") -> np.ndarray:
    """Return an anomaly map (h, w) as float32 (H, W) of `size`, its lowest value outside the roi."""
    enlarged = resize_map(anomaly_map, size)
    # Between a pixel inside and one outside, values were interpolated.
    return enlarged if roi is None else np.where(roi.at(size).numpy(), enlarged, anomaly_map.min())
