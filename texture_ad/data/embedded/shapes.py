"""The shapes of defects, blobs and curves, and how a surface is pulled out of place."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from texture_ad.data.embedded.noise import TWO_PI, smooth_noise

REACH = 24  # pixels around a curve in which its distance is computed


def blob(rng: np.random.Generator, size: int, radius: float, rough: float) -> np.ndarray:
    """Draw an irregular, turned ellipse somewhere in the image.

    Args:
        rng: source of the draw.
        size: side S in pixels.
        radius: mean radius in pixels.
        rough: irregularity of the outline, in radii.

    Returns:
        The depth inside the blob in pixels, (S, S); it is negative outside.
    """
    row, column = rng.uniform(0.12, 0.88, 2) * size
    angle = rng.uniform(0, np.pi)
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    a = (y - row) * np.cos(angle) + (x - column) * np.sin(angle)
    b = (x - column) * np.cos(angle) - (y - row) * np.sin(angle)
    distance = np.hypot(a * stretch, b / stretch)
    grain = smooth_noise(rng, size, max(radius / 3, 1.5)) + 0.4 * smooth_noise(rng, size, 2)
    fading = np.clip(1.5 - distance / (3 * radius), 0, 1)
    return radius - distance + rough * radius * np.clip(grain, -2, 2) * fading


class Curve:
    """Hold a smooth open curve as every pixel sees it.

    Pixels further than `REACH` from its bounding box are given a large distance.

    Args:
        rng: source of the curve.
        size: side S of the image in pixels.
        length: of the curve in pixels.
        bend: total turn of the curve's direction, in turns.

    Attributes:
        distance: signed distance from the curve in pixels, (S, S).
        along: position of the nearest point along the curve, 0 to 1, (S, S).
        tangent: direction of the curve there, as (row, column), (S, S) each.
        normal: direction across the curve there, as (row, column), (S, S) each.
    """

    def __init__(self, rng: np.random.Generator, size: int, length: float, bend: float):
        points, tangent = self._draw(rng, size, length, bend)
        y, x = np.mgrid[:size, :size]
        pixels = np.stack([y.ravel(), x.ravel()], 1)
        near = ((pixels >= points.min(0) - REACH) & (pixels <= points.max(0) + REACH)).all(1)
        distance, index = cKDTree(points).query(pixels[near])
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)[index]
        side = np.sign(((pixels[near] - points[index]) * normal).sum(1))
        self.distance = self._scatter(size, near, side * distance, 1e3)
        self.along = self._scatter(size, near, index / (len(points) - 1), 0)
        self.tangent = [self._scatter(size, near, tangent[index, axis], 0) for axis in (0, 1)]
        self.normal = [self._scatter(size, near, normal[:, axis], 0) for axis in (0, 1)]

    @staticmethod
    def _draw(rng: np.random.Generator, size: int, length: float, bend: float) -> tuple[np.ndarray, np.ndarray]:
        """Draw the curve's points and their unit tangents, (N, 2) each, two points a pixel."""
        steps = max(int(2 * length), 8)
        turn = ndimage.gaussian_filter1d(rng.standard_normal(steps), steps / 6, mode="nearest")
        turn = bend * turn / (np.abs(turn).max() + 1e-9) * TWO_PI / steps
        heading = rng.uniform(0, TWO_PI) + np.cumsum(turn)
        tangent = np.stack([np.sin(heading), np.cos(heading)], 1)
        points = np.cumsum(tangent * (length / steps), axis=0)
        points += rng.uniform(0.2, 0.8, 2) * size - points.mean(0)
        return points, tangent

    @staticmethod
    def _scatter(size: int, where: np.ndarray, values: np.ndarray, fill: float) -> np.ndarray:
        """Return an image (S, S) that holds `values` at the pixels `where` (S * S,) and `fill` elsewhere."""
        full = np.full(size * size, fill, np.float32)
        full[where] = values
        return full.reshape(size, size)


def displaced(surface: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return a surface (S, S, 3) whose pixels are taken from `rows` and `columns` (S, S) pixels away."""
    y, x = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32)
    where = [y + rows, x + columns]
    channels = [ndimage.map_coordinates(surface[..., c], where, order=1, mode="mirror") for c in range(3)]
    return np.stack(channels, -1)
