"""Comparison of images with those that a detector was trained on: size, mode, brightness and contrast."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from texture_ad.data.images import Header

DEVIATIONS = 5  # of the training images' own spread, beyond which an image counts as different


@dataclass(frozen=True)
class ImageStatistics:
    """Describe the training images, so that images unlike them can be recognised.

    Args:
        width: smallest and largest width in pixels.
        height: smallest and largest height in pixels.
        modes: Pillow's names of the modes that occur, in order of name.
        brightness: mean and spread of the images' mean grey levels, in 0..255.
        contrast: mean and spread of the grey levels' standard deviation within an image, in 0..255.
    """

    width: tuple[int, int]
    height: tuple[int, int]
    modes: tuple[str, ...]
    brightness: tuple[float, float]
    contrast: tuple[float, float]

    def to_dict(self) -> dict[str, list]:
        """Return the statistics as plain values, as a detector's file holds them."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: object) -> "ImageStatistics":
        """Return the statistics that `to_dict` gave, and check all of them: a stranger may have written the file.

        Args:
            content: what the file holds.

        Raises:
            LookupError: a name that is missing.
            TypeError: a value of another type.
            ValueError: a name too many, a list of another length, or a number out of its range.
        """
        if not isinstance(content, dict):
            raise TypeError("the statistics of the training images are no dict")
        names = [field.name for field in fields(cls)]
        values = {name: content[name] for name in names}
        if len(content) > len(names):
            raise ValueError(f"the statistics of the training images hold more than {', '.join(names)}")
        if not all(type(v) in (list, tuple) for v in values.values()):
            raise TypeError("the statistics of the training images are no lists")
        statistics = cls(**{name: tuple(v) for name, v in values.items()})
        _check_sides("width", statistics.width)
        _check_sides("height", statistics.height)
        _check_modes(statistics.modes)
        _check_grey("brightness", statistics.brightness)
        _check_grey("contrast", statistics.contrast)
        return statistics


def _check_sides(name: str, values: tuple) -> None:
    """Check the smallest and the largest side of images, in pixels."""
    if not all(type(v) is int for v in values):
        raise TypeError(f"{name}={values}: expected integers")
    if not (len(values) == 2 and 1 <= values[0] <= values[1]):
        raise ValueError(f"{name}={values}: expected the smallest side and the largest")


def _check_modes(values: tuple) -> None:
    """Check the names of the images' modes."""
    if not all(type(v) is str for v in values):
        raise TypeError(f"modes={values}: expected names")
    if not values:
        raise ValueError("modes=(): expected at least one name")


def _check_grey(name: str, values: tuple) -> None:
    """Check a mean and a spread of grey levels."""
    if not all(type(v) is float for v in values):
        raise TypeError(f"{name}={values}: expected floats")
    if not (len(values) == 2 and 0 <= values[0] < 256 and 0 < values[1] < 256):
        raise ValueError(f"{name}={values}: expected the mean of grey levels and a spread above 0")


def brightness(images: Tensor) -> Tensor:
    """Return mean grey level and its standard deviation within each image, (B, 2), in 0..255.

    Args:
        images: uint8 (B, 3, H, W).
    """
    grey = images.float().mean(1).flatten(1)
    return torch.stack((grey.mean(1), grey.std(1)), 1)


def training_statistics(headers: Sequence[Header], grey: Tensor) -> ImageStatistics:
    """Return what a detector keeps of its training images.

    Args:
        headers: of their pictures, each once.
        grey: `brightness` of all of them, (N, 2).
    """
    heights, widths = zip(*(one.shape for one in headers), strict=True)
    mean = grey.mean(0)
    spread = grey.std(0, unbiased=False).clamp(min=1.0)
    return ImageStatistics(
        width=(min(widths), max(widths)),
        height=(min(heights), max(heights)),
        modes=tuple(sorted({one.mode for one in headers})),
        brightness=(float(mean[0]), float(spread[0])),
        contrast=(float(mean[1]), float(spread[1])),
    )


class Unlike:
    """Count in which respects images differ from the training images.

    Attributes:
        counts: how many images, by respect, such as "size".
        first: the name and the difference of the first such image, by respect.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def compare(self, name: str, statistics: ImageStatistics | None, image: Header, grey: Tensor) -> str:
        """Count and return in what an image differs, "" where in nothing: see `differences`.

        Without statistics of the training images a file of several images is told all the same.
        """
        found = differences(statistics, image, grey) if statistics else {}
        if image.frames > 1:
            found["frames"] = f"holds {image.frames} images, of which the first alone is scored"
        self.counts.update(found.keys())
        for respect, sentence in found.items():
            self.first.setdefault(respect, f"{name}: {sentence}")
        return "; ".join(found.values())

    def sentences(self, images: int) -> list[str]:
        """Return a sentence for each respect, of this many images in all."""
        told = []
        for respect, count in self.counts.items():
            what = "hold several" if respect == "frames" else f"differ in {respect} from the training images"
            told.append(f"{count} of {images} images {what}, first {self.first[respect]}")
        return told


def either(first: ImageStatistics, second: ImageStatistics) -> ImageStatistics:
    """Return statistics that find no difference where either of these finds none, nor in between."""

    def widest(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        low = min(mean - DEVIATIONS * spread for mean, spread in (a, b))
        high = max(mean + DEVIATIONS * spread for mean, spread in (a, b))
        return (low + high) / 2, (high - low) / 2 / DEVIATIONS

    return ImageStatistics(
        width=(min(first.width[0], second.width[0]), max(first.width[1], second.width[1])),
        height=(min(first.height[0], second.height[0]), max(first.height[1], second.height[1])),
        modes=tuple(sorted({*first.modes, *second.modes})),
        brightness=widest(first.brightness, second.brightness),
        contrast=widest(first.contrast, second.contrast),
    )


def differences(statistics: ImageStatistics, image: Header, grey: Tensor) -> dict[str, str]:
    """Return a sentence for each respect in which an image differs from the training images.

    Args:
        statistics: of the training images.
        image: its header.
        grey: its `brightness`, (2,).

    Returns:
        Sentences by "size", "mode", "brightness" and "contrast"; empty where nothing differs.
    """
    height, width = image.shape
    found = {}
    (w0, w1) = statistics.width
    (h0, h1) = statistics.height
    if not (w0 <= width <= w1 and h0 <= height <= h1):
        found["size"] = f"{width} x {height} pixels, trained on {w0} to {w1} x {h0} to {h1}"
    if image.mode not in statistics.modes:
        found["mode"] = f"mode {image.mode}, trained on {', '.join(statistics.modes)}"
    trained = {"brightness": statistics.brightness, "contrast": statistics.contrast}
    for (name, (mean, spread)), value in zip(trained.items(), grey.tolist(), strict=True):
        if abs(value - mean) > DEVIATIONS * spread:
            found[name] = f"{name} {value:.0f}, trained on {mean:.0f} with a spread of {spread:.1f}"
    return found
