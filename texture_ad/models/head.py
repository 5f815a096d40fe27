"""The self-supervised head: tells pasted positions from normal ones by a quadratic form of whitened features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from texture_ad.parameters import Count, arguments_of, checked

LEAST = 1e-3  # of the quadratic form, whose logarithm is taken


@checked
class QuadraticHead(nn.Module):
    """Score features by the logarithm of a learnt quadratic form, positive in every direction.

    A network with kinks learns where the pasted features lie, and says nothing of defects elsewhere. This form grows in
    every direction away from the normal features, and learns how fast in each.

    Args:
        dim: C, length of a feature vector.
        hidden: squared projections of the features, beside the squares of the features themselves.

    Raises:
        ParameterError: a parameter out of its range.
    """

    def __init__(self, dim: Count, hidden: Count):
        super().__init__()
        self.settings = arguments_of(self)
        self.projection = nn.Linear(dim, hidden)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        nn.init.zeros_(self.projection.bias)
        self.weights = nn.Parameter(torch.zeros(hidden))
        self.diagonal = nn.Parameter(torch.full((dim,), -1.0))
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N,) of features (N, C) of mean squared length 1."""
        z = features * features.shape[1] ** 0.5  # of unit deviation
        form = (self.projection(z).square() @ F.softplus(self.weights)) / len(self.weights)
        form = form + (z.square() @ F.softplus(self.diagonal)) / len(self.diagonal)
        return (form + LEAST).log()

    def loss(self, features: Tensor, pasted: Tensor) -> Tensor:
        """Return the cross-entropy of telling pasted positions (1) from normal ones (0).

        Args:
            features: (N, C).
            pasted: (N,), 0 or 1.
        """
        return F.binary_cross_entropy_with_logits(self.slope.exp() * self(features) + self.offset, pasted)
