"""The kinds of defects: each damages a surface (S, S, 3) with a severity from 0 (faint) to 1 (plain)."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from texture_ad.data.embedded.noise import TWO_PI, smooth_noise, smoothstep
from texture_ad.data.embedded.shading import LIGHT, lay_over, own_tone, relief, shadow
from texture_ad.data.embedded.shapes import Curve, blob, displaced


def hole(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Tear or break out a hole: dark inside, walls and rim shaded by the lamp, the texture pulled about it."""
    size = len(surface)
    depth = blob(rng, size, size * (0.012 + 0.058 * severity) * rng.uniform(0.8, 1.2), 0.20)
    pull = 2.0 * np.exp(-((depth / 6) ** 2)).astype(np.float32)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(depth, 2)))
    slope = slope / (np.hypot(*slope) + 1e-6)
    damaged = displaced(surface, pull * slope[0], pull * slope[1])
    lit = -(LIGHT[0] * slope[0] + LIGHT[1] * slope[1])
    rim = np.exp(-(((depth + 1.0) / 1.6) ** 2))
    damaged = damaged * (1 + 0.30 * rim * -lit)[..., None]
    floor = 0.8 * own_tone(rng, surface, 0.005, 0.05)
    wall = 1 + 0.7 * np.clip(lit, -0.6, 1) * np.exp(-np.clip(depth, 0, None) / 3)
    dim = ndimage.gaussian_filter(surface, (2, 2, 0)) - surface.mean((0, 1))
    inside = floor * wall[..., None] + 0.10 * dim
    return lay_over(damaged, (0.7 + 0.3 * severity) * smoothstep(depth, -0.8, 1.2), inside)


def cut(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Cut a slit or a crack: its sides slip along it and gape, and one lip catches the light."""
    size = len(surface)
    curve = Curve(rng, size, size * (0.12 + 0.4 * severity), rng.uniform(0.05, 0.35))
    taper = np.sin(np.pi * curve.along).clip(0) ** 0.6
    reach = np.exp(-((curve.distance / rng.uniform(5, 12)) ** 2)) * taper * np.sign(curve.distance)
    slip = (2 + 5 * severity) * rng.choice([-1, 1])
    gape = (0.3 + 2.9 * severity) * rng.uniform(0.7, 1.2)
    rows = reach * (slip * curve.tangent[0] - gape * curve.normal[0])
    columns = reach * (slip * curve.tangent[1] - gape * curve.normal[1])
    damaged = displaced(surface, rows, columns)
    width = 0.3 + gape * 0.8 * taper
    facing = LIGHT[0] * curve.normal[0] + LIGHT[1] * curve.normal[1]
    lip = np.exp(-(((np.abs(curve.distance) - width - 1) / 1.1) ** 2)) * taper
    damaged = damaged * (1 - 0.25 * lip * facing * np.sign(curve.distance))[..., None]
    gap = np.clip(width - np.abs(curve.distance) + 0.5, 0, 1) * smoothstep(taper, 0, 0.4)
    return lay_over(damaged, gap * (0.55 + 0.4 * severity), 0.9 * own_tone(rng, surface, 0.005, 0.06))


def stain(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Spill a liquid: dried, it absorbs light by colour, more at the drop's edge; or it has bleached the dye."""
    size = len(surface)
    radius = size * (0.035 + 0.09 * severity) * rng.uniform(0.7, 1.2)
    depth = blob(rng, size, radius, 0.30)
    film = smoothstep(depth, -0.12 * radius, 0.25 * radius)
    edge = np.exp(-(((depth - 0.06 * radius) / (0.10 * radius)) ** 2))
    uneven = 1 + 0.15 * smooth_noise(rng, size, 4)
    amount = (0.12 + 0.5 * severity) * (film * uneven + rng.uniform(0.1, 0.6) * edge)
    absorbed = rng.dirichlet([20, 24, 30]) * 3
    if rng.random() < 0.4:
        amount = -0.7 * amount
    return surface * np.exp(-amount[..., None] * absorbed.astype(np.float32))


def thread(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Lay a loose twisted thread or hair on the surface, with its shadow."""
    size = len(surface)
    curve = Curve(rng, size, size * (0.15 + 0.6 * severity), rng.uniform(0.5, 1.8))
    radius = (0.6 + 1.8 * severity) * rng.uniform(0.8, 1.2)
    aside = np.clip(curve.distance / radius, -1, 1)
    facing = LIGHT[0] * curve.normal[0] + LIGHT[1] * curve.normal[1]
    twist = np.sin(curve.along * size * rng.uniform(0.6, 1.2) + 2.5 * aside)
    light = 0.9 - 0.35 * aside**2 + 0.25 * facing * aside + 0.10 * twist
    cover = np.clip(radius - np.abs(curve.distance) + 0.5, 0, 1) * (0.65 + 0.35 * severity)
    low = rng.choice([0.05, 0.65])
    colour = own_tone(rng, surface, low, low + 0.3, tint=0.12)
    shade = 0.45 * shadow(cover, 1 + radius, 1.2)
    return lay_over(surface * (1 - shade)[..., None], cover, colour * light[..., None])


def _mark(rng: np.random.Generator, curve: Curve) -> np.ndarray:
    """Draw the pressure (S, S), 0 to about 1, of one mark that runs beside a curve."""
    offset = rng.uniform(-8, 8)
    width = rng.uniform(0.6, 2.0)
    head, tail = rng.uniform(0, 0.35, 2)
    uneven = np.clip(0.85 + 0.3 * smooth_noise(rng, len(curve.along), 8), 0.2, 1.2)
    taper = smoothstep(curve.along, head, head + 0.1) * smoothstep(1 - curve.along, tail, tail + 0.1)
    line = np.clip(width - np.abs(curve.distance - offset) + 0.5, 0, 1)
    return uneven * taper * line


def scratch(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Scratch one to four shallow, nearly straight, uneven marks, scraped light or burnished dark."""
    size = len(surface)
    curve = Curve(rng, size, size * (0.12 + 0.5 * severity), rng.uniform(0, 0.15))
    flat = ndimage.gaussian_filter(surface, (3, 3, 0))
    sign = rng.choice([-1.0, 1.0])
    strength = 0.12 + 0.5 * severity
    press = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 5)):
        press = np.maximum(press, _mark(rng, curve))
    damaged = lay_over(surface, 0.7 * press, flat)
    return damaged * (1 + sign * strength * press)[..., None]


