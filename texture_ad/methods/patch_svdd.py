"""Patch SVDD: patches embedded so that neighbours lie close, and the distance to the nearest normal one.

Yi, Yoon: Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020 ([36] of Guo, Song, Ma). As
there: images of 256 pixels, a hierarchical encoder for patches of 64 and 32 pixels with embeddings of 64, the SVDD loss
of neighbouring patches plus `svdd_weight`'s share against telling the relative position of two patches, maps of both
sizes multiplied, the maximum as the image's score. Smaller: fewer steps with a higher learning rate, a coarser stride
of the patches that are compared (there 16 and 4), and a random part of the normal ones (there all, searched
approximately).
"""

from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches, nearest
from texture_ad.models.resizing import resize_square
from texture_ad.parameters import Count, NonNegative, NonNegativeInt, Positive, checked

SIDE = 256  # of the images, pixels
PATCHES = (64, 32)  # pixels
DIM = 64  # of an embedding
STEP = 8  # pixels between the encoder's outputs, which are patches of 32 when it runs over a whole image
# The eight neighbours, by whose number the classifier tells them.
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def _stack(*convolutions: nn.Conv2d) -> nn.Sequential:
    """Return convolutions with leaky ReLUs between them and tanh at the end."""
    layers = [layer for convolution in convolutions for layer in (convolution, nn.LeakyReLU(0.1))]
    return nn.Sequential(*layers[:-1], nn.Tanh())


