import pytest
import torch
from helpers import make

from texture_ad.errors import UserError
from texture_ad.models.flow import AffineCoupling, CouplingBlock, Flow, negative_log_likelihood


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


def test_the_log_scale_is_bounded_by_clamp_times_tanh():
    torch.manual_seed(0)
    coupling = AffineCoupling(3, 4, 8, clamp=1.5)
    for p in coupling.parameters():
        p.data = torch.randn_like(p)
    k1 = torch.randn(3, 50)
    s, t = coupling.scale_and_shift(k1)
    bare, shift = coupling.out(coupling.hidden(k1.T).relu()).T.chunk(2)
    assert torch.allclose(s, 1.5 * bare.tanh(), atol=1e-5) and torch.allclose(t, shift, atol=1e-5)


def test_an_untrained_flow_standardises_by_what_it_tracked():
    flow = make("flow", channels=[5], blocks=3, hidden=8)
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.5, 4, 3, 20, 0]) + 7
    flow.track(x, 1.0)
    t, log_det = flow(x)
    assert t.mean(0).abs().max() < 1e-4 and torch.allclose(t.std(0).sort()[0], torch.tensor([0.0, 1, 1, 1, 1]))
    # The feature that never changed is taken to vary by a tenth of what the others do: an answer there is unlikely,
    # but no more than that.
    std = x.std(0)
    least = 0.1 * std.square().mean().sqrt()
    assert std.sort()[0][0] < least < std.sort()[0][1]
    assert torch.allclose(log_det, -std.clamp(min=least).log().sum().expand(400))
    answer = flow.center + torch.tensor([0, 0, 0, 0, 1.0])
    assert torch.allclose(negative_log_likelihood(*flow(answer[None])) + log_det[:1], 0.5 / least**2, rtol=1e-4)
    flow.track(x + 4, 0.25)
    assert torch.allclose(flow.center, x.mean(0) + 1)


def test_features_that_never_change_are_tracked():
    flow = make("flow", channels=[5], blocks=3, hidden=8)
    flow.track(torch.ones(10, 5), 1.0)
    assert flow.scale.min() > 0 and all(x.isfinite().all() for x in flow(torch.zeros(2, 5)))


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
