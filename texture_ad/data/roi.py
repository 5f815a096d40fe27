"""The region of interest: the part of every picture that counts.

Pixels outside it never reach a method: they are replaced by the mirrored pixels inside. So nothing that is learnt and
no score depends on them, and no method needs to know. Positions outside have no score.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from texture_ad.data.geometry import Shape, Window
from texture_ad.data.images import header, read_mask
from texture_ad.errors import ParameterError
from texture_ad.parameters import Range, check

WHOLE = 1 - 1e-4  # share of a resized pixel from which on it counts as wholly inside, but for rounding
SHADE = 0.35  # of a picture's brightness outside, where it is shown

# A mask's file, a box [top, left, bottom, right] or the width of a border, both in pixels of a typical picture.
Area = str | int | Sequence[int] | None


class Roi:
    """Say which pixels of a picture count.

    Args:
        inside: bool (H, W), at least one True.
    """

    def __init__(self, inside: Tensor):
        self.inside = inside
        self._positions: dict[tuple[Shape, Shape], tuple[Tensor, Tensor]] = {}

    @cached_property
    def _index(self) -> Tensor | None:
        return mirror_index(self.inside) if self.inside.any() and not self.inside.all() else None

    def fill(self, images: Tensor) -> Tensor:
        """Return images (..., H, W) whose pixels outside mirror those inside; a second time changes nothing."""
        return images if self._index is None else gather_pixels(images, self._index)

    def fill_window(self, tile: Tensor, picture: Shape, window: Window) -> Tensor:
        """Return `fill` of a window (..., h, w) of a picture; one of which nothing counts stays as it is."""
        return Roi(self.at(picture, window)).fill(tile)

    def shade(self, image: Tensor) -> Tensor:
        """Return an image, uint8 (3, H, W), that is dark outside."""
        return torch.where(self.inside, image, (image * SHADE).to(image.dtype))

    def at(self, picture: Shape, window: Window | None = None) -> Tensor:
        """Return which pixels of a picture of another size, or of a window of it, count.

        Args:
            picture: its size.
            window: may reach beyond the picture, where nothing counts; None for the whole picture.
        """
        top, left, height, width = window or Window(0, 0, *picture)
        rows, columns = (torch.arange(start, start + length) for start, length in ((top, height), (left, width)))
        down, across = (
            (place * side // full).clamp(max=side - 1)
            for place, side, full in zip((rows, columns), self.inside.shape, picture, strict=True)
        )
        inside = self.inside[down][:, across]
        return inside & (rows < picture[0])[:, None] & (columns < picture[1])

    def positions(self, grid: Shape, covered: Shape) -> tuple[Tensor, Tensor]:
        """Return which positions of a patch map count, and by which of them those outside are replaced.

        A position counts where at least half of its cell does. Of a region thinner than that, those count that it
        covers most.

        Args:
            grid: (h, w) of the patch map.
            covered: size that the map has where the picture has the region's; it may reach beyond the picture.

        Returns:
            bool (h, w), and the index (h w,) for `gather_pixels`.
        """
        if (grid, covered) not in self._positions:
            (height, width) = self.inside.shape
            padded = torch.nn.functional.pad(self.inside, (0, covered[1] - width, 0, covered[0] - height))
            area = torch.nn.functional.adaptive_avg_pool2d(padded[None].float(), grid)[0]
            counts = area >= area.max() / 2
            self._positions[grid, covered] = (counts, mirror_index(counts))
        return self._positions[grid, covered]


def one_colour(path: Path, roi: Roi | None) -> str:
    """Return why a normal picture of one colour where it counts can't be used."""
    where = "all over" if roi is None else "within data.roi"
    return f"{path}: one colour {where}, nothing to learn from; remove this exposure"


def counts(roi: Roi | None, picture: Shape, window: Window) -> bool:
    """Return whether anything of a window of a picture counts."""
    return roi is None or bool(roi.at(picture, window).any())


