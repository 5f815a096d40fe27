"""Light, shade and colour on a surface: what a relief, an object or a layer looks like under the lamp."""

import numpy as np
from scipy import ndimage

# Towards the lamp, as (row, column): it stands at the upper left.
LIGHT = np.array([-0.7, -0.7], np.float32)


def relief(height: np.ndarray, strength: float) -> np.ndarray:
    """Return light and shade (S, S), around 0, of a height map (S, S) under the lamp."""
    rows, columns = np.gradient(height)
    return strength * (LIGHT[0] * rows + LIGHT[1] * columns) * -1


def tint(grey: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Return a grey image (S, S) in one colour, (S, S, 3)."""
    return grey[..., None] * np.array(colour, np.float32)


def own_tone(rng: np.random.Generator, surface: np.ndarray, low: float, high: float, tint: float = 0.02) -> np.ndarray:
    """Draw a colour (3,) from the texture's own range of tones, so that no extreme gives the damage away.

    Args:
        rng: source of the draw.
        surface: (S, S, 3).
        low: smallest quantile of the surface's grey levels.
        high: largest quantile of them.
        tint: standard deviation of the colour about the surface's mean colour.
    """
    grey = surface[::3, ::3].mean(-1)
    level = np.quantile(grey, rng.uniform(low, high))
    colour = surface.mean((0, 1)) / surface.mean() + tint * rng.standard_normal(3)
    return (level * colour).astype(np.float32)


def lay_over(surface: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return a surface (S, S, 3) under a layer of opacity `alpha` (S, S) and a colour (3,) or (S, S, 3)."""
    return surface + alpha[..., None] * (colour - surface)


def shadow(alpha: np.ndarray, offset: float, softness: float) -> np.ndarray:
    """Return the shadow (S, S) of an object of coverage `alpha` (S, S).

    Args:
        alpha: coverage, 0 to 1.
        offset: distance from the object, away from the lamp, in pixels.
        softness: standard deviation of the blur in pixels.
    """
    return ndimage.gaussian_filter(ndimage.shift(alpha, -offset * LIGHT, order=1), softness)
