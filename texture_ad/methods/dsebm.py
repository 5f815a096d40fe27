"""DSEBM: a deep energy-based model, trained by score matching.

Zhai, Cheng, Lu, Zhang: Deep Structured Energy Based Models for Anomaly Detection, ICML 2016 ([39] of Guo, Song, Ma),
the convolutional model: E(x) = ||x - b||^2 / 2 - sum h(x), h a stack of convolutions with softplus. Score matching is
denoising: x - dE/dx of a noisy image is to be the clean one. An image's score is its energy or its reconstruction
error; the map is the reconstruction error. Widths, noise and the size of images are not given there for photographs.
"""

from collections.abc import Sequence
from typing import Literal, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline
from texture_ad.models.resizing import resize_square
from texture_ad.parameters import Count, Positive, Size, check, checked


@checked
class DSEBM(Baseline, L.LightningModule):
    """Score an image by the energy that a network learns by score matching, or by its reconstruction error.

    Args:
        input_size: side to which images are resized, in pixels.
        widths: channels of the layers, each of which halves the size.
        noise: standard deviation of the noise, in those of the pixels.
        criterion: what the image score is.
        lr: of Adam.
        epochs: passes over the training images.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "dsebm"
    mean: Tensor  # (1, 3, 1, 1)
    scale: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        input_size: Size,
        widths: Sequence[int],
        noise: Positive,
        criterion: Literal["energy", "reconstruction"],
        lr: Positive,
        epochs: Count,
    ):
        super().__init__()
        for width in widths:
            check("widths", width, Count)
        self.center = nn.Parameter(torch.zeros(1, 3, 1, 1))
        pairs = zip((3, *widths), widths, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.zeros(1, 3, 1, 1))

    def pixels(self, images: Tensor) -> Tensor:
        """Return (B, 3, input_size, input_size), standardised by the training images, of images uint8 (B, 3, H, W)."""
        # Resized last: OpenVINO can't scale each channel after a matrix product.
        return resize_square((images.float() / 255 - self.mean) / self.scale, self.settings["input_size"])

    def energy_and_reconstruction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) a pixel, (B,), and x - dE/dx, (B, 3, H, W).

        Back-propagation is written out, so that it can be trained through.
        """
        h = x
        gates = []
        sizes = []
        for layer in self.layers:
            sizes.append(h.shape[-2:])
            z = layer(h)
            gates.append(z.sigmoid())
            h = F.softplus(z)
        energy = (x - self.center).square().flatten(1).sum(1) / 2 - h.flatten(1).sum(1)
        g = torch.ones_like(h)
        for layer, gate, size in zip(reversed(self.layers), reversed(gates), reversed(sizes), strict=True):
            odd = [n - 2 * m for n, m in zip(size, gate.shape[-2:], strict=True)]
            g = F.conv_transpose2d(g * gate, cast(nn.Conv2d, layer).weight, stride=2, padding=1, output_padding=odd)
        return energy / x[0].numel(), self.center + g

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), self.settings["lr"])

    def on_train_batch_start(self, batch: dict[str, Tensor], _: int) -> None:
        """Take the pixels' mean and deviation from the first batch."""
        if not self.scale.any():
            x = batch["image"].float() / 255
            self.mean.copy_(x.mean((0, 2, 3), keepdim=True))
            self.scale.copy_(x.std((0, 2, 3), keepdim=True).clamp(min=1e-3))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the error of the clean image made from a noisy one."""
        x = self.pixels(batch["image"])
        noisy = x + self.settings["noise"] * torch.randn_like(x)
        loss = F.mse_loss(self.energy_and_reconstruction(noisy)[1], x)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        x = self.pixels(images)
        energy, reconstruction = self.energy_and_reconstruction(x)
        maps = (x - reconstruction).square().mean(1)
        scores = energy if self.settings["criterion"] == "energy" else maps.mean((1, 2))
        return Measurement(scores, maps[:, None])
