import pytest
import torch
from helpers import make

from texture_ad.errors import UserError
from texture_ad.models.flow import CouplingBlock, Flow, negative_log_likelihood


def trained(dim: int, blocks: int) -> Flow:
    torch.manual_seed(0)
    flow = make("flow", channels=[dim], blocks=blocks, hidden=16).double()
    for p in flow.parameters():  # the identity at the start would make every test pass
        p.data = 0.15 * torch.randn_like(p)
    flow.track(3 * torch.randn(100, dim, dtype=torch.double) + 1, 1.0)
    return flow


@pytest.mark.parametrize(("dim", "blocks"), [(2, 1), (5, 3), (12, 8)])
def test_inverse_returns_the_input(dim, blocks):
    flow = trained(dim, blocks)
    x = torch.randn(50, dim, dtype=torch.double) * 3
    assert torch.allclose(flow.inverse(flow(x)[0]), x, atol=1e-8)


@pytest.mark.parametrize(("dim", "blocks"), [(2, 1), (5, 3), (7, 8)])
def test_log_determinant_is_autograds(dim, blocks):
    flow = trained(dim, blocks)
    for x in torch.randn(3, dim, dtype=torch.double):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], x)
        assert torch.allclose(flow(x[None])[1][0], torch.linalg.slogdet(jacobian)[1], atol=1e-8)


def test_no_feature_passes_a_block_unchanged():
    block = CouplingBlock(6, 8, 2.0, torch.Generator().manual_seed(1))
    for p in block.parameters():
        p.data = torch.randn_like(p)
    x = torch.randn(6, 20)
    y = block(x)[0]
    assert (y - x[block.permutation]).abs().amax(1).min() > 1e-3


def test_likelihood_integrates_to_one():
    flow = trained(2, 4).float()
    # Over the latent grid mapped back: density under the flow against a Riemann sum in feature space.
    axis = torch.linspace(-60, 60, 1200)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_density = -negative_log_likelihood(*flow(x)) - torch.log(torch.tensor(2 * torch.pi))
    assert abs(float(log_density.exp().sum() * (axis[1] - axis[0]) ** 2) - 1) < 0.05


def test_extreme_inputs_stay_finite():
    flow = trained(4, 8)
    t, log_det = flow(torch.full((1, 4), 1e6, dtype=torch.double))
    assert torch.isfinite(t).all() and torch.isfinite(log_det).all()


@pytest.mark.parametrize(
    "bad", [{"blocks": 0}, {"hidden": 0}, {"clamp": 0.0}, {"clamp": float("nan")}, {"first": 3}, {"first": 1}]
)
def test_parameters_out_of_range_are_named(bad):
    with pytest.raises(UserError, match=f"flow.{next(iter(bad))}="):
        make("flow", **{"channels": [1, 4], **bad})
