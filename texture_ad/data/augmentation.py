"""Changed copies of the training images, so that light and position that vary later are normal in every fit."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from texture_ad.parameters import Fraction, NonNegativeInt, checked


@checked
class Augmentation:
    """Change images at random: brightness, gamma, a gradient of light, flips and quarter turns.

    Args:
        copies: of each training image, beside the image itself; 0 for none.
        brightness: largest relative change of all levels.
        gamma: largest relative change of the exponent.
        gradient: largest relative change of the levels from the image's middle to its edge, in a random direction.
        flips: mirror half of the copies, up or sideways.
        turns: turn copies by quarters, square ones only; others by halves.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(
        self,
        copies: NonNegativeInt,
        brightness: Fraction,
        gamma: Fraction,
        gradient: Fraction,
        flips: bool,
        turns: bool,
    ):
        self.copies = copies
        self.brightness = brightness
        self.gamma = gamma
        self.gradient = gradient
        self.flips = flips
        self.turns = turns

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return a changed copy of an image, uint8 (3, H, W).

        Args:
            image: uint8 (3, H, W).
            generator: source of the draws.
        """
        bright, gamma, strength, angle, flip, sideways, turn = torch.rand(7, generator=generator).tolist()
        levels = F.to_dtype(image, torch.float32, scale=True)
        if self.gamma:
            levels = F.adjust_gamma(levels, (1 + self.gamma) ** (2 * gamma - 1))
        light = 1 + self.brightness * (2 * bright - 1) + self.gradient * strength * ramp(levels, 360 * angle)
        changed = (levels * light).clamp(0, 1)
        if self.flips and flip < 0.5:
            changed = F.horizontal_flip(changed) if sideways < 0.5 else F.vertical_flip(changed)
        if self.turns:
            quarters = int(4 * turn) if changed.shape[1] == changed.shape[2] else 2 * int(2 * turn)
            changed = changed.rot90(quarters, (1, 2))
        return F.to_dtype(changed, torch.uint8, scale=True).contiguous()


def ramp(image: Tensor, degrees: float) -> Tensor:
    """Return a plane (H, W) from -1 to 1 over an image (3, H, W) that rises in a direction."""
    height, width = image.shape[1:]
    radians = torch.deg2rad(torch.tensor(degrees))
    plane = torch.linspace(-1, 1, height)[:, None] * radians.sin() + torch.linspace(-1, 1, width) * radians.cos()
    return plane / plane.abs().max().clamp(min=1e-6)
