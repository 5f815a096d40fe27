"""Resizing as two matrix products, which every runtime computes alike.

Runtimes other than torch lack its antialiased resizing, or compute another one, and have fewer digits of coordinates.
"""

import torch
from torch import Tensor


def linear_weights(inside: int, outside: int) -> Tensor:
    """Return the matrix (outside, inside) that resizes a line of pixels: bilinear, antialiased where shorter.

    Distances are whole numbers, so that floats hold the weights well enough.
    """
    reach = torch.full((1,), 2 * inside, dtype=torch.int32).clamp(min=2 * outside)
    centres = (2 * torch.arange(outside, dtype=torch.int32) + 1) * inside
    distances = ((2 * torch.arange(inside, dtype=torch.int32) + 1) * outside - centres[:, None]).abs()
    weights = (reach - distances).clamp(min=0).float()
    return weights / weights.sum(1, keepdim=True)


def resize_square(images: Tensor, side: int) -> Tensor:
    """Return images, float (B, C, H, W), as (B, C, side, side), as `F.interpolate` does with antialias."""
    rows, columns = (linear_weights(length, side).to(images.device) for length in images.shape[2:])
    return rows @ (images @ columns.T)
