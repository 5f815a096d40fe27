"""Photographs at their own resolution, read window by window: decoded once, never held as floats or in two copies."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from texture_ad.data.geometry import Shape, Window
from texture_ad.data.images import header, open_image, resize, rgb_bytes
from texture_ad.data.synthetic import synthetic_defects

STRIP = 2**22  # pixels that are reduced at a time
WHOLE = 10**8  # pixels up to which a picture is resized in one piece


def read_scaled(path: Path, size: Shape) -> tuple[Tensor, Shape]:
    """Return a photograph scaled to a size, uint8 (3, h, w), and its own size.

    Raises:
        UserError: a file that can't be read as an image.
    """
    picture = Picture(path)
    return picture.view(size), picture.shape


class Picture:
    """Give windows of a photograph; its pixels are decoded at the first one and held until `release`.

    Args:
        path: of the file.

    Attributes:
        shape: (H, W) in pixels.

    Raises:
        UserError: at once or when it is decoded, a file that can't be read as an image.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        width, height, _ = header(self.path)
        self.shape: Shape = (height, width)
        self._image: Image.Image | None = None

    @property
    def image(self) -> Image.Image:
        """Return the decoded picture."""
        if self._image is None:
            image = open_image(self.path)
            # The range of floats is that of the whole picture.
            self._image = Image.fromarray(rgb_bytes(image)) if image.mode == "F" else image
            self.shape = self._image.size[::-1]
        return self._image

    def release(self) -> None:
        """Drop the decoded pixels."""
        self._image = None

    def pixels(self, window: Window) -> np.ndarray:
        """Return the part of a window that lies in the picture, uint8 (h, w, 3)."""
        (height, width) = self.shape
        box = (window.left, window.top, min(window.left + window.width, width), min(window.top + window.height, height))
        return rgb_bytes(self.image.crop(box))

    def window(self, window: Window) -> Tensor:
        """Return a window, uint8 (3, height, width); beyond the picture's edges it is mirrored."""
        pixels = self.pixels(window)
        rest = (window.height - pixels.shape[0], window.width - pixels.shape[1])
        if any(rest):
            pixels = np.pad(pixels, ((0, rest[0]), (0, rest[1]), (0, 0)), mode="symmetric")
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

    def scaled(self, size: Shape) -> Tensor:
        """Return the whole picture at another size, uint8 (3, h, w); a large one is first reduced by a whole factor."""
        (height, width) = self.image.size[::-1]
        factor = min(height // size[0], width // size[1]) // 2
        if height * width <= WHOLE or factor < 2:
            return resize(self.pixels(Window(0, 0, height, width)), size)
        rows = max(1, STRIP // (width * factor)) * factor
        strips = [self._reduced(Window(top, 0, rows, width), factor) for top in range(0, height, rows)]
        return resize(np.concatenate(strips), size)

    def view(self, size: Shape) -> Tensor:
        """Return `scaled`, and drop the decoded pixels."""
        scaled = self.scaled(size)
        self.release()
        return scaled

    def _reduced(self, window: Window, factor: int) -> np.ndarray:
        """Return the means of squares of `factor` pixels; those at the edges may be smaller."""
        return np.asarray(Image.fromarray(self.pixels(window)).reduce(factor))


class DamagedPicture(Picture):
    """Give windows of a photograph with one synthetic defect, of a size that fits a tile.

    Args:
        path: of the file.
        tile: size of a tile.
        seed: of the defect and its place.
    """

    def __init__(self, path: Path, tile: Shape, seed: int):
        super().__init__(path)
        self.tile = tile
        self.seed = seed

    @property
    def image(self) -> Image.Image:
        """Return the decoded picture with its defect."""
        if self._image is None:
            image = Picture.image.fget(self)  # type: ignore[attr-defined]
            self._image = image = _plain(image)
            generator = torch.Generator().manual_seed(self.seed)
            height, width = (min(pair) for pair in zip(self.shape, self.tile, strict=True))
            top, left = (
                int(torch.randint(side - length + 1, (), generator=generator))
                for side, length in zip(self.shape, (height, width), strict=True)
            )
            damaged, _ = synthetic_defects(self.window(Window(top, left, height, width))[None], generator)
            image.paste(Image.fromarray(damaged[0].permute(1, 2, 0).numpy()).convert(image.mode), (left, top))
        return self._image


def _plain(image: Image.Image) -> Image.Image:
    """Return a picture in a mode that bytes can be pasted into."""
    return image if image.mode in ("L", "RGB") else Image.fromarray(rgb_bytes(image))
