"""The camera that takes a surface: lamp, lens and sensor."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage


def _uneven_light(rng: np.random.Generator, size: int, exposure: float) -> np.ndarray:
    """Draw the light on each pixel, (S, S, 1): the exposure, a slope and a vignette."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    slope = 0.05 * rng.standard_normal(2)
    vignette = rng.uniform(0, 0.06) * (y**2 + x**2)
    light = np.exp(0.13 * exposure) * (1 + slope[0] * y + slope[1] * x - vignette)
    return light[..., None].astype(np.float32)


def camera(rng: np.random.Generator, size: int, exposure: float, contrast: float) -> Callable[[np.ndarray], np.ndarray]:
    """Draw one shot: uneven light, white balance, focus and sensor noise.

    All chance is drawn before the function returns. A surface can thus be taken before and after its damage with the
    very same shot.

    Args:
        rng: source of the shot.
        size: side S in pixels.
        exposure: from -1 (dark) to 1 (bright).
        contrast: from -1 (flat) to 1 (steep).

    Returns:
        A function from a surface (S, S, 3) to its photograph, uint8 (S, S, 3).
    """
    light = _uneven_light(rng, size, exposure)
    balance = (1 + 0.010 * rng.standard_normal(3)).astype(np.float32)
    focus = rng.uniform(0.4, 0.6)
    noise = rng.uniform(0.008, 0.013) * rng.standard_normal((size, size, 3), dtype=np.float32)

    def take(surface: np.ndarray) -> np.ndarray:
        shot = ndimage.gaussian_filter(surface, (focus, focus, 0), truncate=2.5) * light * balance
        shot = np.clip(shot, 0, None)
        steeper = ((shot.mean(-1) + 1e-3) / 0.42) ** float(0.16 * contrast)
        return np.clip(np.rint(255 * (shot * steeper[..., None] + noise)), 0, 255).astype(np.uint8)

    return take
