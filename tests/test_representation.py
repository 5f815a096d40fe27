"""Stage 1: what the flow's likelihood may and may not do to the features that it is shown."""

import pytest
import torch
from helpers import make

from texture_ad.methods.fusion.representation import limit_gradient
from texture_ad.models.flow import negative_log_likelihood


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.randn(500, 6) @ torch.randn(6, 6) + torch.randn(6)


def test_features_keep_their_values_and_the_gradient_is_weighed(features):
    x = features.requires_grad_()
    loss = torch.randn(6, generator=torch.Generator().manual_seed(1))
    assert not limit_gradient(x, 0.0).requires_grad
    gradients = []
    for weight in (1.0, 0.25):
        held = limit_gradient(x, weight)
        assert torch.equal(held, x)
        gradients += torch.autograd.grad((held.square().square() @ loss).sum(), x)
    assert gradients[0].abs().max() > 1 and torch.allclose(gradients[0] / 4, gradients[1], rtol=1e-4, atol=1e-4)


def test_moving_or_scaling_channels_does_not_lower_the_loss(features):
    x = features.double().requires_grad_()
    (gradient,) = torch.autograd.grad(limit_gradient(x, 1.0).tanh().square().sum(), x)
    (free,) = torch.autograd.grad(x.tanh().square().sum(), x)
    assert gradient.abs().max() > 0.01
    assert gradient.sum(0).abs().max() < 1e-9
    # What is left comes from the ridge alone.
    assert ((gradient * x).sum(0).abs() < 0.01 * (free * x).sum(0).abs()).all()


@pytest.mark.parametrize("limited", [True, False])
def test_the_likelihood_collapses_features_only_without_the_limit(limited):
    """A network that learns from the likelihood alone, together with the flow; in single precision digits decide."""
    torch.manual_seed(0)
    images = torch.randn(400, 8).double()
    flow = make("flow", channels=[6], blocks=2, hidden=16).double()
    encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6)).double()
    optimizer = torch.optim.Adam([*encoder.parameters(), *flow.parameters()], lr=5e-3)
    flow.track(encoder(images), 1.0)

    def least_spread():
        return torch.linalg.svdvals(encoder(images) - encoder(images).mean(0))[-1].item()

    before = least_spread()
    for _ in range(300):
        x = encoder(images)
        flow.track(x.detach(), 0.05)
        loss = negative_log_likelihood(*flow(limit_gradient(x, 1.0) if limited else x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (least_spread() > 0.5 * before) == limited
