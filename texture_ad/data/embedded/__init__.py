"""Embedded data: five textures in MVTec AD's layout, made here, always available, without a network.

The textures bear the names of MVTec AD's (carpet, grid, leather, tile, wood) and nothing else of it: results
on them are no benchmark and compare with no published number.

Photographs. Detail and colour come from four photographs inside the scikit-image package, all released under
CC0 1.0 according to their docstrings in `skimage.data`:

- `brick`: CC0Textures "Bricks25", the roughness of wire;
- `grass`: DeviantArt, linolafett, "Grass 01", the fibres of carpet and, drawn out, of wood;
- `gravel`: CC0Textures "Gravel04", the pebbles of leather, the stone of tile, the ground behind the grid;
- `coffee`: Rachel Michetti, courtesy of Pikolo Espresso Bar, the colours of wood (the table, not the cup).

Order of reading: `ensure` (files) -> `render` (one image) -> a texture -> a defect -> `_camera`.

Conventions: a surface is a float array (S, S, 3), RGB in about [0, 1], before lamp, lens and sensor; lengths
are in pixels; axes go (row, column). Every function is pure: all chance comes from the generator passed in.
"""

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from texture_ad.errors import UserError

VERSION = 1
TRAIN_GOOD = 100
TEST_GOOD = 20
TEST_PER_KIND = 8
# A change of fewer grey levels than this is lost in the sensor noise: it is neither kept nor marked.
VISIBLE = 6
# Towards the lamp, as (row, column): it stands at the upper left.
LIGHT = np.array([-0.7, -0.7], np.float32)

TWO_PI = 2 * np.pi


# --- noise, coordinates, photographs --------------------------------------------------------------


