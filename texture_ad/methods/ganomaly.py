"""GANomaly: what an encoder sees in an image and in its reconstruction.

Akcay, Atapour-Abarghouei, Breckon: GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, ACCV 2018. As
there: DCGAN's networks, a latent vector of 100, feature matching, contextual and encoder losses weighted 1, 50 and 1,
Adam with 2e-4 and 0.5, small images, the distance of the two latent vectors as score. It has no map.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import ParameterError
from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline
from texture_ad.models.resizing import resize_square
from texture_ad.parameters import Count, Positive, Size, checked


def _encoder(input_size: Size, width: int, latent: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return convolutions that halve the size down to 4 pixels, and the one that makes (latent, 1, 1) of them."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    side = input_size // 2
    while side > 4:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        side = side // 2
        width = 2 * width
    return nn.Sequential(*layers), nn.Sequential(nn.Conv2d(width, latent, 4, bias=False))


def _decoder(input_size: Size, width: int, latent: int) -> nn.Sequential:
    """Return the encoder's mirror image, which gives pixels in -1..1."""
    wide = width * input_size // 8
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, wide, 4, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    while wide > width:
        layers += [nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(wide // 2), nn.ReLU()]
        wide //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


@checked
class GANomaly(Baseline, L.LightningModule):
    """Score an image by the distance of its latent vector to that of its reconstruction.

    Args:
        input_size: side to which images are resized, a power of two of at least 32 pixels.
        width: channels of the first layer.
        latent: length of the latent vector.
        lr: of Adam.
        epochs: passes over the training images.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "ganomaly"

    def __init__(
        self,
        input_size: Size,
        width: Count,
        latent: Count,
        lr: Positive,
        epochs: Count,
    ):
        super().__init__()
        if input_size & (input_size - 1):
            raise ParameterError("input_size", input_size, "expected a power of two of at least 32")
        self.automatic_optimization = False
        self.encoder = nn.Sequential(*_encoder(input_size, width, latent))
        self.decoder = _decoder(input_size, width, latent)
        self.second_encoder = nn.Sequential(*_encoder(input_size, width, latent))
        self.features, self.realness = _encoder(input_size, width, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def pixels(self, images: Tensor) -> Tensor:
        """Return (B, 3, input_size, input_size) in -1..1 of images uint8 (B, 3, H, W)."""
        return resize_square(images.float() / 127.5 - 1, self.settings["input_size"])

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latent vector (B, latent, 1, 1), the reconstruction and its latent vector."""
        z = self.encoder(x)
        fake = self.decoder(z)
        return z, fake, self.second_encoder(fake)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the generator and Adam for the discriminator."""
        generator = [p for net in (self.encoder, self.decoder, self.second_encoder) for p in net.parameters()]
        discriminator = [*self.features.parameters(), *self.realness.parameters()]
        return [torch.optim.Adam(group, self.settings["lr"], (0.5, 0.999)) for group in (generator, discriminator)]

    def training_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Take a step of the generator, then one of the discriminator."""
        generator, discriminator = self.optimizers()  # type: ignore[attr-defined]
        x = self.pixels(batch["image"])
        z, fake, z_fake = self.generate(x)
        losses = {
            "adversarial": F.mse_loss(self.features(fake), self.features(x).detach()),
            "contextual": F.l1_loss(fake, x),
            "encoder": F.mse_loss(z_fake, z),
        }
        loss = losses["adversarial"] + 50 * losses["contextual"] + losses["encoder"]
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        logits = [self.realness(self.features(images)).flatten() for images in (x, fake.detach())]
        halves = [
            F.binary_cross_entropy_with_logits(v, torch.full_like(v, real))
            for v, real in zip(logits, (1.0, 0.0), strict=True)
        ]
        loss_d = torch.stack(halves).mean()
        discriminator.zero_grad()
        self.manual_backward(loss_d)
        discriminator.step()
        self.log_dict({f"train/{k}": v for k, v in losses.items()} | {"train/discriminator": loss_d})
        self.log("train/loss", loss, prog_bar=True)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        z, _, z_fake = self.generate(self.pixels(images))
        return Measurement((z - z_fake).abs().mean((1, 2, 3)), None)
