"""Synthetic defects on calibration images: what chooses checkpoints, instead of test labels.

Shapes are thresholded smooth noise, ellipses and random walks; fills are shading, a flat tone, blur and the
texture of another place. The representation never trains on them (it trains on CutPaste), and the test
images never pass through here. The idea of noise-shaped masks follows DRAEM (Zavrtanik et al., ICCV 2021).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("blob", "spot", "line")
FILLS = ("shade", "tone", "blur", "transplant")


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _choice(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _shape(kind: str, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A soft mask (H, W) in [0, 1] of one defect, its size log-uniform between 5 % and 50 % of the image."""
    side = min(height, width)
    extent = side * math.exp(_uniform(math.log(0.05), math.log(0.5), generator))
    cy = _uniform(0.05, 0.95, generator) * height
    cx = _uniform(0.05, 0.95, generator) * width
    y = torch.arange(height)[:, None] - cy
    x = torch.arange(width)[None, :] - cx
    if kind == "line":
        steps = 24
        turns = torch.randn(steps, generator=generator) * 0.25
        angle = _uniform(0, 2 * math.pi, generator) + turns.cumsum(0)
        stride = 2.5 * extent / steps
        py = (angle.sin() * stride).cumsum(0)
        px = (angle.cos() * stride).cumsum(0)
        py = py - py.mean()
        px = px - px.mean()
        t = torch.linspace(0, steps - 1, 4 * steps)
        i = t.floor().long().clamp(max=steps - 2)
        frac = t - t.floor().clamp(max=steps - 2)
        py = torch.lerp(py[i], py[i + 1], frac)
        px = torch.lerp(px[i], px[i + 1], frac)
        distance = ((y[..., None] - py) ** 2 + (x[..., None] - px) ** 2).amin(-1).sqrt()
        half_width = _uniform(0.5, max(0.6, 0.012 * side), generator)
        return (half_width + 0.5 - distance).clamp(0, 1)
    theta = _uniform(0, math.pi, generator)
    aspect = _uniform(1, 3, generator)
    u = (math.cos(theta) * x + math.sin(theta) * y) * 2 / extent
    v = (-math.sin(theta) * x + math.cos(theta) * y) * 2 / extent * aspect
    radius = (u**2 + v**2).sqrt()
    if kind == "blob":
        cells = max(4, round(4 * side / extent))
        noise = torch.randn(1, 1, cells, cells, generator=generator)
        radius = radius + 0.7 * F.interpolate(noise, (height, width), mode="bicubic")[0, 0]
    softness = max(1.0, _uniform(0.02, 0.3, generator) * extent)
    return ((1 - radius) * extent / 2 / softness + 0.5).clamp(0, 1)


def _fill(kind: str, image: Tensor, donor: Tensor, generator: torch.Generator) -> Tensor:
    """What stands inside the defect, (3, H, W) in 0..255, from `image` and another image of the same texture."""
    sign = 1 if _choice(2, generator) else -1
    strength = _uniform(0.2, 0.8, generator)
    if kind == "shade":
        return image * (1 + sign * strength)
    if kind == "tone":
        spread = max(float(image.std()), 8.0)
        return (
            image.mean((1, 2), keepdim=True)
            + sign * _uniform(1, 4, generator) * spread
            + 0.2 * (image - image.mean((1, 2), keepdim=True))
        )
    if kind == "blur":
        k = 2 * round(_uniform(1.5, 5, generator)) + 1
        return F.avg_pool2d(F.pad(image[None], [k // 2] * 4, mode="reflect"), k, 1)[0] * (1 + sign * 0.08)
    shift = (_choice(image.shape[1], generator), _choice(image.shape[2], generator))
    turned = donor.transpose(1, 2) if image.shape[1] == image.shape[2] else donor.flip(1)
    return turned.roll(shift, (1, 2)) * (1 + sign * _uniform(0.1, 0.4, generator))


def synthetic_defects(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Puts one random defect on every image.

    Args:
        images: uint8 (B, 3, H, W) normal images.
        generator: a CPU generator; the same state gives the same defects.

    Returns:
        The damaged images, uint8 (B, 3, H, W), and their masks, bool (B, H, W), True where the image changed
        by more than 2 % of its range; every mask has at least one True pixel.
    """
    damaged = images.clone()
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for b in range(len(images)):
        image = images[b].float()
        donor = images[_choice(len(images), generator)].float()
        while not masks[b].any():
            soft = _shape(SHAPES[_choice(len(SHAPES), generator)], *image.shape[1:], generator)
            fill = _fill(FILLS[_choice(len(FILLS), generator)], image, donor, generator)
            result = torch.lerp(image, fill.clamp(0, 255), soft).round()
            masks[b] = (result - image).abs().amax(0) > 5
            damaged[b] = result.to(torch.uint8)
    return damaged, masks
