"""CutPaste, the self-supervised pretext task, vectorised over the batch on the batch's own device.

Li, Sohn, Yoon, Pfister: CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021. The
ranges below are those of its section 2.2 and appendix. Pixel sizes there are for images of 256 pixels and scale with
the image here.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.02, 0.15)  # of the image, for "cutpaste"
ASPECT = (0.3, 3.3)  # width / height, from (0.3, 1) or (1, 3.3) with equal chance
SCAR_WIDTH = (2, 16)  # pixels at 256
SCAR_LENGTH = (10, 25)  # pixels at 256
SCAR_ANGLE = math.radians(45)  # either way
JITTER = 0.1  # brightness, contrast and saturation of the patch, either way
CHIP_AREA = (0.0005, 0.02)  # of the image
CHIP_ASPECT = 4.0  # longer side / shorter one, at most
CHIP_JITTER = 0.35  # chips are small, so that they differ more

KINDS = ("cutpaste", "scar")
TASKS = {"binary": ("cutpaste",), "scar": ("scar",), "3way": ("cutpaste", "scar")}


def _uniform(low: float, high: float, count: int, device: torch.device) -> Tensor:
    """Draw `count` numbers between `low` and `high`, (count,)."""
    return low + (high - low) * torch.rand(count, device=device)


def _draw_scars(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw widths and heights in pixels and angles in radians of `count` thin rotated patches, (count,) each."""
    scale = min(height, width) / 256
    w = _uniform(*SCAR_WIDTH, count, device) * scale
    h = _uniform(*SCAR_LENGTH, count, device) * scale
    return w.clamp(min=1), h.clamp(min=1), _uniform(-SCAR_ANGLE, SCAR_ANGLE, count, device)


