"""The dictionary: its atoms, how SPAMS learns them (equation 8 of Guo, Song, Ma), and the error of sparse codes.

Mairal et al.: Online learning for matrix factorization and sparse coding, JMLR 2010.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.errors import ParameterError
from texture_ad.models.sparse import own_threads, residuals
from texture_ad.parameters import Count, NonNegative, NonNegativeInt, arguments_of, checked


@checked
class Dictionary(nn.Module):
    """Measure how badly sparse combinations of atoms reconstruct feature vectors.

    Args:
        channels: of each layer in the whitened patch features.
        num_atoms: K.
        features: what the atoms model: "whitened" patch features, or "latent", the flow's.
        last: how many layers of the whitened features they model, the deepest ones; 0 for all.
        nonzeros: limit on the atoms of a code, at most C.
        error: pursuit stops where the squared error is at most this; 0 for no bound.

    Attributes:
        dim: C, length of a feature vector.

    Raises:
        ParameterError: a parameter out of its range, or latent features of some layers.
    """

    atoms: Tensor  # (K, C), unit-norm rows
    gram: Tensor  # (K, K)

    def __init__(
        self,
        channels: Sequence[int],
        num_atoms: Count,
        features: Literal["whitened", "latent"],
        last: NonNegativeInt,
        nonzeros: Count,
        error: NonNegative,
    ):
        super().__init__()
        if last > len(channels):
            raise ParameterError("last", last, f"expected an integer from 0 to {len(channels)}")
        if last and features == "latent":
            raise ParameterError("last", last, "expected 0 with features=latent, since the flow mixes all layers")
        self.dim = sum(channels[-last:])
        if nonzeros > self.dim:
            raise ParameterError("nonzeros", nonzeros, f"expected an integer from 1 to {self.dim}")
        self.settings = arguments_of(self) | {"channels": list(channels)}
        self.features = features
        self.nonzeros = nonzeros
        self.error = error
        self.register_buffer("atoms", F.normalize(torch.ones(num_atoms, self.dim), dim=1))
        self.register_buffer("gram", self.atoms @ self.atoms.T, persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.set_atoms(module.atoms))

    def set_atoms(self, atoms: Tensor) -> None:
        """Take over atoms (K, C) of unit norm, with their Gram matrix, which is computed here alone."""
        self.atoms = atoms.to(self.atoms.device)
        self.gram = self.atoms @ self.atoms.T

    def forward(self, features: Tensor) -> Tensor:
        """Return the squared reconstruction errors ||y - D x||^2 (N,) of feature vectors (N, C)."""
        return residuals(features, self.atoms, self.gram, self.nonzeros, self.error)


def initial_atoms(features: Tensor, count: int, seed: int) -> Tensor:
    """Return random feature vectors scaled to unit norm, repeated with noise where there are too few.

    Args:
        features: (N, C).
        count: of atoms.
        seed: of the choice and the noise.

    Returns:
        (count, C), unit-norm rows.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(features), (count,), generator=generator)
    index[: min(count, len(features))] = torch.randperm(len(features), generator=generator)[:count]
    drawn = features[index] + 1e-3 * torch.randn(count, features.shape[1], generator=generator)
    return F.normalize(drawn, dim=1)


def update_atoms(
    features: Tensor,
    atoms: Tensor,
    statistics: dict[str, Any] | None,
    lambda1: float,
    iterations: int,
    batch: int,
    threads: int,
) -> tuple[Tensor, dict[str, Any]]:
    """Call `spams.trainDL` once, warm-started from its own statistics.

    Args:
        features: float32 (N, C).
        atoms: (K, C), unit-norm rows.
        statistics: what the last call returned (A, B and the iteration count), or None at the start.
        lambda1: the l1 weight, equation 8's beta.
        iterations: mini-batches drawn from the features.
        batch: feature vectors in a mini-batch.
        threads: -1 for all cores.

    Returns:
        The new atoms (K, C), unit-norm rows, and SPAMS's statistics.
    """
    import spams

    x = features.contiguous().numpy().T
    # The objective with 1/2 ||y - D x||^2 is equation 8 divided by two, up to lambda1's scale.
    with own_threads(threads) as count:
        d, learnt = spams.trainDL(
            x,
            return_model=True,
            model=statistics,
            D=np.asfortranarray(atoms.numpy().T),
            lambda1=lambda1,
            iter=iterations,
            batchsize=min(batch, len(features)),
            numThreads=count,
            verbose=False,
        )
    # SPAMS keeps the norms at most 1: an atom that nothing uses may shrink below.
    return F.normalize(torch.from_numpy(np.ascontiguousarray(d.T)), dim=1), learnt
