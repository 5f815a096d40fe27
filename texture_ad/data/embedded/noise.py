"""Random fields and coordinates that every texture and defect is made of."""

from functools import lru_cache

import numpy as np
from scipy import fft

TWO_PI = 2 * np.pi


@lru_cache(maxsize=64)
def _gaussian_transfer(size: int, rows: float, columns: float) -> np.ndarray:
    """Return the transfer function (S, S // 2 + 1) of a Gaussian blur by `rows` and `columns` pixels."""
    fy = fft.fftfreq(size)[:, None]
    fx = fft.rfftfreq(size)[None, :]
    return np.exp(-2 * np.pi**2 * ((rows * fy) ** 2 + (columns * fx) ** 2)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, rows: float, columns: float | None = None) -> np.ndarray:
    """Draw Gaussian noise (S, S) of unit standard deviation.

    Args:
        rng: source of the noise.
        size: side S in pixels.
        rows: standard deviation of the blur along the rows' axis, in pixels.
        columns: that along the columns' axis; None for `rows`.
    """
    white = rng.standard_normal((size, size), dtype=np.float32)
    transfer = _gaussian_transfer(size, rows, rows if columns is None else columns)
    smooth = fft.irfft2(fft.rfft2(white) * transfer, s=(size, size))
    return smooth / (smooth.std() + 1e-12)


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a smooth step from 0 where `x` is at most `low` to 1 where it is at least `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def material_coordinates(
    rng: np.random.Generator, size: int, degrees: float = 0.0, turn: float = 1.0, wobble: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw which piece of the material an image shows.

    Every image shows another piece. Its turn and scale are nearly the same, and the material is slowly bent.

    Args:
        rng: source of the draw.
        size: side S in pixels.
        degrees: mean rotation.
        turn: standard deviation of the rotation in degrees.
        wobble: standard deviation of the bending in pixels.

    Returns:
        The material's coordinates (v, u) of each pixel, in pixels, (S, S) each.
    """
    angle = np.deg2rad(degrees + turn * rng.standard_normal())
    scale = 1 + 0.02 * rng.standard_normal()
    y, x = np.mgrid[:size, :size].astype(np.float32) * scale
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(1000, 5000)
    u = y * np.sin(angle) + x * np.cos(angle) + rng.uniform(1000, 5000)
    if wobble:
        v = v + wobble * smooth_noise(rng, size, 40)
        u = u + wobble * smooth_noise(rng, size, 40)
    return v.astype(np.float32), u.astype(np.float32)


def voronoi_cells(
    rng: np.random.Generator, v: np.ndarray, u: np.ndarray, pitch: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide a surface into the Voronoi cells of a lattice with jittered seeds.

    Args:
        rng: source of the jitter.
        v: first coordinate of each pixel in pixels, (S, S).
        u: second coordinate of each pixel in pixels, (S, S).
        pitch: of the lattice in pixels.

    Returns:
        Three arrays (S, S): the crease, which is 0 on a border; the distance from the cell's seed, both in pitches; and
        the number of the cell.
    """
    v = v / pitch
    u = u / pitch
    v = v - np.floor(v.min()) + 1
    u = u - np.floor(u.min()) + 1
    row = v.astype(np.int32)
    column = u.astype(np.int32)
    rows = row.max() + 2
    columns = column.max() + 2
    seed_v, seed_u = rng.uniform(0, 1, (2, rows * columns)).astype(np.float32)
    seed_v += np.repeat(np.arange(rows, dtype=np.float32), columns)
    seed_u += np.tile(np.arange(columns, dtype=np.float32), rows)
    return _nearest_seeds(v, u, seed_v, seed_u, row * columns + column, columns)


def _nearest_seeds(
    v: np.ndarray, u: np.ndarray, seed_v: np.ndarray, seed_u: np.ndarray, home: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return crease, distance and number of the nearest seed among a pixel's lattice cell `home` and its neighbours."""
    first = np.full(v.shape, np.inf, np.float32)
    second = first.copy()
    number = np.zeros(v.shape, np.int32)
    for step in (0, -1, 1, -columns, columns, -columns - 1, -columns + 1, columns - 1, columns + 1):
        cell = home + step
        distance = np.square(v - seed_v.take(cell)) + np.square(u - seed_u.take(cell))
        nearer = distance < first
        second = np.minimum(second, np.maximum(first, distance))
        number = np.where(nearer, cell, number)
        first = np.minimum(first, distance)
    first = np.sqrt(first)
    second = np.sqrt(second)
    return second - first, first, number
