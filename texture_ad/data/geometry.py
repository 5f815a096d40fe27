"""From photographs to what a detector sees of them: the whole picture scaled, or tiles at its own resolution.

Sizes are (height, width) in pixels. A detector with tiles scores each one and joins their patch maps without seams:
see `Tiling`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from texture_ad.errors import ParameterError
from texture_ad.parameters import Range, Size, check

Shape = tuple[int, int]  # (height, width) in pixels

STRIDE = 32  # pixels: the longer side is a multiple, so that the deepest grid of every backbone covers all of it
SAME_ASPECT = 1.05  # factor between two aspects that count as the same
VIEW = 2**20  # pixels, at most, in which a whole picture that was scored by tiles is shown and measured


@dataclass(frozen=True)
class Geometry:
    """Say what a detector sees of a picture.

    Args:
        size: of the images that the method is given: the whole picture scaled to it, or a tile.
        overlap: of neighbouring tiles in pixels, at least; None where whole pictures are scaled.
        picture: of a typical picture that is cut into tiles; None where whole pictures are scaled.
        strips: whether all pictures fit into a tile in height, or all in width. Tiles then lie in one row or column,
            and what lies across the strip lies at the same place in each.
    """

    size: Shape
    overlap: int | None = None
    picture: Shape | None = None
    strips: bool = False

    @property
    def tiled(self) -> bool:
        """Return whether pictures are cut into tiles at their own resolution."""
        return self.picture is not None

    def one_row(self, picture: Shape) -> bool:
        """Return whether a picture is a strip as the typical one: its tiles lie in one row, or in one column."""
        assert self.picture is not None
        return any(max(typical, own) <= n for n, typical, own in zip(self.size, self.picture, picture, strict=True))

    @property
    def keeps_places(self) -> bool:
        """Return whether a position of an image or tile is the same place in every picture, or across every strip."""
        return not self.tiled or self.strips

    @cached_property
    def view(self) -> Shape:
        """Return the size in which maps, masks and drawings of whole pictures are."""
        if self.picture is None:
            return self.size
        scale = min(1.0, math.sqrt(VIEW / math.prod(self.picture)))
        return (max(1, round(self.picture[0] * scale)), max(1, round(self.picture[1] * scale)))

    def tiling(self, picture: Shape, grid: Shape) -> "Tiling":
        """Return where the tiles of a picture lie.

        Args:
            picture: its size.
            grid: of a tile's patch map.
        """
        assert self.overlap is not None
        return Tiling(picture, self.size, self.overlap, grid)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> "Geometry":
        """Check and take over what `to_dict` returned; a stranger may have written it.

        Raises:
            LookupError, TypeError, ParameterError: another content.
        """
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise TypeError("its geometry is none")
        size = checked_shape("size", values["size"])
        if values["picture"] is None:
            return cls(size)
        height, width = values["picture"]
        for side in (height, width):
            check("picture", side, Annotated[int, Range(1, 2**20)])
        if not isinstance(values["strips"], bool):
            raise TypeError("its strips are neither true nor false")
        return replace(tiles(size, values["overlap"], [(height, width)]), strips=values["strips"])


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
    if same_aspect((1, 1), (1, aspect)) or longer < shorter:
        longer = shorter
    return (longer, shorter) if aspect < 1 else (shorter, longer)


def same_aspect(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two shapes have about the same ratio of width to height."""
    ratio = math.log(first[1] / first[0]) - math.log(second[1] / second[0])
    return abs(ratio) <= math.log(SAME_ASPECT)


def tiles(size: Shape, overlap: int, shapes: Sequence[Shape], more: Iterable[Shape] = ()) -> Geometry:
    """Return the geometry of pictures that are cut into tiles.

    Args:
        size: of a tile.
        overlap: of neighbouring tiles in pixels.
        shapes: of the pictures, at least one.
        more: of further pictures, which are no typical ones.

    Raises:
        ParameterError: an overlap that is not smaller than a tile.
    """
    check("overlap", overlap, Annotated[int, Range(0, min(size) - 1)])
    strips = any(max(sides) <= n for n, sides in zip(size, zip(*shapes, *more, strict=True), strict=True))
    return Geometry(size, overlap, typical_shape(shapes), strips)


