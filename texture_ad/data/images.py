"""Reading of photographs and masks: every format and mode becomes RGB of levels 0 to 255, or an error that helps.

An image of 8 bits a channel is read as bytes. One of more bits (16-bit integers, floats) keeps its depth until `resize`
rounds: a detector's images are bytes, but they are rounded once and last.
"""

import errno
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from texture_ad.data.tiff import is_tiff, on_black, open_page
from texture_ad.environment import available_memory
from texture_ad.errors import ParameterError, UserError
from texture_ad.parameters import check

if TYPE_CHECKING:
    from texture_ad.data.roi import Roi

# Formats of Pillow that hold no picture, need another program, or run what they hold.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
Image.init()
FORMATS = tuple(name for name in Image.ID if name not in _NO_PICTURES)
IMAGE_SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)

MAX_PIXELS = 500_000_000
LARGE = 2**24  # pixels of a picture of which one is decoded at a time
_large = Lock()
DECODED = 4  # bytes of a pixel, at most, as Pillow holds it
DEEP = 16  # bytes of a pixel of more than 8 bits, while it is decoded and scaled
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower; `check_size` looks at every file
MIN_SIDE = 4
ORIENTATION = 0x0112  # of EXIF
BITS = 0x0102  # a sample has, of TIFF
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
UPSIDE_DOWN = (3, 4, 7, 8)  # that then turn the rows round
MIRRORED = (2, 3, 6, 7)  # and the columns
MAX_GREY = 0.05  # of a mask's pixels between black and white: soft edges, not a picture
MAX_CLASSES = 16  # values of a mask that may be the numbers of classes
EVEN = 0.2  # share of a mask's grey pixels like both neighbours from which on grey is a number, not a soft edge
MARGIN = 0.25  # of the training images' range, that is kept below and above it for what defects add
TAIL = 0.1  # per cent of an image's values at either end that don't widen the range: hot and dead pixels

Frames = Literal["first", "all", "error"]
Levels = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """Say how files are read: the same for the training images and for all that a detector is given later.

    Args:
        levels: values of images with more than 8 bits that become black and white; None for the limits of their type.
        frames: which are read of a file that holds several: the "first", or "all"; "error" refuses it.
    """

    levels: Levels | None = None
    frames: Frames = "first"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {"levels": self.levels and list(self.levels), "frames": self.frames}

    @classmethod
    def from_dict(cls, values: object) -> "Reading":
        """Check and take over what `to_dict` returned; a stranger may have written it.

        Raises:
            TypeError, ParameterError: another content.
        """
        if not isinstance(values, dict) or values.keys() != {"levels", "frames"}:
            raise TypeError("its reading is none")
        check("frames", values["frames"], Frames)
        return cls(checked_levels("levels", values["levels"]), values["frames"])


def checked_levels(name: str, values: object) -> Levels | None:
    """Return two numbers, the first below the second, as floats; None stays None.

    Raises:
        ParameterError: another kind of value.
    """
    if values is None:
        return None
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(numbers) != 2 or not all(type(number) in (int, float) and np.isfinite(number) for number in numbers):
        raise ParameterError(name, values, "expected [low, high], two numbers")
    low, high = map(float, numbers)
    if not low < high:
        raise ParameterError(name, values, "expected [low, high] with low below high")
    return low, high


