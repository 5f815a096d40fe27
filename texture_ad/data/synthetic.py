"""Synthetic defects on calibration images: they choose checkpoints, so that no test label is needed.

Shapes are thresholded smooth noise, ellipses and random walks. Fills are shading, a flat tone, blur and the texture of
another position. The representation never trains on them (it trains on CutPaste), and the test images never pass
through here. The idea of noise-shaped masks follows Zavrtanik, Kristan, Skočaj: DRAEM, ICCV 2021.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("blob", "spot", "line")
FILLS = ("shade", "tone", "blur", "transplant")
STEPS = 24  # of the random walk that a line is
VISIBLE = 5  # of 255: a smaller change is not marked


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def _choice(n: int, generator: torch.Generator) -> int:
    """Draw an integer from 0 to n - 1."""
    return int(torch.randint(n, (), generator=generator))


def _random_walk(length: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the points (py, px) of a winding line about the origin in pixels, (4 STEPS,) each."""
    turns = torch.randn(STEPS, generator=generator) * 0.25
    angle = _uniform(0, 2 * math.pi, generator) + turns.cumsum(0)
    stride = length / STEPS
    py = (angle.sin() * stride).cumsum(0)
    px = (angle.cos() * stride).cumsum(0)
    t = torch.linspace(0, STEPS - 1, 4 * STEPS)
    i = t.floor().long().clamp(max=STEPS - 2)
    fraction = t - t.floor().clamp(max=STEPS - 2)
    py = py - py.mean()
    px = px - px.mean()
    return torch.lerp(py[i], py[i + 1], fraction), torch.lerp(px[i], px[i + 1], fraction)


def _line(y: Tensor, x: Tensor, extent: float, side: int, generator: torch.Generator) -> Tensor:
    """Draw the soft mask (H, W) of a scratch.

    Args:
        y: distance of each row from the centre in pixels, (H, 1).
        x: distance of each column from the centre in pixels, (1, W).
        extent: size of the defect in pixels.
        side: shorter side of the image in pixels.
        generator: source of the draw.
    """
    py, px = _random_walk(2.5 * extent, generator)
    distance = ((y[..., None] - py) ** 2 + (x[..., None] - px) ** 2).amin(-1).sqrt()
    half_width = _uniform(0.5, max(0.6, 0.012 * side), generator)
    return (half_width + 0.5 - distance).clamp(0, 1)


def _spot(y: Tensor, x: Tensor, extent: float, cells: int, generator: torch.Generator) -> Tensor:
    """Draw the soft mask (H, W) of an ellipse.

    Args:
        y: distance of each row from the centre in pixels, (H, 1).
        x: distance of each column from the centre in pixels, (1, W).
        extent: size of the defect in pixels.
        cells: of the noise that makes the outline irregular, over the whole image; 0 for a smooth ellipse.
        generator: source of the draw.
    """
    theta = _uniform(0, math.pi, generator)
    aspect = _uniform(1, 3, generator)
    u = (math.cos(theta) * x + math.sin(theta) * y) * 2 / extent
    v = (-math.sin(theta) * x + math.cos(theta) * y) * 2 / extent * aspect
    radius = (u**2 + v**2).sqrt()
    if cells:
        noise = torch.randn(1, 1, cells, cells, generator=generator)
        radius = radius + 0.7 * F.interpolate(noise, (len(y), x.shape[1]), mode="bicubic")[0, 0]
    softness = max(1.0, _uniform(0.02, 0.3, generator) * extent)
    return ((1 - radius) * extent / 2 / softness + 0.5).clamp(0, 1)


def _shape(kind: str, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the soft mask (H, W) in [0, 1] of one defect, its size log-uniform between 5 % and 50 % of the image."""
    side = min(height, width)
    extent = side * math.exp(_uniform(math.log(0.05), math.log(0.5), generator))
    cy = _uniform(0.05, 0.95, generator) * height
    cx = _uniform(0.05, 0.95, generator) * width
    y = torch.arange(height)[:, None] - cy
    x = torch.arange(width)[None, :] - cx
    if kind == "line":
        return _line(y, x, extent, side, generator)
    cells = max(4, round(4 * side / extent)) if kind == "blob" else 0
    return _spot(y, x, extent, cells, generator)


def _tone(image: Tensor, sign: int, generator: torch.Generator) -> Tensor:
    """Draw a nearly flat tone (3, H, W), lighter or darker than the image."""
    mean = image.mean((1, 2), keepdim=True)
    spread = max(float(image.std()), 8.0)
    return mean + sign * _uniform(1, 4, generator) * spread + 0.2 * (image - mean)


def _blur(image: Tensor, sign: int, generator: torch.Generator) -> Tensor:
    """Draw a blurred image (3, H, W), slightly lighter or darker."""
    reach = min(round(_uniform(1.5, 5, generator)), *(side - 1 for side in image.shape[1:]))
    return F.avg_pool2d(F.pad(image[None], [reach] * 4, mode="reflect"), 2 * reach + 1, 1)[0] * (1 + sign * 0.08)


def _transplant(donor: Tensor, sign: int, generator: torch.Generator) -> Tensor:
    """Draw the texture of another image (3, H, W), turned, shifted, and lighter or darker."""
    _, height, width = donor.shape
    shift = (_choice(height, generator), _choice(width, generator))
    turned = donor.transpose(1, 2) if height == width else donor.flip(1)
    return turned.roll(shift, (1, 2)) * (1 + sign * _uniform(0.1, 0.4, generator))


def _fill(kind: str, image: Tensor, donor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw what stands inside the defect, (3, H, W) in about 0..255.

    Args:
        kind: one of `FILLS`.
        image: the normal image, (3, H, W) in 0..255.
        donor: another image of the same texture and size.
        generator: source of the draw.
    """
    sign = 1 if _choice(2, generator) else -1
    strength = _uniform(0.2, 0.8, generator)
    if kind == "shade":
        return image * (1 + sign * strength)
    if kind == "tone":
        return _tone(image, sign, generator)
    if kind == "blur":
        return _blur(image, sign, generator)
    return _transplant(donor, sign, generator)


def _damaged(image: Tensor, donor: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one defect on an image (3, H, W) in 0..255; return the damaged image and its mask, bool (H, W)."""
    height, width = image.shape[1:]
    soft = _shape(SHAPES[_choice(len(SHAPES), generator)], height, width, generator)
    fill = _fill(FILLS[_choice(len(FILLS), generator)], image, donor, generator)
    damaged = torch.lerp(image, fill.clamp(0, 255), soft).round()
    return damaged, (damaged - image).abs().amax(0) > VISIBLE


def synthetic_defects(
    images: Tensor, generator: torch.Generator, inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Put one random defect on every image.

    Args:
        images: uint8 (B, 3, H, W) normal images.
        generator: a CPU generator; the same state gives the same defects.
        inside: bool (H, W), which pixels count; None for all.

    Returns:
        The damaged images, uint8 (B, 3, H, W), and their masks, bool (B, H, W), True where a pixel counts and changed
        by more than 2 % of its range; every mask has at least one True pixel.
    """
    damaged = images.clone()
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for b in range(len(images)):
        image = images[b].float()
        donor = images[_choice(len(images), generator)].float()
        while not masks[b].any():
            result, masks[b] = _damaged(image, donor, generator)
            damaged[b] = result.to(torch.uint8)
            masks[b] &= True if inside is None else inside
    return damaged, masks
