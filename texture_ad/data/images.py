"""Reading of photographs and masks: every common format and mode becomes RGB bytes or an error that helps."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from texture_ad.environment import available_memory
from texture_ad.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
MAX_PIXELS = 500_000_000
DECODED = 4  # bytes of a pixel, at most, as Pillow holds it
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower; `_check_header` looks at every file
MIN_SIDE = 4
ORIENTATION = 0x0112  # of EXIF
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
MAX_GREY = 0.05  # of a mask's pixels between black and white: soft edges, not a picture


def _check_header(path: Path, image: Image.Image) -> None:
    """Check the size and the number of frames that an image's header states.

    Raises:
        UserError: over MAX_PIXELS or what memory holds, under MIN_SIDE, or animated.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels, more than {MAX_PIXELS:,}; scale the image down or cut it")
    memory = available_memory()
    if memory is not None and width * height * DECODED > memory:
        raise UserError(
            f"{path}: {width} x {height} pixels need {width * height * DECODED / 2**30:.1f} GiB, {memory / 2**30:.1f} "
            "GiB of memory are free; scale the image down or cut it"
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{path}: {width} x {height} pixels, expected at least {MIN_SIDE} a side; remove it")
    frames = getattr(image, "n_frames", 1)  # after the sizes: counting the frames reads more of the file
    if frames > 1:
        raise UserError(f"{path}: {frames} frames, expected one; save the frames as single images")


def open_image(path: Path) -> Image.Image:
    """Decode one image; its header is checked before any pixel is decoded.

    Returns:
        The image as shown: EXIF's orientation is applied.

    Raises:
        UserError: the file can't be read as one image, or is refused by `_check_header`.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path)
            _check_header(path, image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; scale the image down or cut it") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: can't be read as an image ({reason}); copy it again or remove it") from error


def header(path: Path) -> tuple[int, int, str]:
    """Return width and height in pixels, as shown by EXIF's orientation, and the mode of an image; nothing is decoded.

    Raises:
        UserError: no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                # Pillow has turned a TIFF's size already, and would decode a PNG to look for EXIF behind its pixels.
                exif = image.getexif() if "exif" in image.info else {}
                width, height = image.size[::-1] if exif.get(ORIENTATION, 1) in TURNED else image.size
                return width, height, image.mode
    except Exception as error:
        raise UserError(f"{path}: can't be read as an image; copy it again or remove it") from error


def shapes_of(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return (height, width) in pixels of every image; one that can't be read is left out, its reader says why."""
    found = {}
    for path in paths:
        with suppress(UserError):
            width, height, _ = header(path)
            found[path] = (height, width)
    return found


def _grey_bytes(image: Image.Image) -> np.ndarray:
    """Return a grey image of 16-bit integers or floats as uint8 (H, W)."""
    values = np.asarray(image).astype(np.float64)
    high = 65535.0
    if image.mode == "F":
        high = 1.0 if np.nanmax(values) <= 1 else 255.0
    return np.nan_to_num(values / high * 255).clip(0, 255).astype(np.uint8)


def read_image(path: Path) -> np.ndarray:
    """Read one photograph as RGB.

    16-bit values are scaled by 255/65535, floats from [0, 1] or [0, 255]. Transparent images are laid over black.
    EXIF's orientation is applied.

    Args:
        path: of the file.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: missing, empty, truncated, animated, over MAX_PIXELS, under MIN_SIDE, or no image at all.
    """
    return rgb_bytes(open_image(Path(path)))


def rgb_bytes(image: Image.Image) -> np.ndarray:
    """Return a decoded image, or a part of it, as RGB, uint8 (H, W, 3); see `read_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey_bytes(image)[..., None], 3, 2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a ground-truth mask of two values: 0, and any other for the pixels of the defect.

    JPEG and resampling blur the two values: whatever lies within a tenth of the range of either counts as that value.

    Args:
        path: of the mask's file.
        shape: (H, W) of its image.

    Returns:
        bool (H, W).

    Raises:
        UserError: unreadable, of another size than its image, without a defect pixel, or not binary.
    """
    image = open_image(Path(path))
    values = np.asarray(image if image.mode.startswith("I") else image.convert("L"))
    if values.shape != tuple(shape):
        raise UserError(
            f"{path}: the mask has {values.shape[1]} x {values.shape[0]} pixels, its image {shape[1]} x {shape[0]}; "
            "make the mask anew at the image's size"
        )
    if values.max() == 0:
        raise UserError(f"{path}: the mask of a defect image marks no pixel; mend it or remove the image")
    share = values / values.max()
    between = ((share > 0.1) & (share < 0.9)).mean()
    if between > MAX_GREY:
        raise UserError(
            f"{path}: not a binary mask, {between:.0%} of its pixels are neither 0 nor {values.max()}; make it black "
            "and white"
        )
    return share > 0.5


def resize(image: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return an image, uint8 (H, W, 3), at another size, uint8 (3, h, w): bilinear with antialiasing.

    Args:
        image: uint8 (H, W, 3).
        size: (h, w) in pixels.
    """
    from torchvision.transforms.v2 import functional as F

    return F.resize(torch.from_numpy(image).permute(2, 0, 1), list(size), antialias=True)


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