def typical_shape(shapes: Sequence[Shape]) -> Shape:
    """Return the median height and width of pictures, at least one."""
    heights, widths = zip(*shapes, strict=True)
    return (round(median(heights)), round(median(widths)))


class Window(NamedTuple):
    """State a part of a picture in pixels; it may reach beyond the picture's lower and right edges."""

    top: int
    left: int
    height: int
    width: int


class _Axis(NamedTuple):
    """Place tiles along one side of a picture, in cells of their patch maps, so that cells of all tiles coincide."""

    starts: list[int]  # cells
    cells: int  # of the whole side, as many as its pixels need
    cell: float  # pixels

    @staticmethod
    def of(picture: int, tile: int, overlap: int, grid: int) -> "_Axis":
        cell = tile / grid
        cells = math.ceil(picture / cell - 1e-9)
        last = max(0, cells - grid)
        step = max(1, int((tile - overlap) / cell + 1e-9))
        return _Axis([*range(0, last, step), last], cells, cell)


class Tiling:
    """Say where the tiles of one picture lie, and join their patch maps.

    Tiles begin at whole cells of their patch maps. So one position of the joined map is the same place in every tile
    that covers it. The last tile of a row may reach beyond the picture by less than a cell; that of a picture smaller
    than a tile by more.

    Args:
        picture: its size.
        tile: size of a tile.
        overlap: of neighbouring tiles in pixels, at least.
        grid: of a tile's patch map.

    Attributes:
        shape: (h, w) of the joined map.
    """

    def __init__(self, picture: Shape, tile: Shape, overlap: int, grid: Shape):
        self.picture = picture
        self.tile = tile
        self.grid = grid
        self._rows, self._columns = (
            _Axis.of(side, length, overlap, cells) for side, length, cells in zip(picture, tile, grid, strict=True)
        )
        self.shape = (self._rows.cells, self._columns.cells)
        rising = [torch.arange(n) + 1.0 for n in grid]
        # The farther from a tile's edge, where the backbone saw padding, the more a position counts.
        down, across = (torch.minimum(up, up.flip(0)) for up in rising)
        self._weight = down[:, None] * across

    @property
    def starts(self) -> list[Shape]:
        """Return the position (row, column) of the joined map at which each tile begins."""
        return list(product(self._rows.starts, self._columns.starts))

    def windows(self) -> Iterator[Window]:
        """Yield the window of each tile."""
        for row, column in self.starts:
            yield Window(round(row * self._rows.cell), round(column * self._columns.cell), *self.tile)

    def covered(self, view: Shape) -> Shape:
        """Return the size that the joined map has where the picture has the size `view`; it may reach beyond it."""
        return tuple(
            max(1, round(side * axis.cells * axis.cell / pixels))
            for side, axis, pixels in zip(view, (self._rows, self._columns), self.picture, strict=True)
        )  # type: ignore[return-value]

    def join(self, maps: Tensor, chosen: Sequence[int] | None = None) -> Tensor:
        """Return the weighted mean (P, h, w) of tiles' patch maps.

        Args:
            maps: (T, P, h', w'), in the order of `windows`.
            chosen: numbers of the T tiles that they are of, None for all. What no tile covers is 0.
        """
        height, width = self.grid
        total = maps.new_zeros(maps.shape[1], max(self.shape[0], height), max(self.shape[1], width))
        weights = maps.new_zeros(total.shape[1:])
        weight = self._weight.to(maps)
        starts = self.starts
        for (row, column), tile in zip(starts if chosen is None else (starts[n] for n in chosen), maps, strict=True):
            total[:, row : row + height, column : column + width] += weight * tile
            weights[row : row + height, column : column + width] += weight
        return (total / weights.clamp(min=1))[:, : self.shape[0], : self.shape[1]]


def grid_windows(picture: Shape, tile: Shape, overlap: int) -> list[Window]:
    """Return windows that cover a picture, to learn from; the last of a row ends where the picture does."""
    starts = [
        [*range(0, max(0, side - length), length - overlap), max(0, side - length)]
        for side, length in zip(picture, tile, strict=True)
    ]
    return [Window(top, left, *tile) for top, left in product(*starts)]