def _classifier() -> nn.Sequential:
    """Return a network from the difference of two embeddings to their relative position."""
    return nn.Sequential(
        nn.Linear(DIM, 128), nn.LeakyReLU(0.1), nn.Linear(128, 128), nn.LeakyReLU(0.1), nn.Linear(128, len(DIRECTIONS))
    )


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Return one square of `side` pixels from each image (B, C, H, W) at its row `top` and column `left`, each (B,)."""
    steps = torch.arange(side, device=images.device)
    rows = (top[:, None] + steps)[:, :, None]
    columns = (left[:, None] + steps)[:, None]
    return images[torch.arange(len(images), device=images.device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


@checked
class PatchSVDD(Baseline, L.LightningModule):
    """Score a patch by the distance of its embedding to the nearest normal one, at two sizes.

    Args:
        svdd_weight: of the SVDD loss against the position loss.
        pairs: of patches from each image in each step.
        stride: between the patches that are compared, in pixels.
        normals: patches of each size that are kept at most.
        lr: of Adam.
        epochs: passes over the training images.
        seed: of the choice of patches.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "patch_svdd"
    normals_64: Tensor  # (N, DIM)
    normals_32: Tensor  # (N, DIM)

    def __init__(
        self,
        svdd_weight: NonNegative,
        pairs: Count,
        stride: Literal[8, 16, 32],
        normals: Count,
        lr: Positive,
        epochs: Count,
        seed: NonNegativeInt,
    ):
        super().__init__()
        self.small = _stack(
            nn.Conv2d(3, 64, 5, 2), nn.Conv2d(64, 64, 5, 2), nn.Conv2d(64, 128, 5, 2), nn.Conv2d(128, DIM, 1)
        )
        self.join = _stack(nn.Conv2d(DIM, 128, 2), nn.Conv2d(128, DIM, 1))
        self.classifiers = nn.ModuleList([_classifier(), _classifier()])
        self.register_buffer("normals_64", torch.zeros(0, DIM))
        self.register_buffer("normals_32", torch.zeros(0, DIM))

    def pixels(self, images: Tensor) -> Tensor:
        """Return (B, 3, SIDE, SIDE), each image's own mean subtracted, of images uint8 (B, 3, H, W)."""
        x = resize_square(images.float() / 255, SIDE)
        return (x - x.mean((2, 3), keepdim=True)) / 0.25

    def encode(self, patches: Tensor) -> Tensor:
        """Return embeddings (N, DIM) of patches (N, 3, 32, 32), or of (N, 3, 64, 64) by their four quarters."""
        if patches.shape[-1] == PATCHES[1]:
            return self.small(patches).flatten(1)
        quarters = patches.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
        parts = self.small(quarters.flatten(0, 2)).view(len(patches), 2, 2, DIM)
        return self.join(parts.permute(0, 3, 1, 2)).flatten(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), self.settings["lr"])

    def _losses(self, x: Tensor, side: int, classifier: nn.Module) -> tuple[Tensor, Tensor]:
        """Return SVDD and position loss of one pair of each, from images (B, 3, SIDE, SIDE)."""
        device = x.device

        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (len(x),), device=device)

        most = SIDE - side
        top = draw(0, most)
        left = draw(0, most)
        near = [(v + draw(-side // 8, side // 8)).clamp(0, most) for v in (top, left)]
        # Neighbours lie 3/4 of a side away, one way or the other, give or take what keeps the answer from the edges.
        away = 3 * side // 4
        jitter = side // 8
        reach = away + jitter
        center = draw(reach, most - reach), draw(reach, most - reach)
        position = torch.randint(len(DIRECTIONS), (len(x),), device=device)
        direction = torch.tensor(DIRECTIONS, device=device)[position]
        beside = [v + direction[:, i] * away + draw(-jitter, jitter) for i, v in enumerate(center)]
        patches = torch.cat([cut(x, row, column, side) for row, column in ((top, left), near, center, beside)])
        a, b, c, d = self.encode(patches).chunk(4)
        return (a - b).norm(dim=1).mean(), F.cross_entropy(classifier(c - d), position)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the losses of both patch sizes."""
        x = self.pixels(batch["image"]).repeat(self.settings["pairs"], 1, 1, 1)
        losses = map(self._losses, [x, x], PATCHES, self.classifiers)
        svdd, position = map(sum, zip(*losses, strict=True))
        loss = self.settings["svdd_weight"] * svdd + position
        self.log_dict({"train/svdd": svdd, "train/position": position})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def embeddings(self, images: Tensor) -> list[Tensor]:
        """Return embeddings (B, n, n, DIM) of patches of 64 and of 32 pixels, `stride` apart, of whole images."""
        stride = self.settings["stride"]
        small = self.small(self.pixels(images))[:, :, :: stride // STEP, :: stride // STEP]
        first, *rest = self.join
        assert isinstance(first, nn.Conv2d)
        # The quarters of a large patch are small ones that lie 32 pixels apart.
        large = F.conv2d(small, first.weight, first.bias, dilation=PATCHES[1] // stride)
        for layer in rest:
            large = layer(large)
        return [large.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1)]

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Keep embeddings of normal patches, chosen at random."""
        device = self.threshold.device
        s = self.settings
        sizes = zip(*(self.embeddings(batch["image"].to(device)) for batch in batches), strict=True)
        generator = torch.Generator().manual_seed(s["seed"])
        banks = [torch.cat(one).flatten(0, 2) for one in sizes]
        kept = [torch.randperm(len(bank), generator=generator)[: s["normals"]].to(device) for bank in banks]
        self.normals_64, self.normals_32 = (bank[index] for bank, index in zip(banks, kept, strict=True))

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        product = torch.ones((), device=self.device)
        for side, x, bank in zip(PATCHES, self.embeddings(images), (self.normals_64, self.normals_32), strict=True):
            distances = nearest(x.flatten(0, 2), bank)[0].view(x.shape[:3])
            product = product * self._spread(distances, side)
        return Measurement(None, product[:, None])

    def _spread(self, distances: Tensor, side: int) -> Tensor:
        """Return each cell's mean over the patches that cover it, (B, n, n) to (B, SIDE / 8, SIDE / 8)."""
        stride = self.settings["stride"]
        columns = distances.flatten(1)[:, None].expand(-1, side**2, -1)
        cover = F.fold(torch.ones_like(columns[:1]), SIDE, side, stride=stride)
        total = F.fold(columns, SIDE, side, stride=stride)
        return F.avg_pool2d(total / cover.clamp(min=1), 8)[:, 0]
