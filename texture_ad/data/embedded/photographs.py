"""Detail and colours from four photographs inside the scikit-image package.

All are released under CC0 1.0 according to their docstrings in `skimage.data`:

- `brick`: CC0Textures "Bricks25", the roughness of wire;
- `grass`: DeviantArt, linolafett, "Grass 01", the fibres of carpet and, drawn out, of wood;
- `gravel`: CC0Textures "Gravel04", the pebbles of leather, the stone of tile, the ground behind the grid;
- `coffee`: Rachel Michetti, courtesy of Pikolo Espresso Bar, the colours of wood (the table, not the cup).
"""

from functools import lru_cache

import numpy as np
import skimage.data
from scipy import ndimage


@lru_cache(maxsize=16)
def _detail(name: str, shrink: float, highpass: float) -> np.ndarray:
    """Return a grey photograph, `shrink` times smaller, without its slow shades: zero mean and unit deviation."""
    grey = getattr(skimage.data, name)().astype(np.float32)
    if shrink != 1:
        grey = ndimage.zoom(ndimage.gaussian_filter(grey, shrink / 2), 1 / shrink, order=1)
    detail = grey - ndimage.gaussian_filter(grey, highpass)
    detail = detail / ndimage.gaussian_filter(detail**2, highpass).clip(1e-3) ** 0.5
    return np.clip(detail, -2.5, 2.5)


def photograph(name: str, v: np.ndarray, u: np.ndarray, shrink: float = 1, highpass: float = 24) -> np.ndarray:
    """Return the detail of a photograph at material coordinates.

    It is mirrored beyond its borders, so that there are no seams.

    Args:
        name: of a function of `skimage.data`.
        v: first coordinate in pixels, (S, S).
        u: second coordinate in pixels, (S, S).
        shrink: factor by which the photograph is made smaller.
        highpass: standard deviation, in pixels, of the shades that are removed.

    Returns:
        (S, S), zero mean and unit deviation over the whole photograph.
    """
    return ndimage.map_coordinates(_detail(name, shrink, highpass), [v, u], order=1, mode="mirror")


@lru_cache(maxsize=1)
def wood_colours() -> np.ndarray:
    """Return colours (256, 3) from the darkest to the lightest of the table in the photograph `coffee`."""
    table = skimage.data.coffee()[:170, 440:].reshape(-1, 3) / 255
    table = table[np.argsort(table.sum(1), kind="stable")]
    chunks = np.array_split(table[len(table) // 50 : -len(table) // 50], 256)
    return ndimage.gaussian_filter1d(np.stack([c.mean(0) for c in chunks]), 6, axis=0).astype(np.float32)