@lru_cache(maxsize=64)
def _gaussian_transfer(size: int, rows: float, columns: float) -> np.ndarray:
    fy = fft.fftfreq(size)[:, None]
    fx = fft.rfftfreq(size)[None, :]
    return np.exp(-2 * np.pi**2 * ((rows * fy) ** 2 + (columns * fx) ** 2)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, rows: float, columns: float | None = None) -> np.ndarray:
    """Gaussian noise (S, S) of unit standard deviation, smoothed by `rows` and `columns` pixels."""
    white = rng.standard_normal((size, size), dtype=np.float32)
    transfer = _gaussian_transfer(size, rows, rows if columns is None else columns)
    smooth = fft.irfft2(fft.rfft2(white) * transfer, s=(size, size))
    return smooth / (smooth.std() + 1e-12)


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _coordinates(
    rng: np.random.Generator, size: int, degrees: float = 0.0, turn: float = 1.0, wobble: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Material coordinates (v, u) in pixels: a random place, nearly the same turn and scale, slowly bent."""
    angle = np.deg2rad(degrees + turn * rng.standard_normal())
    scale = 1 + 0.02 * rng.standard_normal()
    y, x = np.mgrid[:size, :size].astype(np.float32) * scale
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(1000, 5000)
    u = y * np.sin(angle) + x * np.cos(angle) + rng.uniform(1000, 5000)
    if wobble:
        v = v + wobble * _noise(rng, size, 40)
        u = u + wobble * _noise(rng, size, 40)
    return v.astype(np.float32), u.astype(np.float32)


@lru_cache(maxsize=16)
def _detail(name: str, shrink: float, highpass: float) -> np.ndarray:
    """A grey photograph, `shrink` times smaller, without its slow shades: zero mean, unit deviation."""
    grey = getattr(skimage.data, name)().astype(np.float32)
    if shrink != 1:
        grey = ndimage.zoom(ndimage.gaussian_filter(grey, shrink / 2), 1 / shrink, order=1)
    detail = grey - ndimage.gaussian_filter(grey, highpass)
    detail = detail / ndimage.gaussian_filter(detail**2, highpass).clip(1e-3) ** 0.5
    return np.clip(detail, -2.5, 2.5)


def _photograph(name: str, v: np.ndarray, u: np.ndarray, shrink: float = 1, highpass: float = 24) -> np.ndarray:
    """The detail of a photograph at material coordinates; mirrored beyond its borders, so without seams."""
    return ndimage.map_coordinates(_detail(name, shrink, highpass), [v, u], order=1, mode="mirror")


@lru_cache(maxsize=1)
def _wood_colours() -> np.ndarray:
    """Colours (256, 3) from the darkest to the lightest of the table in the photograph `coffee`."""
    table = skimage.data.coffee()[:170, 440:].reshape(-1, 3) / 255
    table = table[np.argsort(table.sum(1), kind="stable")]
    chunks = np.array_split(table[len(table) // 50 : -len(table) // 50], 256)
    return ndimage.gaussian_filter1d(np.stack([c.mean(0) for c in chunks]), 6, axis=0).astype(np.float32)


def _cells(
    rng: np.random.Generator, v: np.ndarray, u: np.ndarray, pitch: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voronoi cells of a jittered lattice, (S, S) each: crease (0 on a border), distance from the seed (both
    in pitches), number of the cell."""
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
    home = row * columns + column
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


def _relief(height: np.ndarray, strength: float) -> np.ndarray:
    """Light and shade of a height map under the lamp, around 0."""
    rows, columns = np.gradient(height)
    return strength * (LIGHT[0] * rows + LIGHT[1] * columns) * -1


def _tint(grey: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return grey[..., None] * np.array(colour, np.float32)


# --- textures: a generator and a side in, a surface (S, S, 3) out ---------------------------------


def carpet(rng: np.random.Generator, size: int) -> np.ndarray:
    """Woven wool: a 2/2 twill of two melange yarns with the fibres of `grass`."""
    v, u = _coordinates(rng, size, wobble=1.5)
    frayed_v = v + 0.5 * _noise(rng, size, 0.8)
    frayed_u = u + 0.5 * _noise(rng, size, 0.8)
    pitch = 9.0
    row = np.floor(frayed_v / pitch)
    column = np.floor(frayed_u / pitch)
    across_v = frayed_v / pitch - row - 0.5
    across_u = frayed_u / pitch - column - 0.5
    phase = np.mod(row + column, 4)
    warp_on_top = phase < 2
    # Where a yarn dives under its neighbour it darkens: `along` runs from -1 to 1 over its two visible cells.
    along_warp = np.where(np.mod(row + column, 2) < 1, across_v - 0.5, across_v + 0.5)
    along_weft = np.where(np.mod(row + column, 2) < 1, across_u - 0.5, across_u + 0.5)
    across = np.where(warp_on_top, across_u, across_v)
    along = np.where(warp_on_top, along_warp, along_weft)
    body = np.sqrt(np.cos(np.pi * across).clip(0)) * (1 - 0.55 * along**2)
    ply = np.sin(TWO_PI * (1.3 * along + 0.9 * across))
    yarns = rng.normal(0, 1, (2, 97)).astype(np.float32)
    yarn = np.where(warp_on_top, yarns[0, column.astype(int) % 97], yarns[1, row.astype(int) % 97])
    fibre = _photograph("grass", v, u, shrink=1.6)
    melange = _noise(rng, size, 2.0)
    grey = 0.18 + 0.40 * body + 0.035 * ply + 0.025 * yarn + 0.055 * fibre + 0.03 * melange
    warp_colour = _tint(grey, (0.80, 0.82, 0.86))
    weft_colour = _tint(grey, (1.02, 0.98, 0.90))
    return np.where(warp_on_top[..., None], warp_colour, weft_colour)


def grid(rng: np.random.Generator, size: int) -> np.ndarray:
    """Woven wire mesh, diagonal, before a dark ground of `gravel` out of focus."""
    v, u = _coordinates(rng, size, degrees=45, wobble=1.2)
    pitch = 23.0
    radius = 4.2
    lift = 2.6
    shifts = 0.5 * rng.standard_normal((2, 61)).astype(np.float32)
    row = np.rint(v / pitch)
    column = np.rint(u / pitch)
    rough = _photograph("brick", v * 3, u * 3, highpass=4)
    ground = 0.10 + 0.025 * _photograph("gravel", v + 900, u, shrink=0.5, highpass=40)

    def wire(along, across, number, sign, shift):
        """One family of wires: height, light and coverage of the wire nearest to each pixel."""
        aside = (across - number * pitch + shift[number.astype(int) % 61]) / radius
        dome = np.sqrt(np.clip(1 - aside**2, 0, None))
        swing = sign * np.where(np.mod(number, 2) < 1, 1.0, -1.0)
        height = radius * dome + lift * swing * np.cos(np.pi * along / pitch)
        slope = swing * np.sin(np.pi * along / pitch)
        facing = 0.55 * dome - 0.45 * aside * sign + 0.12 * slope
        facing = np.clip(facing, 0, 1)
        glint = np.square(np.square(np.square(facing)))
        light = 0.20 + 0.50 * facing + 0.42 * glint
        cover = np.clip((1 - np.abs(aside)) * radius + 0.5, 0, 1)
        return height, light, cover

    high_a, light_a, cover_a = wire(u, v, row, 1, shifts[0])
    high_b, light_b, cover_b = wire(v, u, column, -1, shifts[1])
    a_on_top = high_a > high_b
    grey = ground
    for light, cover, on_top in ((light_a, cover_a, ~a_on_top), (light_b, cover_b, a_on_top)):
        grey = np.where(on_top, grey + cover * (light - grey), grey)
    for light, cover, on_top in ((light_a, cover_a, a_on_top), (light_b, cover_b, ~a_on_top)):
        grey = np.where(on_top, grey + cover * (light - grey), grey)
    metal = np.maximum(cover_a, cover_b)
    grey = grey + metal * (0.03 * rough + 0.03 * _noise(rng, size, 8))
    return _tint(grey, (0.98, 1.0, 1.01))


def leather(rng: np.random.Generator, size: int) -> np.ndarray:
    """Brown hide: creased pebbles, wrinkles, and the relief of `gravel` seen small."""
    v, u = _coordinates(rng, size, turn=3)
    crumpled_v = v + 2.0 * _noise(rng, size, 5)
    crumpled_u = u + 2.0 * _noise(rng, size, 5)
    crease, distance, number = _cells(rng, crumpled_v, crumpled_u, 11)
    plump = rng.normal(1, 0.2, number.max() + 1).astype(np.float32)[number]
    pebble = _smoothstep(crease, 0, 0.4) * plump + 0.5 * (1 - distance**2)
    photo = _photograph("gravel", v, u, shrink=2.6, highpass=10)
    height = pebble + 0.20 * photo
    wrinkle = _noise(rng, size, 14, 26)
    grey = 0.44 + 0.10 * _smoothstep(crease, 0, 0.35) + _relief(height, 0.33)
    grey = grey + 0.012 * wrinkle + 0.03 * photo + 0.012 * _noise(rng, size, 0.7)
    return _tint(grey, (0.86, 0.56, 0.38)) + 0.02 * photo[..., None]


def tile(rng: np.random.Generator, size: int) -> np.ndarray:
    """Terrazzo: chips of light and dark stone, mottled by `gravel`, in a grey binder."""
    v, u = _coordinates(rng, size, turn=3)
    bent_v = v + 1.6 * _noise(rng, size, 4)
    bent_u = u + 1.6 * _noise(rng, size, 4)
    grey = 0.55 + 0.03 * _photograph("gravel", v, u, shrink=3, highpass=8) + 0.02 * _noise(rng, size, 0.8)
    surface = _tint(grey, (1.0, 0.99, 0.96))
    stone = _photograph("gravel", v, u)
    for pitch, share, gap in ((8, 0.6, 0.12), (14, 0.55, 0.10)):
        crease, distance, number = _cells(rng, bent_v, bent_u, pitch)
        count = number.max() + 1
        tone = rng.choice([0.30, 0.40, 0.48, 0.62, 0.70], count, p=[0.1, 0.2, 0.3, 0.25, 0.15])
        tone = (tone + 0.03 * rng.standard_normal(count)).astype(np.float32)
        warmth = 0.03 * rng.standard_normal(count).astype(np.float32)
        reach = np.where(rng.random(count) < share, rng.uniform(0.3, 0.75, count), 0).astype(np.float32)
        inside = np.minimum((crease - gap) * pitch, (reach[number] - distance) * pitch)
        cover = np.clip(inside + 0.5, 0, 1) * (reach[number] > 0)
        chip = tone[number] * (1 + 0.06 * stone)
        colour = np.stack([1 + warmth, np.ones_like(warmth), 1 - warmth], -1)[number]
        surface = surface + cover[..., None] * (chip[..., None] * colour - surface)
    return surface


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Planed board: growth rings along the rows' axis, fibres, pores; colours of the table in `coffee`."""
    v, u = _coordinates(rng, size)
    drift = u + 11 * _noise(rng, size, 110, 30) + 1.0 * _noise(rng, size, 45, 5)
    ring = drift / 15 + 1.5 * np.sin(drift / 47) + 0.7 * np.sin(drift / 19)
    year = np.floor(ring)
    season = ring - np.floor(ring)
    tones = rng.normal(0, 1, 131).astype(np.float32)[year.astype(int) % 131]
    late = season * season * _smoothstep(1 - season, 0, 0.10)
    fibre = _noise(rng, size, 16, 0.6) + 0.8 * _noise(rng, size, 70, 1.5)
    pore = _smoothstep(_noise(rng, size, 5, 0.5) - 0.9 * season, 1.0, 2.3)
    photo = _photograph("grass", v / 8, u, shrink=1.6)
    index = 0.70 - 0.42 * late + 0.05 * tones + 0.055 * fibre - 0.64 * pore + 0.04 * photo
    palette = _wood_colours()
    return palette[np.clip(index * 255, 0, 255).astype(np.int32)]


_TEXTURES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    function.__name__: function for function in (carpet, grid, leather, tile, wood)
}
TEXTURES = tuple(_TEXTURES)


# --- what defects are made of ---------------------------------------------------------------------


def _blob(rng: np.random.Generator, size: int, radius: float, rough: float) -> np.ndarray:
    """Depth in pixels (S, S) inside an irregular, turned ellipse somewhere in the image; negative outside."""
    row, column = rng.uniform(0.12, 0.88, 2) * size
    angle = rng.uniform(0, np.pi)
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    a = (y - row) * np.cos(angle) + (x - column) * np.sin(angle)
    b = (x - column) * np.cos(angle) - (y - row) * np.sin(angle)
    distance = np.hypot(a * stretch, b / stretch)
    grain = _noise(rng, size, max(radius / 3, 1.5)) + 0.4 * _noise(rng, size, 2)
    fading = np.clip(1.5 - distance / (3 * radius), 0, 1)
    return radius - distance + rough * radius * np.clip(grain, -2, 2) * fading


class _Curve:
    """A smooth open curve, seen from every pixel (S, S): signed distance, place along it (0 to 1), tangent.

    Pixels further than 24 from its bounding box are given a large distance.
    """

    def __init__(self, rng: np.random.Generator, size: int, length: float, bend: float):
        steps = max(int(2 * length), 8)
        turn = ndimage.gaussian_filter1d(rng.standard_normal(steps), steps / 6, mode="nearest")
        turn = bend * turn / (np.abs(turn).max() + 1e-9) * TWO_PI / steps
        heading = rng.uniform(0, TWO_PI) + np.cumsum(turn)
        tangent = np.stack([np.sin(heading), np.cos(heading)], 1)
        points = np.cumsum(tangent * (length / steps), axis=0)
        points += rng.uniform(0.2, 0.8, 2) * size - points.mean(0)
        y, x = np.mgrid[:size, :size]
        pixels = np.stack([y.ravel(), x.ravel()], 1)
        near = ((pixels >= points.min(0) - 24) & (pixels <= points.max(0) + 24)).all(1)
        distance, index = cKDTree(points).query(pixels[near])
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)[index]
        side = np.sign(((pixels[near] - points[index]) * normal).sum(1))
        self.distance = self._scatter(size, near, side * distance, 1e3)
        self.along = self._scatter(size, near, index / (steps - 1), 0)
        self.tangent = [self._scatter(size, near, tangent[index, axis], 0) for axis in (0, 1)]
        self.normal = [self._scatter(size, near, normal[:, axis], 0) for axis in (0, 1)]

    @staticmethod
    def _scatter(size: int, where: np.ndarray, values: np.ndarray, fill: float) -> np.ndarray:
        full = np.full(size * size, fill, np.float32)
        full[where] = values
        return full.reshape(size, size)


