"""Patch features to whitened features: what the flow and the dictionary model.

Whitening every position by itself is PaDiM's idea (Defard et al., ICPR 2021): each position of the image has a mean and a
covariance of its own.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from texture_ad.errors import UserError, check_number

RIDGE = 0.1  # times the features' mean variance
PRIOR = 8  # images: how much the statistics of all positions weigh at each single one


class Whitening(nn.Module):
    """Decorrelates and scales patch features by the training set's covariance.

    Signals have a mean squared length of 1, so that the dictionary's `lambda1` means the same for every backbone.
    Whitening keeps the `components` directions of most variance and adds RIDGE of the mean variance to each: features
    of a normal texture have many directions of almost no variance, whose noise would else drown the rest.

    Args:
        dim: C, of the patch features.
        mode: "position", by the covariance of the same position of the image; "global", by that of all positions; or "none",
            which centres and scales all features alike.
        components: directions that whitening keeps, at least 1.

    Raises:
        UserError: a parameter out of its range.
    """

    def __init__(self, dim: int, mode: str = "position", components: int = 192):
        super().__init__()
        if mode not in ("position", "global", "none"):
            raise UserError(f"whitening.mode={mode}: expected one of position, global, none")
        check_number("whitening.components", components, 1, whole=True)
        self.settings = {"dim": dim, "mode": mode, "components": components}
        self.length = dim if mode == "none" else min(components, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim, self.length))
        # For all positions together, or, once fitted, for each by itself.
        self.register_buffer("center", torch.zeros(1, self.length))
        self.register_buffer("matrix", torch.eye(self.length)[None])

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        for name in ("center", "matrix"):  # of one position or of many
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=self.mean.device))
        super()._load_from_state_dict(state, prefix, *args)

    @torch.no_grad()
    def fit(self, patches: Callable[[], Iterable[Tensor]]) -> None:
        """From the training set's patch features, (B, P, C) of P positions, which every call of `patches` streams."""
        count = 0
        total = 0.0
        outer = 0.0
        for batch in patches():
            x = batch.flatten(0, 1).double()
            count = count + len(x)
            total = total + x.sum(0)
            outer = outer + x.T @ x
        mean = total / count
        self.mean.copy_(mean)
        if self.settings["mode"] != "none":
            self.basis.copy_(torch.linalg.eigh((outer / count - torch.outer(mean, mean)).cpu())[1][:, -self.length :])
        self.refit(patches())

    @torch.no_grad()
    def refit(self, patches: Iterable[Tensor]) -> None:
        """Center and matrix anew from one pass over patch features (B, P, C).

        Mean and basis stay, so that the features change no more than the features do. A position's statistics are drawn
        towards those of all, as if PRIOR more images had shown the latter.
        """
        count = 0
        total = 0.0
        outer = 0.0
        for batch in patches:
            x = (batch - self.mean) @ self.basis
            x = x.transpose(0, 1) if self.settings["mode"] == "position" else x.flatten(0, 1)[None]
            count = count + x.shape[1]
            total = total + x.sum(1)
            outer = outer + x.transpose(1, 2) @ x
        mean = total / count
        covariance = outer / count - mean[:, :, None] * mean[:, None]
        identity = torch.eye(self.length, device=mean.device)
        own = count / (count + PRIOR)
        if self.settings["mode"] == "none":
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
        """Patch features (N, C) of whole images, in order, to whitened features (N, length)."""
        x = (patches @ self.basis).view(-1, len(self.center), self.length).transpose(0, 1)
        center = self.center + self.mean @ self.basis  # a pass over the patches less than to subtract the mean
        return ((x - center[:, None]) @ self.matrix).transpose(0, 1).reshape(-1, self.length)
