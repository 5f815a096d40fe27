"""DSEBM: a deep energy-based model, trained by score matching.

Zhai, Cheng, Lu, Zhang: Deep Structured Energy Based Models for Anomaly Detection, ICML 2016 (the paper's [39]), the
convolutional model: E(x) = ||x - b||^2 / 2 - sum h(x), h a stack of convolutions with softplus. Score matching is
denoising: x - dE/dx of a noisy image is to be the clean one. An image's score is its energy or its reconstruction
error; the map is the reconstruction error. Widths, noise and the size of images are not given there for photographs.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import UserError, check_number
from texture_ad.methods.base import Baseline


class DSEBM(Baseline, L.LightningModule):
    """
    Args:
        size: see Baseline.
        input_size: to which images are resized, pixels, at least 32.
        widths: channels of the layers, each of which halves the size; every one at least 1.
        noise: standard deviation of the noise, in those of the pixels, above 0.
        criterion: "energy" or "reconstruction", the image's score.
        lr: Adam's, above 0; epochs: at least 1.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "dsebm"

    def __init__(
        self,
        size: int = 256,
        input_size: int = 64,
        widths: tuple[int, ...] = (32, 64, 128),
        noise: float = 0.5,
        criterion: str = "energy",
        lr: float = 1e-3,
        epochs: int = 50,
    ):
        super().__init__(
            size=size,
            input_size=input_size,
            widths=list(widths),
            noise=noise,
            criterion=criterion,
            lr=lr,
            epochs=epochs,
        )
        check_number("method.input_size", input_size, 32, 8192, whole=True)
        for width in widths:
            check_number("method.widths", width, 1, whole=True)
        check_number("method.noise", noise, 0, above=True)
        check_number("method.lr", lr, 0, above=True)
        check_number("method.epochs", epochs, 1, whole=True)
        if criterion not in ("energy", "reconstruction"):
            raise UserError(f"method.criterion={criterion}: expected one of energy, reconstruction")
        self.center = nn.Parameter(torch.zeros(1, 3, 1, 1))
        pairs = zip((3, *widths), widths, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.zeros(1, 3, 1, 1))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to (B, 3, input_size, input_size), standardised by the training images."""
        side = self.settings["input_size"]
        images = F.interpolate(images.float() / 255, (side, side), mode="bilinear", antialias=True)
        return (images - self.mean) / self.scale

    def energy_and_reconstruction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) a pixel, (B,), and x - dE/dx, (B, 3, H, W): back-propagation written out, so that it trains as well."""
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
            g = F.conv_transpose2d(g * gate, layer.weight, stride=2, padding=1, output_padding=odd)
        return energy / x[0].numel(), self.center + g

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.settings["lr"])

    def on_train_batch_start(self, batch: dict[str, Tensor], _: int) -> None:
        if not self.scale.any():
            x = batch["image"].float() / 255
            self.mean.copy_(x.mean((0, 2, 3), keepdim=True))
            self.scale.copy_(x.std((0, 2, 3), keepdim=True).clamp(min=1e-3))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        x = self.pixels(batch["image"])
        noisy = x + self.settings["noise"] * torch.randn_like(x)
        loss = F.mse_loss(self.energy_and_reconstruction(noisy)[1], x)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pixels(images)
        energy, reconstruction = self.energy_and_reconstruction(x)
        maps = (x - reconstruction).square().mean(1)
        return energy if self.settings["criterion"] == "energy" else maps.mean((1, 2)), maps
