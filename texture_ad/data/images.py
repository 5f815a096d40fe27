"""Reading images and masks from files, and bringing them to one size.

Every file becomes an RGB image of 8 bits, whatever its mode, and every file that cannot is refused by name
before anything is computed from it.
"""

import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from texture_ad.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
# Naming the decoders keeps out those that run other programs or scripts (EPS, PDF, ...).
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
# Below the number at which Pillow itself warns, so that ours is the limit that speaks.
MAX_PIXELS = 80_000_000
MIN_SIDE = 8

# Filters of warnings belong to the process: two threads that change them at once could leave them changed.
_WARNINGS = threading.Lock()


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Args:
        path: the image file.
        label: 0 normal, 1 anomalous.
        kind: "good" or the kind of defect.
        mask: the file of its defect mask, or None.
    """

    path: Path
    label: int
    kind: str
    mask: Path | None = None


def shown(path: Path | str) -> str:
    """A path as messages show it: on one line, whatever characters its name holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def _decode(path: Path) -> Image.Image:
    """The decoded, upright picture in `path`, in its own mode; UserError for everything else."""
    name = shown(path)
    try:
        if not path.is_file():
            raise UserError(f"{name}: no such file (or not a regular one); check the path")
        if path.stat().st_size == 0:
            raise UserError(f"{name}: the file is empty (0 bytes); copy it again or remove it")
        with _WARNINGS, warnings.catch_warnings():
            for category in (UserWarning, RuntimeWarning):
                warnings.filterwarnings("error", category=category, module=r"PIL\.")
            image = Image.open(path, formats=FORMATS)
            # Reading EXIF can warn, and it costs nothing here where the header already holds it.
            if "exif" in image.info:
                image.getexif()
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            # A phone's JPEG may carry further pictures (MPO): previews, not frames.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise UserError(
                    f"{name}: {image.n_frames} frames or pages, expected a single image; save the one to use"
                )
            return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{name}: more than {MAX_PIXELS // 10**6} million pixels, too large to decode safely; shrink it"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name}: not an image in a known format ({', '.join(FORMATS)}); convert or remove it"
        ) from error
    except PermissionError as error:
        raise UserError(f"{name}: no permission to read it; change the file's mode or owner") from error
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name}: damaged or unsupported image ({found}); re-export or remove it") from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """The conversions that `read_image` documents."""
    if _is_deep(image):
        grey = (np.array(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        values = np.array(image, dtype=np.float64)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 255):  # also False for a NaN
            raise UserError(
                f"{shown(path)}: float values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255; rescale it"
            )
        grey = np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode.lower() in ("la", "pa", "rgba") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise UserError(f"{shown(path)}: colour mode {image.mode} is not supported; save it as RGB") from error


def read_image(path: Path) -> np.ndarray:
    """Reads one image file as 8-bit RGB.

    - EXIF orientation is applied.
    - Grey, 1-bit and palette images are spread to RGB; CMYK and YCbCr converted without a colour profile.
    - 16-bit grey (and 32-bit integer, clipped to 0..65535) becomes `value >> 8`: linear, the same for every
      image, so that brightness stays comparable within a set.
    - Float grey in 0..1 is multiplied by 255, in 0..255 rounded; other ranges are refused.
    - Transparent pixels are blended with black.

    Args:
        path: a file in one of `FORMATS`; its content counts, not its suffix.

    Returns:
        uint8 (H, W, 3), H and W at least `MIN_SIDE`, H * W at most `MAX_PIXELS`.

    Raises:
        UserError: a missing, unreadable, empty, truncated or damaged file, something else than an image, more
            than one frame, too many or too few pixels.
    """
    path = Path(path)
    image = _decode(path)
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{shown(path)}: {image.width} x {image.height} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}; "
            "replace or remove it"
        )
    return _to_rgb(image, path)


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads the mask of a defect.

    A mask of at most two levels marks every pixel that is not 0, whatever the other level (1, 255, 65535, a
    palette's colour). One with more levels has been smoothed or compressed: it marks the pixels of at least
    half of full scale, 128 of 255. Of colours the brightest channel counts; transparent pixels are black.

    Args:
        path: an image file.
        shape: (H, W) of the image that it belongs to.

    Returns:
        bool (H, W), True = defect, at least one of them.

    Raises:
        UserError: as `read_image`, and where the size differs from the image's or no pixel is marked.
    """
    path = Path(path)
    image = _decode(path)
    if (image.height, image.width) != tuple(shape):
        raise UserError(
            f"{shown(path)}: the mask has {image.width} x {image.height} pixels, its image {shape[1]} x "
            f"{shape[0]}; draw the mask on that image"
        )
    values = np.array(image) if _is_deep(image) or image.mode == "F" else _to_rgb(image, path).max(axis=2)
    levels = np.unique(values)
    if len(levels) <= 2:
        mask = values != 0
    else:
        mask = _to_rgb(image, path).max(axis=2) >= 128
    if not mask.any():
        found = "only 0" if levels[-1] == 0 else f"{len(levels)} levels, all below half of full scale"
        raise UserError(
            f"{shown(path)}: the mask marks no defect ({found}); draw it in white, or move the image to test/good"
        )
    return mask


def resize(image: np.ndarray, size: int) -> Tensor:
    """Resizes an image to a square, bilinear with antialiasing; the aspect ratio is not kept.

    Args:
        image: uint8 (H, W, 3).
        size: side in pixels.

    Returns:
        uint8 (3, size, size).
    """
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return TF.resize(tensor, [size, size], antialias=True).contiguous()


def resize_mask(mask: np.ndarray, size: int) -> Tensor:
    """Resizes a mask to a square without losing a defect.

    A pixel is marked where at least half of its area is. A defect so thin that none of its pixels is keeps all
    those that it touches: nearest-neighbour sampling would break it into pieces or drop it.

    Args:
        mask: bool (H, W).
        size: side in pixels.

    Returns:
        bool (size, size).
    """
    share = F.interpolate(torch.from_numpy(mask)[None, None].float(), (size, size), mode="area")[0, 0].numpy()
    touched, marked = share > 0, share >= 0.5
    defects, _ = ndimage.label(touched, structure=np.ones((3, 3)))
    vanished = touched & ~np.isin(defects, np.unique(defects[marked]))
    return torch.from_numpy(marked | vanished)