def mirror_index(inside: Tensor) -> Tensor:
    """Return for every pixel the one that it is replaced by: itself inside, else its mirror image.

    The mirror stands at the nearest pixel inside. Where the mirror image lies outside as well, that pixel is taken.

    Args:
        inside: bool (h, w), at least one True.

    Returns:
        Indices (h w,) into the flattened pixels.
    """
    shape = np.array(inside.shape)[:, None, None]
    nearest = distance_transform_edt(~inside.numpy(), return_distances=False, return_indices=True)
    mirrored = (2 * nearest - np.indices(inside.shape)).clip(0, shape - 1)
    chosen = np.where(inside.numpy()[tuple(mirrored)], mirrored, nearest)
    return torch.from_numpy(np.ravel_multi_index(tuple(chosen), inside.shape).astype(np.int64).ravel())


def gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """Return images (..., h, w) in which every pixel is the one that an index (h w,) says."""
    return images.flatten(-2)[..., index.to(images.device)].unflatten(-1, images.shape[-2:])


def read_roi(area: Area, picture: Shape, size: Shape) -> Roi | None:
    """Return the region of interest at the size in which a detector keeps it.

    A pixel counts where all pixels of the picture count that it is made of.

    Args:
        area: a mask's file, not 0 where a picture counts and of any size; a box [top, left, bottom, right], or the
            width of a border that doesn't count, both in pixels of a typical picture; None where all of it counts.
        picture: size of a typical picture.
        size: of the region, to which pictures are scaled.

    Raises:
        ParameterError: another kind of value, a box or border outside the picture, or nothing that counts.
        UserError: a file that can't be read as a mask.
    """
    if area is None:
        return None
    if isinstance(area, str):
        path = Path(area).expanduser()
        if not path.is_file():
            raise ParameterError("roi", area, "no such file; expected a mask, [top, left, bottom, right] or a border")
        inside = _wholly(read_mask(path, header(path).shape), size)
    else:
        top, left, bottom, right = _box(area, picture)
        rows, columns = (np.arange(side) for side in picture)
        down = _wholly(((rows >= top) & (rows < bottom))[None], (1, size[0]))[0]
        across = _wholly(((columns >= left) & (columns < right))[None], (1, size[1]))[0]
        inside = down[:, None] & across
    if not inside.any():
        raise ParameterError("roi", _plain(area), "leaves nothing of a picture at the size that the detector sees")
    return Roi(inside)


def _box(area: Any, picture: Shape) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of a box or of what a border leaves.

    Raises:
        ParameterError: neither of them, or outside the picture.
    """
    (height, width) = picture
    if isinstance(area, int) and not isinstance(area, bool):
        check("roi", area, Annotated[int, Range(0, (min(picture) - 1) // 2)])
        return area, area, height - area, width - area
    box = list(area) if isinstance(area, Sequence) else []
    if len(box) != 4 or not all(type(edge) is int for edge in box):
        raise ParameterError("roi", _plain(area), "expected a mask's file, [top, left, bottom, right] or a border")
    top, left, bottom, right = box
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ParameterError("roi", box, f"expected a box within pictures of {width} x {height} pixels")
    return top, left, bottom, right


def _plain(area: Any) -> Any:
    return list(area) if isinstance(area, Sequence) and not isinstance(area, str) else area


def _wholly(inside: np.ndarray, size: Shape) -> Tensor:
    """Return a mask, bool (H, W), at another size: a pixel is True where all are that it is made of."""
    return F.resize(torch.from_numpy(inside)[None].float(), list(size), antialias=True)[0] > WHOLE


def checked_roi(found: object, size: Shape) -> Roi | None:
    """Return the region of interest that a file holds; a stranger may have written it.

    Args:
        found: bool (H, W), or None.
        size: that it has to have.

    Raises:
        TypeError, ValueError: another content.
    """
    if found is None:
        return None
    if not isinstance(found, Tensor) or found.dtype != torch.bool:
        raise TypeError("its region of interest is no mask")
    if tuple(found.shape) != size or not found.any():
        raise ValueError(f"its region of interest is {tuple(found.shape)}, not of its size {size}, or empty")
    return Roi(found)
