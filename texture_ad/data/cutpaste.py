"""CutPaste, the self-supervised pretext task, vectorised over the batch on the batch's own device.

Li, Sohn, Yoon, Pfister: CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021.
The ranges below are that paper's (its section 2.2 and appendix); pixel sizes there are for 256-pixel images
and scale with the image here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.02, 0.15)  # of the image, for "cutpaste"
ASPECT = (0.3, 3.3)  # width / height, from (0.3, 1) or (1, 3.3) with equal chance
SCAR_WIDTH = (2, 16)  # pixels at 256
SCAR_LENGTH = (10, 25)  # pixels at 256
SCAR_ANGLE = math.radians(45)  # either way
JITTER = 0.1  # brightness, contrast and saturation of the patch, either way

KINDS = ("cutpaste", "scar")
TASKS = {"binary": ("cutpaste",), "scar": ("scar",), "3way": ("cutpaste", "scar")}


def _uniform(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(count, device=device)


def _rectangles(kind: str, count: int, height: int, width: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """Widths and heights in pixels and angles in radians of `count` random patches, each (count,)."""
    if kind == "scar":
        scale = min(height, width) / 256
        w = _uniform(*SCAR_WIDTH, count, device) * scale
        h = _uniform(*SCAR_LENGTH, count, device) * scale
        return w.clamp(min=1), h.clamp(min=1), _uniform(-SCAR_ANGLE, SCAR_ANGLE, count, device)
    area = _uniform(*AREA, count, device) * height * width
    wide = torch.rand(count, device=device) < 0.5
    aspect = torch.where(wide, _uniform(1, ASPECT[1], count, device), _uniform(ASPECT[0], 1, count, device))
    w = (area * aspect).sqrt()
    h = (area / aspect).sqrt()
    return w.clamp(max=width - 2), h.clamp(max=height - 2), torch.zeros(count, device=device)


def _jitter(patch: Tensor) -> Tensor:
    """Random brightness, contrast and saturation, one draw an image. (B, 3, H, W) in [0, 1], and back."""

    def factor() -> Tensor:
        return _uniform(1 - JITTER, 1 + JITTER, len(patch), patch.device)[:, None, None, None]

    patch = patch * factor()
    mean = patch.mean((1, 2, 3), keepdim=True)
    patch = mean + (patch - mean) * factor()
    grey = patch.mean(1, keepdim=True)
    return (grey + (patch - grey) * factor()).clamp(0, 1)


def cutpaste(images: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Cuts a random patch of each image, jitters its colours and pastes it elsewhere in the same image.

    Draws from the device's global random state, which the run's seed sets.

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
    b, _, height, width = images.shape
    device = images.device
    w, h, angle = _rectangles(kind, b, height, width, device)
    cos = angle.cos()
    sin = angle.sin()
    # Half extents of the patch as it lies in the target, so that it stays inside the image.
    reach_x = ((w * cos.abs() + h * sin.abs()) / 2).clamp(max=width / 2)
    reach_y = ((w * sin.abs() + h * cos.abs()) / 2).clamp(max=height / 2)
    to_x = reach_x + torch.rand(b, device=device) * (width - 2 * reach_x)
    to_y = reach_y + torch.rand(b, device=device) * (height - 2 * reach_y)
    from_x = w / 2 + torch.rand(b, device=device) * (width - w)
    from_y = h / 2 + torch.rand(b, device=device) * (height - h)

    def each(v: Tensor) -> Tensor:
        return v[:, None, None]

    x = torch.arange(width, device=device)[None, None, :] + 0.5 - each(to_x)
    y = torch.arange(height, device=device)[None, :, None] + 0.5 - each(to_y)
    u = each(cos) * x + each(sin) * y
    v = -each(sin) * x + each(cos) * y
    inside = (u.abs() <= each(w) / 2) & (v.abs() <= each(h) / 2)
    grid = torch.stack(((u + each(from_x)) * 2 / width - 1, (v + each(from_y)) * 2 / height - 1), -1)
    # Rotated patches are interpolated; upright ones are shifted by whole pixels and copied exactly.
    mode = "bilinear" if kind == "scar" else "nearest"
    patch = F.grid_sample(images, grid.to(images.dtype), mode, "reflection", align_corners=False)
    return torch.where(inside[:, None], _jitter(patch), images), inside


def pretext_batch(images: Tensor, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """The pretext task's batch: the normal images, then each of the task's kinds of pasted copies.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        task: "binary" (normal against cutpaste), "scar" (normal against scar) or "3way" (all three).

    Returns:
        images (n B, 3, H, W), classes (n B,) long with 0 for normal, and masks (n B, H, W) bool, n being the
        task's number of classes.
    """
    pasted = [cutpaste(images, kind) for kind in TASKS[task]]
    b, _, height, width = images.shape
    nowhere = torch.zeros(b, height, width, dtype=torch.bool, device=images.device)
    classes = torch.arange(len(pasted) + 1, device=images.device).repeat_interleave(b)
    return torch.cat([images, *(p for p, _ in pasted)]), classes, torch.cat([nowhere, *(m for _, m in pasted)])
