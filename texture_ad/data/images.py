"""Reading photographs and masks: every common format and mode, to RGB bytes, with an error that helps."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from texture_ad.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
MAX_PIXELS = 100_000_000
MIN_SIDE = 4
MAX_GREY = 0.05  # of a mask's pixels between black and white: soft edges, not a picture


@dataclass(frozen=True)
class Sample:
    """One photograph: `label` 0 normal or 1 anomalous, `kind` "good" or the defect's folder name."""

    path: Path
    label: int = 0
    kind: str = "good"
    mask: Path | None = None


def _open(path: Path) -> Image.Image:
    """Decodes one image; the header's size is checked before any pixel is."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {width} x {height} pixels, more than {MAX_PIXELS:,}; scale the image down or cut it"
                )
            if min(width, height) < MIN_SIDE:
                raise UserError(f"{path}: {width} x {height} pixels, expected at least {MIN_SIDE} a side; remove it")
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{path}: {image.n_frames} frames, expected one; save the frames as single images")
            image.load()
            return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; scale the image down or cut it") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: can't be read as an image ({reason}); copy it again or remove it") from error


def header(path: Path) -> tuple[int, int, str]:
    """Width, height and mode of an image, as its header has them: nothing is decoded.

    Raises:
        UserError: no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return *image.size, image.mode
    except Exception as error:
        raise UserError(f"{path}: can't be read as an image; copy it again or remove it") from error


def _grey_bytes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        low = 0.0
        high = 1.0 if np.nanmax(values) <= 1 else 255.0
    else:
        low = 0.0
        high = 65535.0
    return np.nan_to_num((values - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def read_image(path: Path) -> np.ndarray:
    """Reads one photograph as RGB.

    16-bit values are scaled by 255/65535, floats from [0, 1] or [0, 255]; alpha is laid over black; EXIF's
    orientation is applied.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: missing, empty, truncated, animated, over MAX_PIXELS, under MIN_SIDE, or no image at all.
    """
    path = Path(path)
    image = _open(path)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey_bytes(image)[..., None], 3, 2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads a ground-truth mask of two values: 0, and any other for the pixels of the defect.

    Values within a tenth of the range of either count as it, as JPEG and resampling make them.

    Args:
        path: the mask's file.
        shape: (H, W) of its image.

    Returns:
        bool (H, W).

    Raises:
        UserError: unreadable, of another size than its image, without a defect pixel, or not binary.
    """
    image = _open(Path(path))
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


def resize(image: np.ndarray, size: int) -> Tensor:
    """uint8 (H, W, 3) to uint8 (3, size, size), bilinear with antialiasing; the aspect is not kept."""
    from torchvision.transforms.v2 import functional as F

    return F.resize(torch.from_numpy(image).permute(2, 0, 1), [size, size], antialias=True)


def resize_mask(mask: np.ndarray, size: int) -> Tensor:
    """bool (H, W) to bool (size, size): a pixel is defect where half of its area or more is.

    A defect too thin for that keeps every pixel that it touches, so that none vanishes.
    """
    from torchvision.transforms.v2 import functional as F

    area = F.resize(torch.from_numpy(mask)[None].float(), [size, size], antialias=True)[0]
    small = area >= 0.5
    return small if small.any() else area >= area.max().clamp(min=1e-6) / 2
