"""Photographs at their own resolution, read window by window: decoded once, never held as floats or in two copies."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from texture_ad.data.geometry import Shape, Window
from texture_ad.data.images import Levels, Reading, header, levels_of, open_image, resize, rgb
from texture_ad.data.roi import Roi, counts
from texture_ad.data.synthetic import synthetic_defects
from texture_ad.errors import UserError

STRIP = 2**22  # pixels that are reduced at a time
WHOLE = 10**8  # pixels up to which a picture is resized in one piece
WHOLE_DEEP = 10**7  # likewise of more than 8 bits, which become floats


def read_scaled(path: Path, size: Shape, reading: Reading | None = None, frame: int = 0) -> tuple[Tensor, Shape]:
    """Return a photograph scaled to a size, uint8 (3, h, w), and its own size; see `Picture`.

    Raises:
        UserError: a file that can't be read as an image.
    """
    picture = Picture(path, reading, frame)
    return picture.view(size), picture.shape


class Picture:
    """Give windows of a photograph; its pixels are decoded at the first one and held until `release`.

    Args:
        path: of the file.
        reading: how it is read, None for the limits of its type and its first frame.
        frame: which one of a file that holds several.

    Attributes:
        shape: (H, W) in pixels.

    Raises:
        UserError: at once or when it is decoded, a file that can't be read as an image.
    """

    def __init__(self, path: Path, reading: Reading | None = None, frame: int = 0):
        self.path = Path(path)
        self.reading = reading or Reading()
        self.frame = frame
        self.shape: Shape = header(self.path, frame).shape
        self.levels: Levels = (0.0, 255.0)
        self._image: Image.Image | np.ndarray | None = None

    @property
    def image(self) -> Image.Image | np.ndarray:
        """Return the decoded picture; of one with more than 8 bits a channel its values."""
        if self._image is None:
            self._image = image = open_image(self.path, self.frame, self.reading.frames)
            self.levels = levels_of(image, self.reading)
            self.shape = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        return self._image

    def release(self) -> None:
        """Drop the decoded pixels."""
        self._image = None

    def pixels(self, window: Window) -> np.ndarray:
        """Return the part of a window that lies in the picture, (h, w, 3) as `rgb` does."""
        image = self.image
        (height, width) = self.shape
        right, bottom = min(window.left + window.width, width), min(window.top + window.height, height)
        if isinstance(image, np.ndarray):
            return rgb(image[window.top : bottom, window.left : right], self.levels)
        return rgb(image.crop((window.left, window.top, right, bottom)), self.levels)

    def window(self, window: Window) -> Tensor:
        """Return a window, uint8 (3, height, width); beyond the picture's edges it is mirrored."""
        pixels = rounded(self.pixels(window))
        rest = (window.height - pixels.shape[0], window.width - pixels.shape[1])
        if any(rest):
            pixels = np.pad(pixels, ((0, rest[0]), (0, rest[1]), (0, 0)), mode="symmetric")
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

    def scaled(self, size: Shape) -> Tensor:
        """Return the whole picture at another size, uint8 (3, h, w); a large one is first reduced by a whole factor."""
        most = WHOLE_DEEP if isinstance(self.image, np.ndarray) else WHOLE
        (height, width) = self.shape
        factor = min(height // size[0], width // size[1]) // 2
        if height * width <= most or factor < 2:
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
        return np.asarray(Image.fromarray(rounded(self.pixels(window))).reduce(factor))


class DamagedPicture(Picture):
    """Give windows of a photograph with one synthetic defect, of a size that fits a tile.

    Args:
        path: of the file.
        tile: size of a tile.
        seed: of the defect and its place.
        reading: how it is read, None for the limits of its type and its first frame.
        frame: which one of a file that holds several.
        roi: the region of interest, in which the defect lies at least in part.
    """

    def __init__(
        self,
        path: Path,
        tile: Shape,
        seed: int,
        reading: Reading | None = None,
        frame: int = 0,
        roi: Roi | None = None,
    ):
        super().__init__(path, reading, frame)
        self.tile = tile
        self.seed = seed
        self.roi = roi

    @property
    def image(self) -> Image.Image:
        """Return the decoded picture with its defect."""
        if self._image is None:
            image = Picture.image.fget(self)  # type: ignore[attr-defined]
            self._image = image = _plain(image, self.levels)
            generator = torch.Generator().manual_seed(self.seed)
            window = self._place(generator)
            inside = None if self.roi is None else self.roi.at(self.shape, window)
            damaged, _ = synthetic_defects(self.window(window)[None], generator, inside)
            pasted = Image.fromarray(damaged[0].permute(1, 2, 0).numpy()).convert(image.mode)
            image.paste(pasted, (window.left, window.top))
        assert isinstance(self._image, Image.Image)
        return self._image

    def _place(self, generator: torch.Generator) -> Window:
        """Draw a window of which something counts.

        Raises:
            UserError: nothing of the picture does.
        """
        if self.roi is not None and not self.roi.at(self.shape).any():
            raise UserError(f"{self.path}: so small that nothing of it lies in the region of interest; remove it")
        height, width = (min(pair) for pair in zip(self.shape, self.tile, strict=True))
        while True:
            top, left = (
                int(torch.randint(side - length + 1, (), generator=generator))
                for side, length in zip(self.shape, (height, width), strict=True)
            )
            window = Window(top, left, height, width)
            if counts(self.roi, self.shape, window):
                return window


def rounded(pixels: np.ndarray) -> np.ndarray:
    """Return pixels from 0 to 255 as uint8."""
    return pixels if pixels.dtype == np.uint8 else pixels.round().astype(np.uint8)


def _plain(image: Image.Image | np.ndarray, levels: Levels) -> Image.Image:
    """Return a picture in a mode that bytes can be pasted into."""
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB"):
        return image
    return Image.fromarray(rounded(rgb(image, levels)))
