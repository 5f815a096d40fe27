"""PaDiM: a Gaussian at every position.

Defard, Setkov, Loesch, Audigier: PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization, ICPR workshops 2021. As there: raw activations of several layers brought to the largest grid, a random
choice of channels, a mean and a covariance (0.01 added to its diagonal) at every position, Mahalanobis distances,
Gaussian smoothing of 4 pixels, the map's maximum as the image's score. The backbone and its layers are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.base import Baseline, feature_dims
from texture_ad.models.backbone import Backbone

RIDGE = 0.01


class PaDiM(Baseline):
    """
    Args:
        backbone: pretrained.
        size: see Baseline.
        channels: chosen at random, at least 1; all where there are fewer.
        seed: of the choice.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "padim"
    uses_backbone = True
    sigma = 4.0

    def __init__(self, backbone: Backbone, size: int = 256, channels: int = 100, seed: int = 0):
        super().__init__(size=size, channels=channels, seed=seed)
        check_number("method.channels", channels, 1, whole=True)
        self.backbone = backbone
        total = sum(feature_dims(backbone))
        count = min(channels, total)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
        self.register_buffer("chosen", order)
        self.register_buffer("mean", torch.zeros(0, count))  # of each position
        self.register_buffer("whitening", torch.zeros(0, count, count))

    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (B, 3, H, W) to features (B, h w, channels) and (h, w)."""

        def joined(part: Tensor) -> Tensor:
            maps = self.backbone(part)
            size = maps[0].shape[-2:]
            return torch.cat([F.interpolate(m.float(), size, mode="nearest") for m in maps], 1)[:, self.chosen]

        maps = self.backbone.in_slices(joined, images)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[-2:])

    @torch.no_grad()
    def fit(self, loader) -> None:
        count = 0
        total = 0.0
        outer = 0.0
        for batch in loader:
            # Sums of squares less squares of sums lose what single precision holds.
            x = self.features(batch["image"].to(self.mean.device))[0].transpose(0, 1).double()
            count = count + x.shape[1]
            total = total + x.sum(1)
            outer = outer + x.transpose(1, 2) @ x
        mean = total / count
        covariance = (outer - count * mean[:, :, None] * mean[:, None]) / max(1, count - 1)
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.cholesky(covariance + RIDGE * identity)
        self.mean = mean.float()
        self.whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).float()

    def score(self, images: Tensor) -> tuple[None, Tensor]:
        x, grid = self.features(images)
        z = self.whitening @ (x - self.mean).permute(1, 2, 0)  # (h w, channels, B)
        return None, z.norm(dim=1).T.reshape(len(images), *grid)