def _draw_rectangles(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw widths and heights in pixels of `count` large upright patches, (count,) each; their angles are 0."""
    area = _uniform(*AREA, count, device) * height * width
    wide = torch.rand(count, device=device) < 0.5
    aspect = torch.where(wide, _uniform(1, ASPECT[1], count, device), _uniform(ASPECT[0], 1, count, device))
    w = (area * aspect).sqrt()
    h = (area / aspect).sqrt()
    return w.clamp(max=width - 2), h.clamp(max=height - 2), torch.zeros(count, device=device)


def _draw_chips(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw widths and heights in pixels and angles in radians of `count` small rotated patches, (count,) each."""
    area = _uniform(math.log(CHIP_AREA[0]), math.log(CHIP_AREA[1]), count, device).exp() * height * width
    aspect = _uniform(-math.log(CHIP_ASPECT), math.log(CHIP_ASPECT), count, device).exp()
    angle = _uniform(-math.pi / 2, math.pi / 2, count, device)
    return (area * aspect).sqrt().clamp(min=1), (area / aspect).sqrt().clamp(min=1), angle


def _jitter(patch: Tensor, strength: float) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with random brightness, contrast and saturation, one draw an image."""

    def factor() -> Tensor:
        return _uniform(1 - strength, 1 + strength, len(patch), patch.device)[:, None, None, None]

    patch = patch * factor()
    mean = patch.mean((1, 2, 3), keepdim=True)
    patch = mean + (patch - mean) * factor()
    grey = patch.mean(1, keepdim=True)
    return (grey + (patch - grey) * factor()).clamp(0, 1)


def _draw_moves(w: Tensor, h: Tensor, angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw where each patch is cut and where it is pasted.

    Args:
        w: widths of the patches in pixels, (B,).
        h: heights of the patches in pixels, (B,).
        angle: rotation of the pasted patches in radians, (B,).
        height: of the images in pixels.
        width: of the images in pixels.

    Returns:
        The centres (from_x, from_y, to_x, to_y) in pixels, (B,) each. Every patch lies inside the image.
    """
    cos = angle.cos().abs()
    sin = angle.sin().abs()
    # Half extents of the rotated patch, so that it stays inside the image.
    reach_x = ((w * cos + h * sin) / 2).clamp(max=width / 2)
    reach_y = ((w * sin + h * cos) / 2).clamp(max=height / 2)
    to_x = reach_x + torch.rand_like(w) * (width - 2 * reach_x)
    to_y = reach_y + torch.rand_like(w) * (height - 2 * reach_y)
    from_x = w / 2 + torch.rand_like(w) * (width - w)
    from_y = h / 2 + torch.rand_like(w) * (height - h)
    return from_x, from_y, to_x, to_y


def _patch_coordinates(angle: Tensor, to_x: Tensor, to_y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's coordinates (u, v) in pixels along the sides of the pasted patch, (B, H, W) each."""
    cos = angle.cos()[:, None, None]
    sin = angle.sin()[:, None, None]
    x = torch.arange(width, device=angle.device)[None, None, :] + 0.5 - to_x[:, None, None]
    y = torch.arange(height, device=angle.device)[None, :, None] + 0.5 - to_y[:, None, None]
    return cos * x + sin * y, -sin * x + cos * y


def cutpaste(images: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Cut a random patch of each image, jitter its colours and paste it elsewhere in the same image.

    All chance comes from the device's global random state, which the run's seed sets.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        kind: "cutpaste" (a large rectangle) or "scar" (a thin rotated one).

    Returns:
        The pasted images, float (B, 3, H, W), and where they were pasted, bool (B, H, W).

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    return _paste(images, images, _draw_scars if kind == "scar" else _draw_rectangles, JITTER, kind == "scar")


def chips(images: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a small rotated patch of the next image of the batch on each image, its colours changed more.

    Many defects are smaller than CutPaste's patches. All chance comes from the device's global random state.

    Args:
        images: float (B, 3, H, W) in [0, 1].

    Returns:
        The pasted images, float (B, 3, H, W), and where they were pasted, bool (B, H, W).
    """
    return _paste(images, images.roll(1, 0), _draw_chips, CHIP_JITTER, rotated=True)


def _paste(
    images: Tensor,
    donors: Tensor,
    draw: Callable[[int, int, int, torch.device], tuple[Tensor, Tensor, Tensor]],
    jitter: float,
    rotated: bool,
) -> tuple[Tensor, Tensor]:
    """Cut a patch of each donor and paste it on its image, both float (B, 3, H, W); `draw` gives sizes and angles."""
    b, _, height, width = images.shape
    w, h, angle = draw(b, height, width, images.device)
    from_x, from_y, to_x, to_y = _draw_moves(w, h, angle, height, width)
    u, v = _patch_coordinates(angle, to_x, to_y, height, width)
    inside = (u.abs() <= w[:, None, None] / 2) & (v.abs() <= h[:, None, None] / 2)
    source_x = (u + from_x[:, None, None]) * 2 / width - 1
    source_y = (v + from_y[:, None, None]) * 2 / height - 1
    grid = torch.stack((source_x, source_y), -1)
    # Rotated patches are interpolated; upright ones are shifted by whole pixels and copied exactly.
    mode = "bilinear" if rotated else "nearest"
    patch = F.grid_sample(donors, grid.to(images.dtype), mode, "reflection", align_corners=False)
    return torch.where(inside[:, None], _jitter(patch, jitter), images), inside


def pretext_batch(images: Tensor, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pretext task's batch: the normal images, then pasted copies of each of the task's kinds.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        task: "binary" (normal against cutpaste), "scar" (normal against scar) or "3way" (all three).

    Returns:
        Images (n B, 3, H, W), classes (n B,) long with 0 for normal, and masks bool (n B, H, W); n is the task's number
        of classes.
    """
    pasted = [cutpaste(images, kind) for kind in TASKS[task]]
    b, _, height, width = images.shape
    nowhere = torch.zeros(b, height, width, dtype=torch.bool, device=images.device)
    classes = torch.arange(len(pasted) + 1, device=images.device).repeat_interleave(b)
    return torch.cat([images, *(p for p, _ in pasted)]), classes, torch.cat([nowhere, *(m for _, m in pasted)])
