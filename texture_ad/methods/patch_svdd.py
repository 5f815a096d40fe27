"""Patch SVDD: patches embedded so that neighbours lie close, and the distance to the nearest normal one.

Yi, Yoon: Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020 (the paper's [36]). As there:
images of 256 pixels, a hierarchical encoder for patches of 64 and 32 pixels with embeddings of 64, the SVDD loss of
neighbouring patches plus `svdd_weight`'s share against telling the relative position of two patches, maps of both sizes
multiplied, the maximum as the image's score. Smaller: fewer steps with a higher learning rate, a coarser stride of the
patches that are compared (there 16 and 4), and a random part of the normal ones (there all, searched approximately).
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import UserError, check_number
from texture_ad.methods.base import Baseline, nearest

SIDE = 256  # of the images, pixels
PATCHES = (64, 32)  # pixels
DIM = 64  # of an embedding
STEP = 8  # pixels between the encoder's outputs, which are patches of 32 when it runs over a whole image
# The eight neighbours, by whose number the classifier tells them.
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def _stack(*shapes: tuple[int, ...]) -> nn.Sequential:
    """Convolutions with leaky ReLUs between them and tanh at the end."""
    layers: list[nn.Module] = []
    for shape in shapes:
        layers += [nn.Conv2d(*shape), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1], nn.Tanh())


def _classifier() -> nn.Sequential:
    """From the difference of two embeddings to their relative position."""
    return nn.Sequential(
        nn.Linear(DIM, 128), nn.LeakyReLU(0.1), nn.Linear(128, 128), nn.LeakyReLU(0.1), nn.Linear(128, len(DIRECTIONS))
    )


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """One square of `side` pixels from each image (B, C, H, W) at its row `top` and column `left`, each (B,)."""
    steps = torch.arange(side, device=images.device)
    rows = (top[:, None] + steps)[:, :, None]
    columns = (left[:, None] + steps)[:, None]
    return images[torch.arange(len(images), device=images.device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


class PatchSVDD(Baseline, L.LightningModule):
    """
    Args:
        size: see Baseline.
        svdd_weight: of the SVDD loss against the position loss, at least 0.
        pairs: of patches from each image in each step, at least 1.
        stride: between the patches that are compared, 8, 16 or 32 pixels.
        normals: patches of each size that are kept at most, at least 1.
        lr: Adam's, above 0; epochs: at least 1.
        seed: of the choice of patches.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "patch_svdd"

    def __init__(
        self,
        size: int = 256,
        svdd_weight: float = 1e-3,
        pairs: int = 1,
        stride: int = 16,
        normals: int = 20_000,
        lr: float = 1e-3,
        epochs: int = 20,
        seed: int = 0,
    ):
        super().__init__(
            size=size,
            svdd_weight=svdd_weight,
            pairs=pairs,
            stride=stride,
            normals=normals,
            lr=lr,
            epochs=epochs,
            seed=seed,
        )
        check_number("method.svdd_weight", svdd_weight, 0)
        check_number("method.stride", stride, STEP, PATCHES[1], whole=True)
        if stride not in (8, 16, 32):
            raise UserError(f"method.stride={stride}: expected one of 8, 16, 32")
        for key, value in (("pairs", pairs), ("normals", normals), ("epochs", epochs)):
            check_number(f"method.{key}", value, 1, whole=True)
        check_number("method.lr", lr, 0, above=True)
        self.small = _stack((3, 64, 5, 2), (64, 64, 5, 2), (64, 128, 5, 2), (128, DIM, 1))
        self.join = _stack((DIM, 128, 2), (128, DIM, 1))
        self.classifiers = nn.ModuleList([_classifier(), _classifier()])
        self.register_buffer("normals_64", torch.zeros(0, DIM))
        self.register_buffer("normals_32", torch.zeros(0, DIM))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to (B, 3, SIDE, SIDE), each image's own mean subtracted."""
        x = F.interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        return (x - x.mean((2, 3), keepdim=True)) / 0.25

    def encode(self, patches: Tensor) -> Tensor:
        """Patches (N, 3, 32, 32), or (N, 3, 64, 64) by their four quarters, to embeddings (N, DIM)."""
        if patches.shape[-1] == PATCHES[1]:
            return self.small(patches).flatten(1)
        quarters = patches.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
        parts = self.small(quarters.flatten(0, 2)).view(len(patches), 2, 2, DIM)
        return self.join(parts.permute(0, 3, 1, 2)).flatten(1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.settings["lr"])

    def _losses(self, x: Tensor, side: int, classifier: nn.Module) -> tuple[Tensor, Tensor]:
        """SVDD and position loss of one pair of each, from images (B, 3, SIDE, SIDE)."""
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
        patches = torch.cat([cut(x, *place, side) for place in ((top, left), near, center, beside)])
        a, b, c, d = self.encode(patches).chunk(4)
        return (a - b).norm(dim=1).mean(), F.cross_entropy(classifier(c - d), position)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        x = self.pixels(batch["image"]).repeat(self.settings["pairs"], 1, 1, 1)
        losses = map(self._losses, [x, x], PATCHES, self.classifiers)
        svdd, position = map(sum, zip(*losses, strict=True))
        loss = self.settings["svdd_weight"] * svdd + position
        self.log_dict({"train/svdd": svdd, "train/position": position})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def embeddings(self, images: Tensor) -> list[Tensor]:
        """Of patches of 64 and of 32 pixels, `stride` apart, (B, n, n, DIM) each: the encoder run over whole images."""
        stride = self.settings["stride"]
        small = self.small(self.pixels(images))[:, :, :: stride // STEP, :: stride // STEP]
        first, *rest = self.join
        # The quarters of a large patch are small ones that lie 32 pixels apart.
        large = F.conv2d(small, first.weight, first.bias, dilation=PATCHES[1] // stride)
        for layer in rest:
            large = layer(large)
        return [large.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1)]

    @torch.no_grad()
    def fit(self, loader) -> None:
        device = self.threshold.device
        s = self.settings
        levels = zip(*(self.embeddings(batch["image"].to(device)) for batch in loader), strict=True)
        generator = torch.Generator().manual_seed(s["seed"])
        banks = [torch.cat(level).flatten(0, 2) for level in levels]
        kept = [torch.randperm(len(bank), generator=generator)[: s["normals"]].to(device) for bank in banks]
        self.normals_64, self.normals_32 = (bank[index] for bank, index in zip(banks, kept, strict=True))

    def score(self, images: Tensor) -> tuple[None, Tensor]:
        product = 1.0
        for side, x, bank in zip(PATCHES, self.embeddings(images), (self.normals_64, self.normals_32), strict=True):
            distances = nearest(x.flatten(0, 2), bank)[0].view(x.shape[:3])
            product = product * self._spread(distances, side)
        return None, product

    def _spread(self, distances: Tensor, side: int) -> Tensor:
        """Each cell's mean over the patches that cover it, (B, n, n) to (B, SIDE / 8, SIDE / 8)."""
        cells = SIDE
        stride = self.settings["stride"]
        columns = distances.flatten(1)[:, None].expand(-1, side**2, -1)
        cover = F.fold(torch.ones_like(columns[:1]), cells, side, stride=stride)
        total = F.fold(columns, cells, side, stride=stride)
        return F.avg_pool2d(total / cover.clamp(min=1), 8)[:, 0]
