"""Do images look as those did that a detector was trained on? Size, mode, brightness and contrast."""

from pathlib import Path

import torch
from torch import Tensor

from texture_ad.data.images import header

DEVIATIONS = 5  # of the training images' own spread, beyond which an image counts as different


def brightness(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to mean grey level and its standard deviation within the image, (B, 2), in 0..255."""
    grey = images.float().mean(1).flatten(1)
    return torch.stack((grey.mean(1), grey.std(1)), 1)


def training_statistics(paths: list[Path], levels: Tensor) -> dict:
    """What a detector keeps of its training images, plain values only.

    Args:
        paths: of the training images.
        levels: `brightness` of all of them, (N, 2).
    """
    widths, heights, modes = zip(*(header(p) for p in paths), strict=True)
    mean = levels.mean(0)
    spread = levels.std(0, unbiased=False).clamp(min=1.0)
    return {
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "modes": sorted(set(modes)),
        "brightness": [float(mean[0]), float(spread[0])],
        "contrast": [float(mean[1]), float(spread[1])],
    }


def differences(statistics: dict, path: Path, levels: Tensor) -> dict[str, str]:
    """How one image differs from the training images: for each of size, mode, brightness and contrast a sentence.

    Args:
        statistics: from `training_statistics`.
        path: of the image.
        levels: its `brightness`, (2,).
    """
    width, height, mode = header(path)
    found = {}
    (w0, w1) = statistics["width"]
    (h0, h1) = statistics["height"]
    if not (w0 <= width <= w1 and h0 <= height <= h1):
        found["size"] = f"{width} x {height} pixels, trained on {w0} to {w1} x {h0} to {h1}"
    if mode not in statistics["modes"]:
        found["mode"] = f"mode {mode}, trained on {', '.join(statistics['modes'])}"
    for name, value in zip(("brightness", "contrast"), levels.tolist(), strict=True):
        mean, spread = statistics[name]
        if abs(value - mean) > DEVIATIONS * spread:
            found[name] = f"{name} {value:.0f}, trained on {mean:.0f} with a spread of {spread:.1f}"
    return found
