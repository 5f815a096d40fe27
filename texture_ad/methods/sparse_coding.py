"""Sparse coding of raw image patches.

Adler, Elad, Hel-Or, Rivlin: Sparse coding with anomaly detection, 2015 (the paper's [22]): a dictionary learnt from
normal patches, and the part of a patch that few atoms can't explain. The dictionary is SPAMS's, streamed as the main
method's is; the image's score is the mean of its five highest positions, as the paper has it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.errors import UserError, check_number
from texture_ad.evaluation.localization import TOP, image_scores, top_positions
from texture_ad.methods.base import MIN_DISTANCE, Baseline
from texture_ad.methods.fusion.detection import initial_atoms, update_atoms
from texture_ad.models.sparse import residuals


class SparseCoding(Baseline):
    """
    Args:
        size: see Baseline.
        patch: side in pixels, from 2 to size; stride: between patches, from 1 to patch.
        atoms: number of atoms, at least 1.
        nonzeros: OMP's limit, from 1 to 3 patch^2.
        lambda1: equation 8's beta, above 0; iterations, batch: mini-batches for each batch of images and patches in
            each, at least 1; epochs: passes, at least 1.
        coder: "auto", "spams" or "torch".
        seed: of the initial atoms.

    Raises:
        UserError: a parameter out of its range.
    """

    name = "sparse_coding"

    def __init__(
        self,
        size: int = 256,
        patch: int = 8,
        stride: int = 4,
        atoms: int = 256,
        nonzeros: int = 4,
        lambda1: float = 0.15,
        iterations: int = 20,
        batch: int = 512,
        epochs: int = 2,
        coder: str = "auto",
        seed: int = 0,
    ):
        super().__init__(
            size=size,
            patch=patch,
            stride=stride,
            atoms=atoms,
            nonzeros=nonzeros,
            lambda1=lambda1,
            iterations=iterations,
            batch=batch,
            epochs=epochs,
            coder=coder,
            seed=seed,
        )
        check_number("method.patch", patch, 2, size, whole=True)
        check_number("method.stride", stride, 1, patch, whole=True)
        check_number("method.nonzeros", nonzeros, 1, 3 * patch**2, whole=True)
        for key, value in (("atoms", atoms), ("iterations", iterations), ("batch", batch), ("epochs", epochs)):
            check_number(f"method.{key}", value, 1, whole=True)
        check_number("method.lambda1", lambda1, 0, above=True)
        if coder not in ("auto", "spams", "torch"):
            raise UserError(f"method.coder={coder}: expected one of auto, spams, torch")
        self.register_buffer("atoms", torch.zeros(atoms, 3 * patch**2))

    def patches(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to patches (B h w, 3 patch^2), pixels in -0.5..0.5."""
        columns = F.unfold(images.float() / 255 - 0.5, self.settings["patch"], stride=self.settings["stride"])
        return columns.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def fit(self, loader) -> None:
        s = self.settings
        device = self.atoms.device
        atoms = statistics = None
        for _ in range(s["epochs"]):
            for batch in loader:
                features = self.patches(batch["image"])
                if atoms is None:
                    atoms = initial_atoms(features, s["atoms"], s["seed"])
                atoms, statistics = update_atoms(
                    features, atoms, statistics, s["lambda1"], s["iterations"], s["batch"], 1
                )
        self.atoms.copy_(atoms.to(device))

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s = self.settings
        features = self.patches(images)
        errors = residuals(features, self.atoms, s["nonzeros"], coder=s["coder"]).sqrt()
        side = [(n - s["patch"]) // s["stride"] + 1 for n in images.shape[-2:]]
        maps = errors.view(len(images), *side)
        return image_scores(top_positions(maps, TOP, MIN_DISTANCE)[1]), maps
