"""Sparse coding of raw image patches.

Adler, Elad, Hel-Or, Rivlin: Sparse coding with anomaly detection, 2015 (reference [22] of Guo, Song, Ma): a dictionary
learnt from normal patches, and the part of a patch that few atoms can't explain. The dictionary is SPAMS's, streamed as
our method's is; the image score is the mean of the five highest positions, as Guo, Song, Ma have it.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from texture_ad.data.geometry import Geometry
from texture_ad.evaluation.localization import image_scores
from texture_ad.methods.base import Measurement
from texture_ad.methods.baseline import Baseline, Batches
from texture_ad.models.dictionary import initial_atoms, update_atoms
from texture_ad.models.sparse import residuals
from texture_ad.parameters import Count, NonNegativeInt, Positive, Range, check, checked


@checked
class SparseCoding(Baseline):
    """Score a patch of pixels by the error of its sparse code.

    Args:
        patch: side of a patch in pixels, from 2 to the images' shorter side.
        stride: between patches in pixels, from 1 to patch.
        num_atoms: K.
        nonzeros: limit on the atoms of a code, from 1 to 3 patch^2.
        lambda1: equation 8's beta.
        iterations: mini-batches for each batch of images.
        batch: patches in a mini-batch.
        epochs: passes over the training images.
        seed: of the initial atoms.

    Raises:
        ParameterError: a parameter out of its range.
    """

    name = "sparse_coding"
    uses_spams = True
    atoms: Tensor  # (K, 3 patch^2), unit-norm rows

    def __init__(
        self,
        patch: int,
        stride: int,
        num_atoms: Count,
        nonzeros: int,
        lambda1: Positive,
        iterations: Count,
        batch: Count,
        epochs: Count,
        seed: NonNegativeInt,
    ):
        super().__init__()
        check("patch", patch, Annotated[int, Range(2)])
        check("stride", stride, Annotated[int, Range(1, patch)])
        check("nonzeros", nonzeros, Annotated[int, Range(1, 3 * patch**2)])
        self.register_buffer("atoms", torch.zeros(num_atoms, 3 * patch**2))

    def set_geometry(self, geometry: Geometry) -> None:
        """Set what the detector sees of a photograph.

        Raises:
            ParameterError: images smaller than a patch.
        """
        check("patch", self.settings["patch"], Annotated[int, Range(2, min(geometry.size))])
        super().set_geometry(geometry)

    def patches(self, images: Tensor) -> Tensor:
        """Return patches (B h w, 3 patch^2), pixels in -0.5..0.5, of images, uint8 (B, 3, H, W)."""
        columns = F.unfold(images.float() / 255 - 0.5, self.settings["patch"], stride=self.settings["stride"])
        return columns.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Learn the atoms as the training images' patches stream by."""
        s = self.settings
        atoms = statistics = None
        for _ in range(s["epochs"]):
            for batch in batches:
                patches = self.patches(batch["image"])
                if atoms is None:
                    atoms = initial_atoms(patches, s["num_atoms"], s["seed"])
                atoms, statistics = update_atoms(
                    patches, atoms, statistics, s["lambda1"], s["iterations"], s["batch"], threads=1
                )
        assert atoms is not None
        self.atoms.copy_(atoms)

    def measure(self, images: Tensor) -> Measurement:
        """Measure images, uint8 (B, 3, H, W)."""
        s = self.settings
        patches = self.patches(images)
        errors = residuals(patches, self.atoms, self.atoms @ self.atoms.T, s["nonzeros"], error=0.0).sqrt()
        grid = [(n - s["patch"]) // s["stride"] + 1 for n in images.shape[-2:]]
        return Measurement(None, errors.view(images.shape[0], 1, *grid))

    def score(self, anomaly_maps: Tensor, top_scores: Tensor, parts: Tensor) -> Tensor:
        """Return the mean of the highest positions, as Guo, Song, Ma have it."""
        return image_scores(top_scores)
