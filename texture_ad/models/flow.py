"""RealNVP on patch features: equations 1 to 6 of Guo, Song, Ma, read as their references intend.

Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, 2016 (reference [31]). Eight coupling blocks on the
features of a pretrained network are DifferNet's (Rudolph, Wandt, Rosenhahn: Same Same But DifferNet, WACV 2021). The
printed equation 3 can't be inverted as it stands; see docs/paper.md for the reading used here.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from texture_ad.errors import ParameterError
from texture_ad.parameters import Count, NonNegativeInt, Positive, arguments_of, checked

# A tenth of AlexNet's channels are zero all over a texture, a fifth over two images of it. An answer there would be
# astronomically unlikely, and training leap.
STILL = 0.1  # of the channels' deviation (root mean square): what each is taken to vary at least


def negative_log_likelihood(t: Tensor, log_det: Tensor) -> Tensor:
    """Return equation 6, ||t||^2 / 2 - log|det dt/dx|, of each feature vector, up to a constant.

    Args:
        t: latent features (N, D).
        log_det: (N,).

    Returns:
        (N,), in nats.
    """
    return t.square().sum(1) / 2 - log_det


class AffineCoupling(nn.Module):
    """Compute s and t of m1 = k1, m2 = k2 * exp(s(k1)) + t(k1) by fully connected layers.

    Args:
        dim_in: length of k1.
        dim_out: length of k2.
        hidden: width of the layers.
        clamp: s = clamp * tanh(...) lies in (-clamp, clamp).
    """

    def __init__(self, dim_in: int, dim_out: int, hidden: int, clamp: float):
        super().__init__()
        self.clamp = clamp
        self.hidden = nn.Linear(dim_in, hidden)
        self.out = nn.Linear(hidden, 2 * dim_out)
        # The block starts as the identity, which keeps a deep flow's first steps tame.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def scale_and_shift(self, k1: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t, each (dim_out, N), of k1 (dim_in, N)."""
        hidden = torch.addmm(self.hidden.bias[:, None], self.hidden.weight, k1).relu_()
        s, t = torch.addmm(self.out.bias[:, None], self.out.weight, hidden).chunk(2)
        # clamp * tanh(s), for which torch takes twice as long on a CPU.
        return self.clamp * (2 * torch.sigmoid(2 * s) - 1), t


class CouplingBlock(nn.Module):
    """Permute the features at random but fixed, then transform both halves in turn, each conditioned on the other.

    Features stand in rows here, (D, N): to permute and halve rows takes half the time of columns on a CPU.

    Args:
        dim: D, the number of features, at least 2.
        hidden: width of the fully connected layers.
        clamp: bound on the log-scale of each coupling.
        generator: draws the permutation, which is saved with the weights.
    """

    permutation: Tensor  # (D,)

    def __init__(self, dim: int, hidden: int, clamp: float, generator: torch.Generator):
        super().__init__()
        low = dim // 2
        high = dim - low
        self.halves = [low, high]
        self.register_buffer("permutation", torch.randperm(dim, generator=generator, device="cpu"))
        self.second = AffineCoupling(low, high, hidden, clamp)
        self.first = AffineCoupling(high, low, hidden, clamp)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed (D, N) and the log-determinant (N,) of x (D, N)."""
        k1, k2 = x.index_select(0, self.permutation).split(self.halves)
        s2, t2 = self.second.scale_and_shift(k1)
        k2 = torch.addcmul(t2, k2, s2.exp())
        s1, t1 = self.first.scale_and_shift(k2)
        k1 = torch.addcmul(t1, k1, s1.exp())
        return torch.cat((k1, k2)), s1.sum(0) + s2.sum(0)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x (D, N) of the transformed y (D, N)."""
        k1, k2 = y.split(self.halves)
        s1, t1 = self.first.scale_and_shift(k2)
        k1 = (k1 - t1) * (-s1).exp()
        s2, t2 = self.second.scale_and_shift(k1)
        k2 = (k2 - t2) * (-s2).exp()
        return torch.cat((k1, k2)).index_select(0, self.permutation.argsort())


@checked
class Flow(nn.Module):
    """Standardise features by tracked statistics, then transform them by coupling blocks; Guo, Song, Ma have eight.

    Args:
        channels: of each layer in the whitened patch features.
        first: how many layers of the whitened features it models, the finest ones; 0 for all. The finest alone is
            modelled in the quarters of each position, where the backbone has vectors of its own there.
        blocks: number of coupling blocks.
        hidden: width of the fully connected layers.
        clamp: bound on the log-scale of each coupling.
        seed: of the permutations.

    Attributes:
        dim: D, length of a feature vector.

    Raises:
        ParameterError: a parameter out of its range, or layers of a single channel in all.

    Examples:
        >>> flow = Flow(channels=[6, 8], first=1, blocks=2, hidden=8, clamp=2.0, seed=0)
        >>> x = torch.randn(4, 6)
        >>> t, log_det = flow(x)
        >>> torch.allclose(flow.inverse(t), x, atol=1e-5)
        True
    """

    center: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(
        self,
        channels: Sequence[int],
        first: NonNegativeInt,
        blocks: Count,
        hidden: Count,
        clamp: Positive,
        seed: NonNegativeInt,
    ):
        super().__init__()
        if first > len(channels):
            raise ParameterError("first", first, f"expected an integer from 0 to {len(channels)}")
        self.first = first
        self.dim = dim = sum(channels[: first or None])
        if dim < 2:
            raise ParameterError("first", first, "expected layers of at least 2 channels together, to halve them")
        self.settings = arguments_of(self) | {"channels": list(channels)}
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(CouplingBlock(dim, hidden, clamp, generator) for _ in range(blocks))
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @torch.no_grad()
    def track(self, x: Tensor, momentum: float) -> None:
        """Move the input statistics towards those of the features (N, D); momentum 1 takes them over."""
        self.center.lerp_(x.mean(0), momentum)
        std = x.std(0)
        least = STILL * std.square().mean().sqrt()
        self.scale.lerp_(std.clamp(min=least).clamp(min=1e-6), momentum)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent features t (N, D) and log|det dt/dx| (N,) of features (N, D)."""
        t = ((x - self.center) / self.scale).T.contiguous()
        log_det = -self.scale.log().sum().expand(x.shape[0])
        for block in self.blocks:
            t, block_log_det = block(t)
            log_det = log_det + block_log_det
        return t.T, log_det

    def inverse(self, t: Tensor) -> Tensor:
        """Return the features (N, D) of latent features (N, D)."""
        x = t.T.contiguous()
        for block in list(self.blocks)[::-1]:
            x = cast(CouplingBlock, block).inverse(x)
        return x.T * self.scale + self.center
