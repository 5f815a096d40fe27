"""PaDiM: a Gaussian at every position.

Defard, Setkov, Loesch, Audigier: PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization,
ICPR workshops 2021. As there: raw activations of several layers brought to the largest grid, a random choice of
channels, a mean and a covariance (0.01 added to its diagonal) at every position, Mahalanobis distances, Gaussian
smoothing of 4 pixels, the map's maximum as the image's score. The backbone and its layers are ours.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches
from texture_ad.models.backbone import Backbone
from texture_ad.parameters import Count, NonNegativeInt, checked

RIDGE = 0.01
FITTING = 12  # times the kept matrices that a fit holds at once


@checked
class PaDiM(Baseline):
    """Score a position by its Mahalanobis distance from the same position of the training images.

    Args:
        backbone: pretrained.
        last: deepest layers of the backbone's chosen ones that are used; all where there are fewer.
        channels: chosen at random; all where there are fewer.
        seed: of the choice.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "padim"
    uses_backbone = True
    uses_positions = True
    sigma = 4.0
    chosen: Tensor  # (channels,)
    mean: Tensor  # (positions, channels)
    whitening: Tensor  # (positions, channels, channels)
    count: Tensor  # (), images that they were fitted on

    def __init__(self, backbone: Backbone, last: Count, channels: Count, seed: NonNegativeInt):
        super().__init__()
        self.backbone = backbone
        total = sum(backbone.num_channels[-last:])
        count = min(channels, total)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
        self.register_buffer("chosen", order)
        self.register_buffer("mean", torch.zeros(0, count))
        self.register_buffer("whitening", torch.zeros(0, count, count))
        self.register_buffer("count", torch.tensor(0))

    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return features (B, h w, channels) and the grid (h, w) of images, uint8 (B, 3, H, W)."""

        def joined(part: Tensor) -> Tensor:
            maps = self.backbone(part)[-self.settings["last"] :]
            size = maps[0].shape[-2:]
            return torch.cat([F.interpolate(m.float(), size, mode="nearest") for m in maps], 1)[:, self.chosen]

        maps = self.backbone.in_slices(joined, images)
        return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])

    def fit_memory(self) -> tuple[int, int]:
        """Return the bytes of the Gaussians of all positions, kept and while they are fitted in double precision."""
        first = -min(self.settings["last"], len(self.backbone.settings["layers"]))
        matrix = 4 * len(self.chosen) ** 2 * math.prod(self.backbone.grid_of(self.geometry.size, first))
        return matrix, FITTING * matrix

    def learn(self, batches: Batches) -> None:
        """Fit a mean and a covariance at every position."""
        nothing = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        self._fit((batch["image"] for batch in batches), 0, nothing, nothing)

    def check_updatable(self) -> None:
        """Refuse nothing: mean, covariance and count are all that there is to add to."""

    @torch.no_grad()
    def update(self, images: Iterable[Tensor]) -> None:
        """Add further normal images to mean and covariance of every position."""
        count = int(self.count)
        mean = self.mean.double()
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.solve_triangular(self.whitening.double(), identity, upper=False)
        covariance = factor @ factor.transpose(1, 2) - RIDGE * identity
        outer = max(1, count - 1) * covariance + count * mean[:, :, None] * mean[:, None]
        self._fit(images, count, count * mean, outer)

    @torch.no_grad()
    def _fit(self, images: Iterable[Tensor], count: int, total: Tensor, outer: Tensor) -> None:
        """Add batches of images to a count, sums (P, C) and outer products (P, C, C); make mean and whitening of them.

        In double precision: sums of squares less squares of sums lose what single precision holds.
        """
        for batch in images:
            x = self.features(batch.to(self.mean.device))[0].transpose(0, 1).double()
            count += x.shape[1]
            total = total + x.sum(1)
            outer = outer + x.transpose(1, 2) @ x
        mean = total / count
        covariance = (outer - count * mean[:, :, None] * mean[:, None]) / max(1, count - 1)
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.cholesky(covariance + RIDGE * identity)
        self.mean = mean.float()
        self.whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).float()
        self.count.fill_(count)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        x, grid = self.features(images)
        z = self.whitening @ (x - self.mean).permute(1, 2, 0)  # (h w, channels, B)
        return Measurement(None, z.norm(dim=1).T.reshape(images.shape[0], 1, *grid))
