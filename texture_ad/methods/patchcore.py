"""PatchCore: the distance of each patch to a core set of normal patches.

Roth et al.: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022. As there: locally aware features of middle
layers, a core set by greedy k-center in a random projection, the image score re-weighted by how crowded the nearest
memory is (equation 7), Gaussian smoothing of 4 pixels. The backbone and its layers are ours.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.errors import ParameterError
from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches, nearest
from texture_ad.models.backbone import Backbone, flatten_patches
from texture_ad.parameters import Count, NonNegativeInt, Range, checked

PROJECTED = 128  # dimensions in which the core set is chosen


def core_set(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return indices (count,) of rows of `x` (N, C), each the farthest from those before it, the first at random.

    At most twice as far from every row as the best choice is (Gonzalez, 1985), in the random projection.
    """
    if x.shape[1] > PROJECTED:
        x = x @ torch.randn(x.shape[1], PROJECTED, generator=generator).to(x) / PROJECTED**0.5
    squares = x.square().sum(1)
    chosen = torch.randint(len(x), (1,), generator=generator).to(x.device)
    distances = torch.full_like(squares, torch.inf)
    indices = []
    for _ in range(count):
        indices.append(chosen)
        distances = torch.minimum(distances, squares + squares[chosen] - 2 * (x @ x[chosen][0]))
        distances[chosen] = -torch.inf
        chosen = distances.argmax(keepdim=True)
    return torch.cat(indices)


@checked
class PatchCore(Baseline):
    """Score a position by its distance to the nearest of a core set of normal patches.

    Args:
        backbone: pretrained.
        last: deepest layers of the backbone's chosen ones that are used; all where there are fewer.
        neighborhood: positions on a side that are averaged into a patch feature, odd.
        coreset: share of the patches that is kept.
        neighbors: memories round the nearest one that re-weight the score; 1 leaves it as it is.
        max_patches: held at once; beyond, they are reduced to their core set first.
        seed: of the projection and the first patch.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "patchcore"
    uses_backbone = True
    sigma = 4.0
    memory: Tensor  # (M, C)

    def __init__(
        self,
        backbone: Backbone,
        last: Count,
        neighborhood: Count,
        coreset: Annotated[float, Range(0, 1, above=True)],
        neighbors: Count,
        max_patches: Count,
        seed: NonNegativeInt,
    ):
        super().__init__()
        if neighborhood % 2 == 0:
            raise ParameterError("neighborhood", neighborhood, "expected an odd number of at least 1")
        self.backbone = backbone
        self.register_buffer("memory", torch.zeros(0, sum(backbone.num_channels[-last:])))

    def patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return patch features (B h w, C) and the grid (h, w) of images, uint8 (B, 3, H, W)."""

        def joined(part: Tensor) -> Tensor:
            side = self.settings["neighborhood"]
            maps = [m.float() for m in self.backbone(part)[-self.settings["last"] :]]
            maps = [F.avg_pool2d(m, side, 1, side // 2) for m in maps]
            size = maps[0].shape[-2:]
            return torch.cat([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps], 1)

        maps = self.backbone.in_slices(joined, images)
        return flatten_patches(maps), (maps.shape[2], maps.shape[3])

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Keep a core set of the training images' patch features."""
        generator = torch.Generator().manual_seed(self.settings["seed"])
        memory: list[Tensor] = []
        held: list[Tensor] = []

        def reduce() -> None:
            x = torch.cat(held)
            memory.append(x[core_set(x, max(1, round(self.settings["coreset"] * len(x))), generator)])
            held.clear()

        for batch in batches:
            held.append(self.patches(batch["image"].to(self.memory.device))[0])
            if sum(map(len, held)) >= self.settings["max_patches"]:
                reduce()
        if held:
            reduce()
        self.memory = torch.cat(memory)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        x, grid = self.patches(images)
        distances, indices = nearest(x, self.memory)
        maps = distances.view(images.shape[0], *grid)
        x = x.view(images.shape[0], -1, x.shape[1])
        counting = self.counting(grid)
        counted = maps if counting is None else maps.masked_fill(~counting, -torch.inf)
        highest, position = counted.flatten(1).max(1)
        if min(self.settings["neighbors"], len(self.memory)) == 1:  # no crowd: the weight would be 0 for every image
            return Measurement(highest, maps[:, None])
        rows = torch.arange(images.shape[0], device=x.device)
        around = nearest(
            self.memory[indices.view(images.shape[0], -1)[rows, position]], self.memory, self.settings["neighbors"]
        )[1]
        crowd = (x[rows, position][:, None] - self.memory[around]).norm(dim=2).logsumexp(1)
        return Measurement((1 - (highest - crowd).exp()) * highest, maps[:, None])
