"""TIFFs of the kinds that Pillow can't open, read by tifffile: floats in colour, 32-bit integers, rare compressions."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from texture_ad.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, of either order of bytes
NORMAL = 1  # orientation
# What a channel beside the colours is; without the tag it is an alpha, as in Pillow.
UNSPECIFIED = (0,)  # none: infrared, say
MULTIPLIED = (1,)  # an alpha by which the colours have been multiplied: they lie over black


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does."""
    with open(path, "rb") as file:
        return file.read(4) in MAGIC


def on_black(values: np.ndarray) -> np.ndarray:
    """Return values (H, W, C) as colour (H, W, 3), laid over black by the alpha that 2 and 4 channels end with."""
    channels = values.shape[-1]
    colour = values[..., :3] if channels > 2 else values[..., :1].repeat(3, -1)
    if channels in (1, 3):
        return colour
    full = np.iinfo(values.dtype).max if values.dtype.kind != "f" else 1
    return (colour * (values[..., -1:] / full)).astype(values.dtype)


class Page:
    """Give one image of a TIFF.

    Args:
        page: of tifffile.
        frames: images that its file holds.

    Attributes:
        width: in pixels, as stored.
        height: in pixels, as stored.
        nbytes: of its decoded pixels.
        orientation: EXIF's number.
    """

    def __init__(self, page: "TiffPage", frames: int):
        self._page = page
        self.frames = frames
        self.width: int = page.imagewidth
        self.height: int = page.imagelength
        self.nbytes: int = page.nbytes
        self.orientation = int(page.tags[274].value) if 274 in page.tags else NORMAL

    @property
    def mode(self) -> str:
        """Return a name of its kind of pixels, such as "float32 x 3"."""
        samples = self._page.samplesperpixel
        return f"{self._page.dtype}" if samples == 1 else f"{self._page.dtype} x {samples}"

    def values(self) -> np.ndarray:
        """Decode its pixels, lay them over black where they have an alpha, and leave a channel out that is none.

        Returns:
            (H, W), or in colour (H, W, 3): uint8, or of more bits integers or floats.

        Raises:
            ValueError: of a kind that is none of these, or a compression that needs another package.
        """
        values = self._page.asarray()
        if values.dtype.kind not in "uif" or values.ndim not in (2, 3):
            raise ValueError(f"pixels of {values.dtype} {values.shape}")
        if self._page.photometric == 0 and values.dtype.kind == "u":  # white is zero
            values = np.iinfo(values.dtype).max - values
        if values.ndim == 2:
            return values
        if self._page.planarconfig == 2:  # a plane for each channel
            values = np.moveaxis(values, 0, -1)
        if values.shape[-1] > 4:
            raise ValueError(f"{values.shape[-1]} channels, expected at most 4")
        if values.shape[-1] in (2, 4) and self._page.extrasamples[:1] in (UNSPECIFIED, MULTIPLIED):
            values = values[..., :-1]
        return on_black(values)


@contextmanager
def open_page(path: Path, frame: int = 0) -> Iterator[Page]:
    """Open one image of a TIFF.

    Raises:
        UserError: a compression that needs the package imagecodecs.
        ValueError: the file can't be read.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it would tell every fault beside our one line
    file: TiffFile
    try:
        with tifffile.TiffFile(path) as file:
            yield Page(file.pages[frame], len(file.pages))  # type: ignore[arg-type]
    except UserError:
        raise
    except Exception as error:  # of any kind where a stranger wrote the file
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise UserError(
                f"{path}: a TIFF whose compression needs another package; pip install 'texture_ad[tiff]', or save it "
                "without compression"
            ) from error
        raise ValueError(str(error)) from error
