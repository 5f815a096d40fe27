"""Whitening of patch features: what the flow and the dictionary model.

Whitening every position by itself is PaDiM's idea (Defard et al., ICPR 2021): each position of the image has a mean and
a covariance of its own.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from texture_ad.parameters import Count, arguments_of, checked

RIDGE = 0.1  # times the features' mean variance
PRIOR = 8  # images: how much the statistics of all positions weigh at each single one


@checked
class Whitening(nn.Module):
    """Decorrelate and scale patch features by the training set's covariance.

    Whitened features have a mean squared length of 1, so that the dictionary's `lambda1` means the same for every
    backbone. Whitening keeps the `components` directions of most variance and adds RIDGE of the mean variance to each:
    features of a normal texture have many directions of almost no variance, whose noise would else drown the rest.

    Args:
        dim: C, of the patch features.
        mode: "position", by the covariance of the same position of the image; "global", by that of all positions; or
            "none", which centres and scales all features alike.
        components: directions that whitening keeps.

    Attributes:
        length: of a whitened feature vector.

    Raises:
        ParameterError: a parameter out of its range.
    """

    mean: Tensor  # (C,)
    basis: Tensor  # (C, length)
    center: Tensor  # (positions, length), of all positions together (1) or, once fitted, of each
    matrix: Tensor  # (positions, length, length)

    def __init__(
        self,
        dim: Count,
        mode: Literal["position", "global", "none"],
        components: Count,
    ):
        super().__init__()
        self.settings = arguments_of(self)
        self.mode = mode
        self.length = dim if mode == "none" else min(components, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim, self.length))
        self.register_buffer("center", torch.zeros(1, self.length))
        self.register_buffer("matrix", torch.eye(self.length)[None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("center", "matrix"):  # of one position or of many
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit(self, patches: Callable[[], Iterable[Tensor]]) -> None:
        """Fit mean, basis, center and matrix.

        Args:
            patches: streams the training set's patch features, (B, P, C) of P positions, anew at every call.
        """
        count = 0
        total = torch.zeros((), dtype=torch.float64)
        outer = torch.zeros((), dtype=torch.float64)
        for batch in patches():
            x = batch.flatten(0, 1).double()
            count += len(x)
            total = total.to(x) + x.sum(0)
            outer = outer.to(x) + x.T @ x
        mean = total / count
        self.mean.copy_(mean)
        if self.mode != "none":
            covariance = outer / count - torch.outer(mean, mean)
            self.basis.copy_(torch.linalg.eigh(covariance.cpu())[1][:, -self.length :])
        self.refit(patches())

    @torch.no_grad()
    def refit(self, patches: Iterable[Tensor]) -> None:
        """Fit center and matrix anew, from one pass over patch features (B, P, C).

        Mean and basis stay, so that the whitened features change no more than the features do. A position's statistics
        are drawn towards those of all, as if PRIOR more images had shown the latter.
        """
        count = 0
        total = outer = torch.zeros(())
        for batch in patches:
            x = (batch - self.mean) @ self.basis
            x = x.transpose(0, 1) if self.mode == "position" else x.flatten(0, 1)[None]
            count += x.shape[1]
            total = total.to(x) + x.sum(1)
            outer = outer.to(x) + x.transpose(1, 2) @ x
        mean = total / count
        covariance = outer / count - mean[:, :, None] * mean[:, None]
        identity = torch.eye(self.length, device=mean.device)
        own = count / (count + PRIOR)
        if self.mode == "none":
            matrix = identity[None]
        else:
            overall = covariance.mean(0) + mean.T @ mean / len(mean)
            covariance = torch.lerp(overall.expand_as(covariance), covariance, own)
            factor = torch.linalg.cholesky(covariance + RIDGE * overall.diagonal().mean() * identity)
            matrix = torch.linalg.solve_triangular(factor, identity, upper=False).transpose(1, 2)
        energy = (matrix * (covariance @ matrix)).sum((1, 2)).mean()
        self.center = own * mean
        self.matrix = (matrix / energy.clamp(min=1e-12).sqrt()).contiguous()

    def forward(self, patches: Tensor) -> Tensor:
        """Return whitened features (N, length) of the patch features (N, C) of whole images, in order."""
        x = (patches @ self.basis).view(-1, len(self.center), self.length).transpose(0, 1)
        center = self.center + self.mean @ self.basis  # a pass over the patches less than to subtract the mean
        return ((x - center[:, None]) @ self.matrix).transpose(0, 1).reshape(-1, self.length)