def _tone(rng: np.random.Generator, surface: np.ndarray, low: float, high: float, tint: float = 0.02) -> np.ndarray:
    """A colour (3,) from the texture's own range of tones: damage must not give itself away by an extreme."""
    grey = surface[::3, ::3].mean(-1)
    level = np.quantile(grey, rng.uniform(low, high))
    colour = surface.mean((0, 1)) / surface.mean() + tint * rng.standard_normal(3)
    return (level * colour).astype(np.float32)


def _over(surface: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return surface + alpha[..., None] * (colour - surface)


def _displaced(surface: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32)
    where = [y + rows, x + columns]
    channels = [ndimage.map_coordinates(surface[..., c], where, order=1, mode="mirror") for c in range(3)]
    return np.stack(channels, -1)


def _shadow(alpha: np.ndarray, offset: float, softness: float) -> np.ndarray:
    """What an object of coverage `alpha` darkens: itself moved away from the lamp and blurred."""
    return ndimage.gaussian_filter(ndimage.shift(alpha, -offset * LIGHT, order=1), softness)


# --- defects: a generator, a surface and a severity (0 faint to 1 plain) in, the damaged surface out -----


def hole(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Torn or broken out: dark inside, walls and rim shaded by the lamp, the texture pulled about it."""
    size = len(surface)
    depth = _blob(rng, size, size * (0.012 + 0.058 * severity) * rng.uniform(0.8, 1.2), 0.20)
    pull = 2.0 * np.exp(-((depth / 6) ** 2)).astype(np.float32)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(depth, 2)))
    slope = slope / (np.hypot(*slope) + 1e-6)
    damaged = _displaced(surface, pull * slope[0], pull * slope[1])
    lit = -(LIGHT[0] * slope[0] + LIGHT[1] * slope[1])
    rim = np.exp(-(((depth + 1.0) / 1.6) ** 2))
    damaged = damaged * (1 + 0.30 * rim * -lit)[..., None]
    floor = 0.8 * _tone(rng, surface, 0.005, 0.05)
    wall = 1 + 0.7 * np.clip(lit, -0.6, 1) * np.exp(-np.clip(depth, 0, None) / 3)
    dim = ndimage.gaussian_filter(surface, (2, 2, 0)) - surface.mean((0, 1))
    inside = floor * wall[..., None] + 0.10 * dim
    return _over(damaged, (0.7 + 0.3 * severity) * _smoothstep(depth, -0.8, 1.2), inside)


def cut(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """A blade's slit or a crack: the sides slip along it and gape, one lip catches the light."""
    size = len(surface)
    curve = _Curve(rng, size, size * (0.12 + 0.4 * severity), rng.uniform(0.05, 0.35))
    taper = np.sin(np.pi * curve.along).clip(0) ** 0.6
    reach = np.exp(-((curve.distance / rng.uniform(5, 12)) ** 2)) * taper * np.sign(curve.distance)
    slip = (2 + 5 * severity) * rng.choice([-1, 1])
    gape = (0.3 + 2.9 * severity) * rng.uniform(0.7, 1.2)
    rows = reach * (slip * curve.tangent[0] - gape * curve.normal[0])
    columns = reach * (slip * curve.tangent[1] - gape * curve.normal[1])
    damaged = _displaced(surface, rows, columns)
    width = 0.3 + gape * 0.8 * taper
    facing = LIGHT[0] * curve.normal[0] + LIGHT[1] * curve.normal[1]
    lip = np.exp(-(((np.abs(curve.distance) - width - 1) / 1.1) ** 2)) * taper
    damaged = damaged * (1 - 0.25 * lip * facing * np.sign(curve.distance))[..., None]
    gap = np.clip(width - np.abs(curve.distance) + 0.5, 0, 1) * _smoothstep(taper, 0, 0.4)
    return _over(damaged, gap * (0.55 + 0.4 * severity), 0.9 * _tone(rng, surface, 0.005, 0.06))


def stain(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """A dried liquid absorbs light by colour, more at the drop's edge; or a bleach has taken the dye."""
    size = len(surface)
    radius = size * (0.035 + 0.09 * severity) * rng.uniform(0.7, 1.2)
    depth = _blob(rng, size, radius, 0.30)
    film = _smoothstep(depth, -0.12 * radius, 0.25 * radius)
    edge = np.exp(-(((depth - 0.06 * radius) / (0.10 * radius)) ** 2))
    uneven = 1 + 0.15 * _noise(rng, size, 4)
    amount = (0.12 + 0.5 * severity) * (film * uneven + rng.uniform(0.1, 0.6) * edge)
    absorbed = rng.dirichlet([20, 24, 30]) * 3
    if rng.random() < 0.4:
        amount = -0.7 * amount
    return surface * np.exp(-amount[..., None] * absorbed.astype(np.float32))


def thread(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """A loose twisted thread or hair lying on the surface, with its shadow."""
    size = len(surface)
    curve = _Curve(rng, size, size * (0.15 + 0.6 * severity), rng.uniform(0.5, 1.8))
    radius = (0.6 + 1.8 * severity) * rng.uniform(0.8, 1.2)
    aside = np.clip(curve.distance / radius, -1, 1)
    facing = LIGHT[0] * curve.normal[0] + LIGHT[1] * curve.normal[1]
    twist = np.sin(curve.along * size * rng.uniform(0.6, 1.2) + 2.5 * aside)
    light = 0.9 - 0.35 * aside**2 + 0.25 * facing * aside + 0.10 * twist
    cover = np.clip(radius - np.abs(curve.distance) + 0.5, 0, 1) * (0.65 + 0.35 * severity)
    low = rng.choice([0.05, 0.65])
    colour = _tone(rng, surface, low, low + 0.3, tint=0.12)
    shadow = 0.45 * _shadow(cover, 1 + radius, 1.2)
    return _over(surface * (1 - shadow)[..., None], cover, colour * light[..., None])


def scratch(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """One to four shallow, nearly straight, uneven marks, scraped light or burnished dark, relief flat."""
    size = len(surface)
    curve = _Curve(rng, size, size * (0.12 + 0.5 * severity), rng.uniform(0, 0.15))
    flat = ndimage.gaussian_filter(surface, (3, 3, 0))
    sign = rng.choice([-1.0, 1.0])
    strength = 0.12 + 0.5 * severity
    press = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 5)):
        offset = rng.uniform(-8, 8)
        width = rng.uniform(0.6, 2.0)
        head, tail = rng.uniform(0, 0.35, 2)
        uneven = np.clip(0.85 + 0.3 * _noise(rng, size, 8), 0.2, 1.2)
        taper = _smoothstep(curve.along, head, head + 0.1) * _smoothstep(1 - curve.along, tail, tail + 0.1)
        line = np.clip(width - np.abs(curve.distance - offset) + 0.5, 0, 1)
        press = np.maximum(press, uneven * taper * line)
    damaged = _over(surface, 0.7 * press, flat)
    return damaged * (1 + sign * strength * press)[..., None]


def contamination(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Crumbs, chips or lint strewn over a patch, each rounded by the lamp and casting a shadow."""
    size = len(surface)
    centre = rng.uniform(0.15, 0.85, 2) * size
    spread = size * (0.015 + 0.05 * severity)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    y = y + 1.2 * _noise(rng, size, 2)
    x = x + 1.2 * _noise(rng, size, 2)
    cover, light = np.zeros((2, size, size), np.float32)
    for _ in range(4 + int(18 * severity)):
        row, column = centre + spread * rng.standard_normal(2)
        radius = rng.uniform(1.3, 2 + 6 * severity)
        stretch = rng.uniform(0.6, 1.0)
        angle = rng.uniform(0, np.pi)
        a = (y - row) / radius
        b = (x - column) / radius
        longways = a * np.cos(angle) + b * np.sin(angle)
        sideways = b * np.cos(angle) - a * np.sin(angle)
        distance = np.hypot(longways, sideways / stretch)
        crumb = np.clip((1 - distance) * radius + 0.5, 0, 1)
        shade = rng.uniform(0.85, 1.15) + 0.3 * (LIGHT[0] * a + LIGHT[1] * b)
        light = np.where(crumb > 0, shade, light)
        cover = np.maximum(cover, crumb)
    low = rng.choice([0.05, 0.65])
    colour = _tone(rng, surface, low, low + 0.3, tint=0.12)
    shadow = 0.4 * _shadow(cover, 2, 1.2)
    opacity = cover * (0.65 + 0.35 * severity)
    return _over(surface * (1 - shadow)[..., None], opacity, colour * light[..., None])


def bent(rng: np.random.Generator, surface: np.ndarray, severity: float) -> np.ndarray:
    """Yarns or wires pushed out of line: nothing foreign, only the pattern pulled and tilted to the lamp."""
    size = len(surface)
    radius = size * (0.03 + 0.07 * severity)
    angle = rng.uniform(0, TWO_PI)
    push = rng.uniform(0.4, 0.6) * radius
    window = _smoothstep(_blob(rng, size, radius, 0.15) / radius, -0.4, 0.8)
    damaged = _displaced(surface, push * np.sin(angle) * window, push * np.cos(angle) * window)
    return damaged * (1 + np.clip(_relief(window, 0.5 * radius), -0.2, 0.2))[..., None]


_DEFECTS: dict[str, Callable[[np.random.Generator, np.ndarray, float], np.ndarray]] = {
    function.__name__: function for function in (hole, cut, stain, thread, scratch, contamination, bent)
}
_SOFT = ("hole", "cut", "stain", "thread", "bent", "contamination")
_HARD = ("hole", "cut", "stain", "thread", "scratch", "contamination")
# A coarse or busy texture hides more, so its damage is plainer: all five are to be about equally hard.
_SEVERITY = {"carpet": 1.2, "grid": 1.2, "leather": 1.1, "tile": 1.3, "wood": 0.3}
KINDS = {"carpet": _SOFT, "grid": _SOFT, "leather": _HARD, "tile": _HARD, "wood": _HARD}


# --- one image ------------------------------------------------------------------------------------


def _camera(
    rng: np.random.Generator, size: int, exposure: float, contrast: float
) -> Callable[[np.ndarray], np.ndarray]:
    """A shot: exposure and contrast (-1 to 1), uneven light, white balance, focus, sensor noise.

    Returns a function from a surface to uint8 (S, S, 3). All chance is drawn before it is returned, so a
    surface can be taken before and after its damage with the very same shot.
    """
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    slope = 0.05 * rng.standard_normal(2)
    vignette = rng.uniform(0, 0.06) * (y**2 + x**2)
    light = np.exp(0.13 * exposure) * (1 + slope[0] * y + slope[1] * x - vignette)
    light = light[..., None].astype(np.float32)
    balance = (1 + 0.010 * rng.standard_normal(3)).astype(np.float32)
    focus = rng.uniform(0.4, 0.6)
    noise = rng.uniform(0.008, 0.013) * rng.standard_normal((size, size, 3), dtype=np.float32)

    def take(surface: np.ndarray) -> np.ndarray:
        shot = ndimage.gaussian_filter(surface, (focus, focus, 0), truncate=2.5) * light * balance
        shot = np.clip(shot, 0, None)
        steeper = ((shot.mean(-1) + 1e-3) / 0.42) ** float(0.16 * contrast)
        return np.clip(np.rint(255 * (shot * steeper[..., None] + noise)), 0, 255).astype(np.uint8)

    return take


def _solid(changed: np.ndarray) -> np.ndarray:
    """Changed pixels -> compact regions: lone specks dropped, gaps of up to 6 pixels closed, holes filled."""
    reach = 3
    padded = np.pad(changed, reach + 1)
    groups, count = ndimage.label(ndimage.distance_transform_edt(~padded) <= reach)
    large = ndimage.sum_labels(padded, groups, np.arange(count + 1)) >= 12
    large[0] = False
    kept = padded & large[groups]
    closed = kept | (ndimage.distance_transform_edt(large[groups]) > reach)
    return ndimage.binary_fill_holes(closed)[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def render(
    category: str, kind: str, index: int, size: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image of the data set, before and after its damage.

    Args:
        category: one of `TEXTURES`.
        kind: a kind of defect, or "train" or "good" for the two draws of undamaged images.
        index: the image's number within its folder.
        size: side in pixels. The magnification stays: a smaller image shows a smaller piece of material.
        seed: non-negative.

    Returns:
        intact (S, S, 3) uint8, damaged (S, S, 3) uint8, mask (S, S) bool. Outside the mask the two images
        are equal. Inside are the pixels that differ by more than `VISIBLE` grey levels, the holes they
        enclose and the gaps of at most 6 pixels between them; specks of fewer than 12 pixels are neither
        kept nor marked.
    """
    key = [VERSION, seed, zlib.crc32(category.encode()), zlib.crc32(kind.encode())]
    rng = np.random.default_rng([*key, index])
    # A low-discrepancy walk (Roberts' R2) instead of independent draws: every folder, however few its images,
    # spans the same exposures and contrasts, so that neither says anything about the label.
    start = np.random.default_rng(key).random(2)
    exposure, contrast = 2 * np.mod(start + index * np.array([0.7548776662, 0.5698402910]), 1) - 1
    take = _camera(rng, size, exposure, contrast)
    surface = _TEXTURES[category](rng, size)
    intact = take(surface)
    if kind not in _DEFECTS:
        return intact, intact, np.zeros((size, size), bool)
    while True:
        severity = min(_SEVERITY[category] * rng.uniform(0.35, 1), 1)
        damaged = take(_DEFECTS[kind](rng, surface, severity))
        change = np.abs(damaged.astype(np.int16) - intact).max(-1)
        mask = _solid(change > VISIBLE)
        if mask.sum() >= 24:
            return intact, np.where(mask[..., None], damaged, intact), mask


# --- files ----------------------------------------------------------------------------------------


def _origin(category: str, size: int, seed: int) -> str:
    return f"""# Embedded data, not a benchmark

The {category} images in this folder were generated by texture_ad.data.embedded (version {VERSION},
size {size}, seed {seed}). They have the layout of MVTec AD and one of its names, but none of its images:
scores on them compare with no published number.

Detail and colour come from photographs that the scikit-image package carries under CC0 1.0: brick and gravel
(CC0Textures "Bricks25" and "Gravel04"), grass (DeviantArt, linolafett, "Grass 01"), coffee (Rachel Michetti).
"""


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _build(folder: Path, category: str, size: int, seed: int) -> None:
    def make(kind: str, index: int) -> None:
        _, image, mask = render(category, kind, index, size, seed)
        _save(image, folder / ("train/good" if kind == "train" else f"test/{kind}") / f"{index:03d}.png")
        if kind in KINDS[category]:
            _save(mask.astype(np.uint8) * 255, folder / f"ground_truth/{kind}/{index:03d}_mask.png")

    counts = {"train": TRAIN_GOOD, "good": TEST_GOOD, **dict.fromkeys(KINDS[category], TEST_PER_KIND)}
    # Threads: NumPy, SciPy and Pillow's encoder let go of the interpreter for most of the time.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for made in [pool.submit(make, kind, index) for kind, count in counts.items() for index in range(count)]:
            made.result()
    (folder / "ORIGIN.md").write_text(_origin(category, size, seed), encoding="utf-8")


def ensure(category: str, root: Path | None = None, size: int = 256, seed: int = 0) -> Path:
    """Build one texture once and return its folder, laid out as a category of MVTec AD.

    The images are the same to the byte for the same category, size, seed and `VERSION`, given one machine and
    one set of NumPy, SciPy, Pillow and scikit-image. A build appears under its final name only when complete;
    processes may race for it.

    Args:
        category: one of `TEXTURES`.
        root: the cache; default `$TEXTURE_AD_CACHE`, else `~/.cache/texture_ad`.
        size: side of the square images in pixels, at least 64.
        seed: non-negative.

    Returns:
        `<root>/embedded-v<VERSION>-<size>-<seed>/<category>` with train/good, test/good, test/<kind>/NNN.png
        and ground_truth/<kind>/NNN_mask.png.

    Raises:
        UserError: an unknown category, a size or seed out of range, or a cache that cannot be written.
    """
    if category not in _TEXTURES:
        raise UserError(f"embedded data: no texture {category!r}; choose one of {', '.join(TEXTURES)}")
    if size < 64:
        raise UserError(f"embedded data: size {size} is too small for a texture; give 64 or more")
    if seed < 0:
        raise UserError(f"embedded data: seed {seed} is negative; give 0 or more")
    cache = Path(root or os.environ.get("TEXTURE_AD_CACHE") or Path.home() / ".cache" / "texture_ad")
    parent = cache / f"embedded-v{VERSION}-{size}-{seed}"
    folder = parent / category
    if folder.is_dir():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratchpad = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
    except OSError as error:
        raise UserError(
            f"embedded data: cannot write the cache {cache} ({error.strerror}); set TEXTURE_AD_CACHE to a "
            "writable folder"
        ) from error
    try:
        # One level down, because mkdtemp's own folder is closed to other users.
        _build(scratchpad / category, category, size, seed)
        try:
            (scratchpad / category).rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process won the race, with the same bytes
                raise
    finally:
        shutil.rmtree(scratchpad, ignore_errors=True)
    return folder