def _crumb(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one crumb.

    Args:
        rng: source of the draw.
        rows: distance of each pixel from the crumb's centre along the rows' axis, in pixels, (S, S).
        columns: that along the columns' axis.
        largest: radius in pixels.

    Returns:
        Its coverage (S, S), 0 to 1, and its light (S, S), around 1.
    """
    radius = rng.uniform(1.3, largest)
    stretch = rng.uniform(0.6, 1.0)
    angle = rng.uniform(0, np.pi)
    a = rows / radius
    b = columns / radius
    longways = a * np.cos(angle) + b * np.sin(angle)
    sideways = b * np.cos(angle) - a * np.sin(angle)
    distance = np.hypot(longways, sideways / stretch)
    cover = np.clip((1 - distance) * radius + 0.5, 0, 1)
    light = rng.uniform(0.85, 1.15) + 0.3 * (LIGHT[0] * a + LIGHT[1] * b)
    return cover, light


def contamination(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Strew crumbs, chips or lint over a patch, each rounded by the lamp and casting a shadow."""
    size = len(surface)
    centre = rng.uniform(0.15, 0.85, 2) * size
    spread = size * (0.015 + 0.05 * severity)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    y = y + 1.2 * smooth_noise(rng, size, 2)
    x = x + 1.2 * smooth_noise(rng, size, 2)
    cover, light = np.zeros((2, size, size), np.float32)
    for _ in range(4 + int(18 * severity)):
        row, column = centre + spread * rng.standard_normal(2)
        crumb, shine = _crumb(rng, y - row, x - column, 2 + 6 * severity)
        light = np.where(crumb > 0, shine, light)
        cover = np.maximum(cover, crumb)
    low = rng.choice([0.05, 0.65])
    colour = own_tone(rng, surface, low, low + 0.3, tint=0.12)
    shade = 0.4 * shadow(cover, 2, 1.2)
    opacity = cover * (0.65 + 0.35 * severity)
    return lay_over(surface * (1 - shade)[..., None], opacity, colour * light[..., None])


def bent(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Push yarns or wires out of line: nothing foreign, only the pattern pulled and tilted to the lamp."""
    size = len(surface)
    radius = size * (0.03 + 0.07 * severity)
    angle = rng.uniform(0, TWO_PI)
    push = rng.uniform(0.4, 0.6) * radius
    window = smoothstep(blob(rng, size, radius, 0.15) / radius, -0.4, 0.8)
    damaged = displaced(surface, push * np.sin(angle) * window, push * np.cos(angle) * window)
    return damaged * (1 + np.clip(relief(window, 0.5 * radius), -0.2, 0.2))[..., None]


DEFECTS: dict[str, Callable[[np.random.Generator, np.ndarray, float], np.ndarray]] = {
    "hole": hole,
    "cut": cut,
    "stain": stain,
    "thread": thread,
    "scratch": scratch,
    "contamination": contamination,
    "bent": bent,
}
_SOFT = ("hole", "cut", "stain", "thread", "bent", "contamination")
_HARD = ("hole", "cut", "stain", "thread", "scratch", "contamination")
KINDS = {"carpet": _SOFT, "grid": _SOFT, "leather": _HARD, "tile": _HARD, "wood": _HARD}
# A coarse or busy texture hides more, so its damage is plainer: all five are to be about equally hard.
SEVERITY = {"carpet": 1.2, "grid": 1.2, "leather": 1.1, "tile": 1.3, "wood": 0.3}
