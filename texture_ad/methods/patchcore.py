"""PatchCore: the distance of each patch to a core set of normal patches.

Roth et al.: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022. As there: locally aware features of middle
layers, a core set by greedy k-center in a random projection, the image score re-weighted by how crowded the
nearest memory is (equation 7), Gaussian smoothing of 4 pixels. The backbone and its layers are ours, and each layer
is scaled to unit length.
"""

import torch
from torch import Tensor

from texture_ad.errors import check_number
from texture_ad.methods.base import Baseline, feature_dims, nearest
from texture_ad.models.backbone import Backbone, flatten_patches

PROJECTED = 128  # dimensions in which the core set is chosen


def core_set(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) of rows of `x` (N, C), each the farthest from those before it, the first at random.

    At most twice as far from every row as the best choice is (Gonzalez, 1985), in the random projection.
    """
    if x.shape[1] > PROJECTED:
        x = x @ torch.randn(x.shape[1], PROJECTED, generator=generator).to(x) / PROJECTED**0.5
    squares = x.square().sum(1)
    chosen = torch.randint(len(x), (), generator=generator).to(x.device)
    distances = torch.full_like(squares, torch.inf)
    indices = []
    for _ in range(count):
        indices.append(chosen)
        distances = torch.minimum(distances, squares + squares[chosen] - 2 * (x @ x[chosen]))
        distances[chosen] = -torch.inf
        chosen = distances.argmax()
    return torch.stack(indices)


class PatchCore(Baseline):
    """
    Args:
        backbone: pretrained.
        size: see Baseline.
        coreset: share of the patches that is kept, in (0, 1].
        neighbors: memories round the nearest one that re-weight the score, at least 1.
        max_patches: held at once; beyond, they are reduced to their core set first, at least 1.
        seed: of the projection and the first patch.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "patchcore"
    uses_backbone = True
    sigma = 4.0

    def __init__(
        self,
        backbone: Backbone,
        size: int = 256,
        coreset: float = 0.1,
        neighbors: int = 9,
        max_patches: int = 25_000,
        seed: int = 0,
    ):
        super().__init__(size=size, coreset=coreset, neighbors=neighbors, max_patches=max_patches, seed=seed)
        check_number("method.coreset", coreset, 0, 1, above=True)
        check_number("method.neighbors", neighbors, 1, whole=True)
        check_number("method.max_patches", max_patches, 1, whole=True)
        self.backbone = backbone
        self.register_buffer("memory", torch.zeros(0, sum(feature_dims(backbone))))

    def patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """uint8 (B, 3, H, W) to patch features (B h w, C) and (h, w)."""
        maps = self.backbone.extract(images)
        return flatten_patches(maps), tuple(maps.shape[-2:])

    @torch.no_grad()
    def fit(self, loader) -> None:
        generator = torch.Generator().manual_seed(self.settings["seed"])
        memory = []
        held = []

        def reduce() -> None:
            x = torch.cat(held)
            memory.append(x[core_set(x, max(1, round(self.settings["coreset"] * len(x))), generator)])
            held.clear()

        for batch in loader:
            held.append(self.patches(batch["image"].to(self.memory.device))[0])
            if sum(map(len, held)) >= self.settings["max_patches"]:
                reduce()
        if held:
            reduce()
        self.memory = torch.cat(memory)

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x, grid = self.patches(images)
        distances, indices = nearest(x, self.memory)
        maps = distances.view(len(images), *grid)
        x = x.view(len(images), -1, x.shape[1])
        highest, place = maps.flatten(1).max(1)
        rows = torch.arange(len(images), device=x.device)
        around = nearest(
            self.memory[indices.view(len(images), -1)[rows, place]], self.memory, self.settings["neighbors"]
        )[1]
        crowd = (x[rows, place][:, None] - self.memory[around]).norm(dim=2).logsumexp(1)
        return (1 - (highest - crowd).exp()) * highest, maps
