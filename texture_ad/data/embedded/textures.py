"""The five textures: each draws a surface (S, S, 3) of side S from a generator."""

from collections.abc import Callable

import numpy as np

from texture_ad.data.embedded.noise import TWO_PI, material_coordinates, smooth_noise, smoothstep, voronoi_cells
from texture_ad.data.embedded.photographs import photograph, wood_colours
from texture_ad.data.embedded.shading import relief, tint

YARN = 9.0  # pixels from yarn to yarn of the carpet
WIRE_PITCH = 23.0  # pixels from wire to wire of the grid
WIRE_RADIUS = 4.2  # pixels
WIRE_LIFT = 2.6  # pixels by which a wire rises and dives


def _twill(v: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the geometry of a 2/2 twill at coordinates (S, S), five arrays (S, S).

    Returns:
        The number of the weft yarn, the number of the warp yarn, whether the warp is on top, the position across the
        upper yarn (-0.5 to 0.5), and that along it (-1 to 1 over its two visible cells).
    """
    row = np.floor(v / YARN)
    column = np.floor(u / YARN)
    across_v = v / YARN - row - 0.5
    across_u = u / YARN - column - 0.5
    warp_on_top = np.mod(row + column, 4) < 2
    even = np.mod(row + column, 2) < 1
    along_warp = np.where(even, across_v - 0.5, across_v + 0.5)
    along_weft = np.where(even, across_u - 0.5, across_u + 0.5)
    across = np.where(warp_on_top, across_u, across_v)
    along = np.where(warp_on_top, along_warp, along_weft)
    return row.astype(int), column.astype(int), warp_on_top, across, along


def carpet(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw woven wool: a 2/2 twill of two melange yarns with the fibres of `grass`."""
    v, u = material_coordinates(rng, size, wobble=1.5)
    frayed_v = v + 0.5 * smooth_noise(rng, size, 0.8)
    frayed_u = u + 0.5 * smooth_noise(rng, size, 0.8)
    row, column, warp_on_top, across, along = _twill(frayed_v, frayed_u)
    # Where a yarn dives under its neighbour it darkens.
    body = np.sqrt(np.cos(np.pi * across).clip(0)) * (1 - 0.55 * along**2)
    ply = np.sin(TWO_PI * (1.3 * along + 0.9 * across))
    yarns = rng.normal(0, 1, (2, 97)).astype(np.float32)
    yarn = np.where(warp_on_top, yarns[0, column % 97], yarns[1, row % 97])
    fibre = photograph("grass", v, u, shrink=1.6)
    melange = smooth_noise(rng, size, 2.0)
    grey = 0.18 + 0.40 * body + 0.035 * ply + 0.025 * yarn + 0.055 * fibre + 0.03 * melange
    warp_colour = tint(grey, (0.80, 0.82, 0.86))
    weft_colour = tint(grey, (1.02, 0.98, 0.90))
    return np.where(warp_on_top[..., None], warp_colour, weft_colour)


def _wires(
    along: np.ndarray, across: np.ndarray, sign: int, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return height, light and coverage (S, S) of the wire of one family that is nearest to each pixel.

    Args:
        along: coordinate along the wires in pixels, (S, S).
        across: coordinate across the wires in pixels, (S, S).
        sign: 1 or -1, of the two families.
        shifts: how far each wire lies from its regular position, in pixels, (61,).
    """
    number = np.rint(across / WIRE_PITCH)
    aside = (across - number * WIRE_PITCH + shifts[number.astype(int) % 61]) / WIRE_RADIUS
    dome = np.sqrt(np.clip(1 - aside**2, 0, None))
    swing = sign * np.where(np.mod(number, 2) < 1, 1.0, -1.0)
    height = WIRE_RADIUS * dome + WIRE_LIFT * swing * np.cos(np.pi * along / WIRE_PITCH)
    slope = swing * np.sin(np.pi * along / WIRE_PITCH)
    facing = 0.55 * dome - 0.45 * aside * sign + 0.12 * slope
    facing = np.clip(facing, 0, 1)
    glint = np.square(np.square(np.square(facing)))
    light = 0.20 + 0.50 * facing + 0.42 * glint
    cover = np.clip((1 - np.abs(aside)) * WIRE_RADIUS + 0.5, 0, 1)
    return height, light, cover


def grid(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw woven wire mesh, diagonal, before a dark ground of `gravel` out of focus."""
    v, u = material_coordinates(rng, size, degrees=45, wobble=1.2)
    shifts = 0.5 * rng.standard_normal((2, 61)).astype(np.float32)
    rough = photograph("brick", v * 3, u * 3, highpass=4)
    grey = 0.10 + 0.025 * photograph("gravel", v + 900, u, shrink=0.5, highpass=40)
    high_a, light_a, cover_a = _wires(u, v, 1, shifts[0])
    high_b, light_b, cover_b = _wires(v, u, -1, shifts[1])
    a_on_top = high_a > high_b
    for light, cover, below in ((light_a, cover_a, ~a_on_top), (light_b, cover_b, a_on_top)):
        grey = np.where(below, grey + cover * (light - grey), grey)
    for light, cover, above in ((light_a, cover_a, a_on_top), (light_b, cover_b, ~a_on_top)):
        grey = np.where(above, grey + cover * (light - grey), grey)
    metal = np.maximum(cover_a, cover_b)
    grey = grey + metal * (0.03 * rough + 0.03 * smooth_noise(rng, size, 8))
    return tint(grey, (0.98, 1.0, 1.01))


def leather(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw brown hide: creased pebbles, wrinkles, and the relief of `gravel` seen small."""
    v, u = material_coordinates(rng, size, turn=3)
    crumpled_v = v + 2.0 * smooth_noise(rng, size, 5)
    crumpled_u = u + 2.0 * smooth_noise(rng, size, 5)
    crease, distance, number = voronoi_cells(rng, crumpled_v, crumpled_u, 11)
    plump = rng.normal(1, 0.2, number.max() + 1).astype(np.float32)[number]
    pebble = smoothstep(crease, 0, 0.4) * plump + 0.5 * (1 - distance**2)
    photo = photograph("gravel", v, u, shrink=2.6, highpass=10)
    height = pebble + 0.20 * photo
    wrinkle = smooth_noise(rng, size, 14, 26)
    grey = 0.44 + 0.10 * smoothstep(crease, 0, 0.35) + relief(height, 0.33)
    grey = grey + 0.012 * wrinkle + 0.03 * photo + 0.012 * smooth_noise(rng, size, 0.7)
    return tint(grey, (0.86, 0.56, 0.38)) + 0.02 * photo[..., None]


def _chips(
    rng: np.random.Generator, v: np.ndarray, u: np.ndarray, pitch: float, share: float, gap: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the chips of stone of one size.

    Args:
        rng: source of the draw.
        v: first coordinate in pixels, (S, S).
        u: second coordinate in pixels, (S, S).
        pitch: from chip to chip in pixels.
        share: of the lattice's cells that hold a chip.
        gap: of binder between two chips, in pitches.

    Returns:
        Coverage (S, S), tone (S, S) and colour (S, S, 3) of the chips.
    """
    crease, distance, number = voronoi_cells(rng, v, u, pitch)
    count = number.max() + 1
    tone = rng.choice([0.30, 0.40, 0.48, 0.62, 0.70], count, p=[0.1, 0.2, 0.3, 0.25, 0.15])
    tone = (tone + 0.03 * rng.standard_normal(count)).astype(np.float32)
    warmth = 0.03 * rng.standard_normal(count).astype(np.float32)
    reach = np.where(rng.random(count) < share, rng.uniform(0.3, 0.75, count), 0).astype(np.float32)
    inside = np.minimum((crease - gap) * pitch, (reach[number] - distance) * pitch)
    cover = np.clip(inside + 0.5, 0, 1) * (reach[number] > 0)
    colour = np.stack([1 + warmth, np.ones_like(warmth), 1 - warmth], -1)
    return cover, tone[number], colour[number]


def tile(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw terrazzo: chips of light and dark stone, mottled by `gravel`, in a grey binder."""
    v, u = material_coordinates(rng, size, turn=3)
    bent_v = v + 1.6 * smooth_noise(rng, size, 4)
    bent_u = u + 1.6 * smooth_noise(rng, size, 4)
    grey = 0.55 + 0.03 * photograph("gravel", v, u, shrink=3, highpass=8) + 0.02 * smooth_noise(rng, size, 0.8)
    surface = tint(grey, (1.0, 0.99, 0.96))
    stone = photograph("gravel", v, u)
    for pitch, share, gap in ((8, 0.6, 0.12), (14, 0.55, 0.10)):
        cover, tone, colour = _chips(rng, bent_v, bent_u, pitch, share, gap)
        chip = tone * (1 + 0.06 * stone)
        surface = surface + cover[..., None] * (chip[..., None] * colour - surface)
    return surface


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a planed board: growth rings along the rows' axis, fibres, pores; colours of the table in `coffee`."""
    v, u = material_coordinates(rng, size)
    drift = u + 11 * smooth_noise(rng, size, 110, 30) + 1.0 * smooth_noise(rng, size, 45, 5)
    ring = drift / 15 + 1.5 * np.sin(drift / 47) + 0.7 * np.sin(drift / 19)
    year = np.floor(ring)
    season = ring - np.floor(ring)
    tones = rng.normal(0, 1, 131).astype(np.float32)[year.astype(int) % 131]
    late = season * season * smoothstep(1 - season, 0, 0.10)
    fibre = smooth_noise(rng, size, 16, 0.6) + 0.8 * smooth_noise(rng, size, 70, 1.5)
    pore = smoothstep(smooth_noise(rng, size, 5, 0.5) - 0.9 * season, 1.0, 2.3)
    photo = photograph("grass", v / 8, u, shrink=1.6)
    index = 0.70 - 0.42 * late + 0.05 * tones + 0.055 * fibre - 0.64 * pore + 0.04 * photo
    palette = wood_colours()
    return palette[np.clip(index * 255, 0, 255).astype(np.int32)]


SURFACES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "carpet": carpet,
    "grid": grid,
    "leather": leather,
    "tile": tile,
    "wood": wood,
}
TEXTURES = tuple(SURFACES)
