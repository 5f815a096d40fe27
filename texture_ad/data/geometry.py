"""From photographs to what a detector sees of them: the whole picture scaled to one size that keeps its aspect.

Sizes are (height, width) in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from texture_ad.errors import ParameterError
from texture_ad.parameters import Size, check

Shape = tuple[int, int]  # (height, width) in pixels

STRIDE = 32  # pixels: the longer side is a multiple, so that the deepest grid of every backbone covers all of it
SAME_ASPECT = 1.05  # factor between two aspects that count as the same


@dataclass(frozen=True)
class Geometry:
    """Say what a detector sees of a picture.

    Args:
        size: (height, width) in pixels of the images that the method is given.
    """

    size: Shape

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> "Geometry":
        """Check and take over what `to_dict` returned; a stranger may have written it.

        Raises:
            LookupError, TypeError, ParameterError: another content.
        """
        if not isinstance(values, dict) or values.keys() != {"size"}:
            raise TypeError("its geometry is none")
        return cls(checked_shape("size", values["size"]))


def checked_shape(name: str, value: object) -> Shape:
    """Return a side, or a list of height and width, as (height, width).

    Raises:
        ParameterError: another kind of value, or a side out of its range.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        check(name, value, Size)
        return (int(value), int(value))  # type: ignore[call-overload]
    if len(value) != 2:
        raise ParameterError(name, list(value), "expected a number of pixels, or [height, width]")
    for side in value:
        check(name, side, Size)
    return (value[0], value[1])


def scaled_shape(shorter: int, shapes: Sequence[Shape]) -> Shape:
    """Return the size to which pictures are scaled: the shorter side as given, the other by their median aspect.

    Args:
        shorter: side in pixels.
        shapes: of the pictures, at least one.

    Examples:
        >>> scaled_shape(256, [(500, 500)]), scaled_shape(256, [(600, 800), (600, 800), (500, 500)])
        ((256, 256), (256, 352))
    """
    aspect = median(width / height for height, width in shapes)
    longer = round(shorter * max(aspect, 1 / aspect) / STRIDE) * STRIDE
    if same_aspect((1, 1), (shorter, longer)) or longer < shorter:
        longer = shorter
    return (longer, shorter) if aspect < 1 else (shorter, longer)


def same_aspect(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two shapes have about the same ratio of width to height."""
    ratio = math.log(first[1] / first[0]) - math.log(second[1] / second[0])
    return abs(ratio) <= math.log(SAME_ASPECT)