def check_size(path: Path, shape: tuple[int, int], decoded: int = DECODED) -> None:
    """Check the size that an image's header states.

    Args:
        path: of the file.
        shape: (height, width) in pixels.
        decoded: bytes of a pixel in memory.

    Raises:
        UserError: over MAX_PIXELS or what memory holds, or under MIN_SIDE.
    """
    height, width = shape
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels, more than {MAX_PIXELS:,}; scale the image down or cut it")
    memory = available_memory()
    if memory is not None and width * height * decoded > memory:
        raise UserError(
            f"{path}: {width} x {height} pixels need {width * height * decoded / 2**30:.1f} GiB, {memory / 2**30:.1f} "
            "GiB of memory are free; scale the image down or cut it"
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{path}: {width} x {height} pixels, expected at least {MIN_SIDE} a side; remove it")


def open_image(path: Path, frame: int = 0, frames: Frames = "first") -> Image.Image | np.ndarray:
    """Decode one image, turned as EXIF says; its header is checked before any pixel is decoded.

    Returns:
        The image; of one with more than 8 bits a channel its values, integers or floats (H, W) or (H, W, 3).

    Raises:
        UserError: the file can't be read as an image, is refused by `check_size`, or holds several where `frames`
            is "error".
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
            _check_frames(path, count_frames(image), frames)
            if frame:
                image.seek(frame)
            check_size(path, image.size[::-1], DEEP if is_deep(image) else DECODED)
            return _decode(path, image, frame)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; scale the image down or cut it") from error
    except Exception as error:
        with suppress(OSError, ValueError):
            if is_tiff(path):
                return _read_tiff(path, frame, frames)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unreadable(path, error, f" ({reason})") from error


def _unreadable(path: Path, error: Exception, reason: str = "") -> UserError:
    """Return what is told of a file that can't be read: the system's reason where it refused, else the content's."""
    # A damaged file may lead to a place that is none, which the system refuses as well.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return UserError(f"{path}: can't be read ({error.strerror}); check the path and its permissions")
    return UserError(f"{path}: can't be read as an image{reason}; copy it again or remove it")


def _check_frames(path: Path, count: int, frames: Frames) -> None:
    if frames == "error" and count > 1:
        problem = f"{count} frames, expected one"
        raise UserError(f"{path}: {problem}; read the first or all of them, or save them as single images")


def _read_tiff(path: Path, frame: int, frames: Frames) -> Image.Image | np.ndarray:
    """Return what `open_image` does of a TIFF that Pillow can't open."""
    with open_page(path, frame) as page:
        check_size(path, (page.height, page.width), page.nbytes // (page.width * page.height))
        _check_frames(path, page.frames, frames)
        values = page.values()
        if values.dtype == np.uint8:
            image = Image.fromarray(values)
            image.getexif()[ORIENTATION] = page.orientation
            return ImageOps.exif_transpose(image)
        return _turned(values, page.orientation)


def count_frames(image: Image.Image) -> int:
    """Return how many images a file holds; previews and gain maps that cameras add to a JPEG don't count."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _decode(path: Path, image: Image.Image, frame: int) -> Image.Image | np.ndarray:
    """Return an opened image, turned as EXIF says; of a deep one its values."""
    deep = is_deep(image)
    if deep and image.mode in ("RGB", "RGBA", "LA"):
        return _turned(_colour_values(path, image, frame), image.getexif().get(ORIENTATION, 1))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy would forget its format
    return np.asarray(image) if deep else image


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image has more than 8 bits a channel; it is not decoded. Of inks 8 bits are read."""
    # Pillow keeps 8 bits of each colour; its raw mode tells what the file has, and of a TIFF in planes its tag.
    return image.mode != "CMYK" and (
        image.mode.startswith("I")
        or image.mode == "F"
        or max(getattr(image, "tag_v2", {}).get(BITS, (8,))) > 8
        or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    )


def _colour_values(path: Path, image: Image.Image, frame: int) -> np.ndarray:
    """Return the 16-bit values of a PNG or TIFF in colour, (H, W, 3), laid over black where it has an alpha."""
    if image.format != "PNG":
        with open_page(path, frame) as page:
            return page.values()
    from torchvision.io import ImageReadMode, decode_png, read_file

    return on_black(decode_png(read_file(str(path)), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy())


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return values (H, W) or (H, W, C) turned as EXIF's orientation says."""
    turned = values.swapaxes(0, 1) if orientation in TURNED else values
    down = -1 if orientation in UPSIDE_DOWN else 1
    across = -1 if orientation in MIRRORED else 1
    return np.ascontiguousarray(turned[::down, ::across])


@dataclass(frozen=True)
class Header:
    """Tell what a file says of one of its images before any pixel is decoded.

    Args:
        shape: (height, width) in pixels, as EXIF's orientation shows it.
        mode: Pillow's name of its kind of pixels, or tifffile's.
        deep: whether it has more than 8 bits a channel.
        frames: how many images the file holds.
    """

    shape: tuple[int, int]
    mode: str
    deep: bool
    frames: int


def header(path: Path, frame: int = 0) -> Header:
    """Return the header of an image; nothing is decoded.

    Args:
        path: of the file.
        frame: which one of a file that holds several.

    Raises:
        UserError: no image.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                frames = count_frames(image)
                if frame:
                    image.seek(frame)
                # Pillow has turned a TIFF's size already, and would decode a PNG to look for EXIF behind its pixels.
                exif = image.getexif() if "exif" in image.info else {}
                shape = image.size if exif.get(ORIENTATION, 1) in TURNED else image.size[::-1]
                return Header(shape, image.mode, is_deep(image), frames)
    except UserError:
        raise
    except Exception as error:
        with suppress(OSError, ValueError):
            if is_tiff(path):
                with open_page(path, frame) as page:
                    stored = (page.height, page.width)
                    shape = stored[::-1] if page.orientation in TURNED else stored
                    return Header(shape, page.mode, not page.mode.startswith("uint8"), page.frames)
        raise _unreadable(path, error) from error


def headers_of(pictures: Iterable[tuple[Path, int]]) -> dict[tuple[Path, int], Header]:
    """Return the headers of frames of files; what can't be read is left out, its reader says why."""

    def found(picture: tuple[Path, int]) -> Header | None:
        with suppress(UserError):
            return header(*picture)
        return None

    pictures = list(dict.fromkeys(pictures))
    with ThreadPoolExecutor() as pool:
        return {picture: one for picture, one in zip(pictures, pool.map(found, pictures), strict=True) if one}


def training_levels(pictures: Iterable[tuple[Path, int]], roi: "Roi | None" = None) -> Levels | None:
    """Return the levels that become black and white for images of more than 8 bits, from those of training.

    They are the smallest and the largest value of all images, but for a thousandth of each image's pixels at either
    end, and a margin beyond them in which defects may be darker or brighter.

    Args:
        pictures: files of normal images, and which frame of each.
        roi: the region of interest, whose pixels alone count.

    Returns:
        The low and the high level, None where no image has more than 8 bits.

    Raises:
        UserError: an image that can't be read.
    """
    with ThreadPoolExecutor() as pool:
        found = [
            levels
            for levels in pool.map(lambda picture: _levels(picture[0], picture[1], roi), pictures)
            if levels is not None
        ]
    if not found:
        return None
    low = min(levels[0] for levels in found)
    high = max(levels[1] for levels in found)
    margin = MARGIN * (high - low) or 1.0
    # Counts of light have no values below 0.
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one thread at a time decode and use a large picture; several at once could fill the memory."""
    pixels = 0
    with suppress(UserError):  # which its reader tells
        pixels = math.prod(header(path).shape)
    with _large if pixels > LARGE else nullcontext():
        yield


def _levels(path: Path, frame: int, roi: "Roi | None") -> Levels | None:
    """Return the range of an image's values but for its tails, None for an image of 8 bits."""
    with in_turn(path):
        values = open_image(path, frame)
        if isinstance(values, Image.Image):
            return None
        values = values if roi is None else values[roi.at((values.shape[0], values.shape[1])).numpy()]
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise UserError(f"{path}: no value is finite; remove the image")
        low, high = np.percentile(finite, [TAIL, 100 - TAIL])
        return float(low), float(high)


def _scaled(values: np.ndarray, levels: Levels) -> np.ndarray:
    """Return values (H, W) or (H, W, 3) between two levels as float32 (H, W, 3) from 0 to 255."""
    low, high = levels
    scaled = np.nan_to_num((values.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, 2)


def levels_of(image: Image.Image | np.ndarray, reading: Reading) -> Levels:
    """Return which values of a decoded image become black and white: the reading's levels, or what its type allows."""
    if isinstance(image, Image.Image):
        return 0.0, 255.0
    if reading.levels is not None:
        return reading.levels
    if np.issubdtype(image.dtype, np.integer):
        return 0.0, 65535.0
    return 0.0, 1.0 if np.nanmax(image, initial=0) <= 1 else 255.0


def read_image(path: Path, reading: Reading | None = None, frame: int = 0) -> np.ndarray:
    """Read one photograph as RGB.

    Values of more than 8 bits are scaled by the reading's levels. Transparent images are laid over black. EXIF's
    orientation is applied.

    Args:
        path: of the file.
        reading: how it is read, None for the limits of its type and its first frame.
        frame: which one of a file that holds several.

    Returns:
        (H, W, 3) from 0 to 255: uint8, or float32 of an image with more than 8 bits.

    Raises:
        UserError: missing, empty, truncated, over MAX_PIXELS, under MIN_SIDE, or no image at all.
    """
    reading = reading or Reading()
    image = open_image(Path(path), frame, reading.frames)
    return rgb(image, levels_of(image, reading))


def rgb(image: Image.Image | np.ndarray, levels: Levels) -> np.ndarray:
    """Return what `open_image` decoded, or a part of it, as RGB; see `read_image`."""
    if isinstance(image, np.ndarray):
        return _scaled(image, levels)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def read_mask(path: Path, shape: tuple[int, int], frame: int = 0) -> np.ndarray:
    """Read a ground-truth mask: every pixel that is not 0 belongs to a defect.

    So the numbers of several classes or regions may stand in one mask. JPEG and resampling blur black and white: in a
    mask of a lossy format, or whose levels of grey lie as edges do and not in areas of one value, a pixel above half of
    the largest value counts.

    Args:
        path: of the mask's file.
        shape: (H, W) of its image.
        frame: which one of a file that holds several.

    Returns:
        bool (H, W), False everywhere where the mask marks no pixel.

    Raises:
        UserError: unreadable, of another size than its image, or a picture.
    """
    image = open_image(Path(path), frame)
    lossy = isinstance(image, Image.Image) and image.format in ("JPEG", "MPO", "WEBP")
    values = image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))
    values = values.max(-1) if values.ndim == 3 else values
    if values.shape != tuple(shape):
        raise UserError(
            f"{path}: the mask has {values.shape[1]} x {values.shape[0]} pixels, its image {shape[1]} x {shape[0]}; "
            "make the mask anew at the image's size"
        )
    share = values / max(values.max(), 1)
    grey = (share > 0) & (share < 0.9)
    even = (values[1:, 1:] == values[:-1, 1:]) & (values[1:, 1:] == values[1:, :-1])
    areas = (even & grey[1:, 1:]).sum() >= EVEN * grey.sum()
    numbers = not lossy and (values.max() <= MAX_CLASSES or areas)
    between = ((share > 0.1) & (share < 0.9)).mean()
    if between > MAX_GREY and not (numbers and len(np.unique(values)) <= MAX_CLASSES):
        raise UserError(
            f"{path}: not a mask but a picture, {between:.0%} of its pixels are neither 0 nor {values.max():g}; make "
            "it black and white"
        )
    return values != 0 if numbers else share > 0.5


def resize(image: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return an image at another size, uint8 (3, h, w): bilinear with antialiasing, rounded last.

    Args:
        image: (H, W, 3) from 0 to 255, uint8 or float32.
        size: (h, w) in pixels.
    """
    from torchvision.transforms.v2 import functional as F

    resized = F.resize(torch.from_numpy(image).permute(2, 0, 1), list(size), antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.round().clamp(0, 255).byte()


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return a mask, bool (H, W), at another size, bool (h, w).

    A pixel counts as defect if half of its area or more does. A defect too thin for that keeps every pixel that it
    touches, so that no defect vanishes.

    Args:
        mask: bool (H, W), True = defect.
        size: (h, w) in pixels.
    """
    from torchvision.transforms.v2 import functional as F

    area = F.resize(torch.from_numpy(mask)[None].float(), list(size), antialias=True)[0]
    small = area >= 0.5
    return small if small.any() else area >= area.max().clamp(min=1e-6) / 2
