"""What two papers show on toys: learned variances are the noise's, and GradNorm equalises the rates of learning."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.balancers import Balancer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", ["kendall", "exponential"])
def test_uncertainty_weighting_recovers_the_noise(form: str) -> None:
    """Three regressions from one trunk whose targets carry noise of sigma = 10, 1 and 0.1 (Kendall et al. 2018)."""
    sigmas = torch.tensor([10.0, 1.0, 0.1])
    x = torch.randn(1000, 1)
    y = torch.cat([2 * x + 8, 3 - 3 * x, x.sin()], dim=1) + sigmas * torch.randn(1000, 3)
    trunk, head = nn.Sequential(nn.Linear(1, 32), nn.Tanh()), nn.Linear(32, 3)
    balancer = gs.UncertaintyWeighting(3, form=form)  # type: ignore[arg-type]
    # The first losses are a hundred times the last ones; Adam has to forget their gradients in time.
    parameters = [*trunk.parameters(), *head.parameters(), *balancer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01, betas=(0.9, 0.99))
    for _ in range(2000):
        optimizer.zero_grad()
        losses = (head(trunk(x)) - y).square().mean(0)
        balancer(list(losses)).backward()
        optimizer.step()
    torch.testing.assert_close(balancer.variances, losses.detach(), rtol=0.05, atol=0)
    torch.testing.assert_close(balancer.variances.sqrt(), sigmas, rtol=0.05, atol=0)


def relative_losses(make: Callable[[nn.Module], Balancer]) -> Tensor:
    """L_t / L_t(0) on fresh samples after training on the toy of GradNorm's paper: f_t(x) = sigma_t tanh((B + E_t) x). [T]"""
    torch.manual_seed(0)
    inputs, outputs, width = 50, 20, 64
    B, *E = torch.randn(3, outputs, inputs) * torch.tensor([1.0, 0.35, 0.35])[:, None, None]
    matrices = [(B + e) * 3 / math.sqrt(inputs) for e in E]  # tanh is far from linear, as in the paper
    sigmas = (1.0, 100.0)
    last = nn.Linear(width, width)
    trunk = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last, nn.ReLU())
    heads = nn.ModuleList(nn.Linear(width, outputs) for _ in sigmas)

    def losses(x: Tensor) -> list[Tensor]:
        z = trunk(x)
        return [(h(z) - s * (x @ A.T).tanh()).square().mean() for h, s, A in zip(heads, sigmas, matrices, strict=True)]

    test = torch.randn(1000, inputs)
    with torch.no_grad():
        start = torch.stack(losses(test))
    balancer = make(last)
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    weights = torch.optim.Adam(balancer.parameters(), lr=3e-3) if list(balancer.parameters()) else None
    for _ in range(1000):
        optimizer.zero_grad()
        balancer.zero_grad()
        balancer(losses(torch.randn(100, inputs))).backward()
        optimizer.step()
        if weights is not None:
            weights.step()
    with torch.no_grad():
        return torch.stack(losses(test)) / start


def test_gradnorm_equalises_the_rates_of_learning() -> None:
    """Targets a hundredfold apart: with equal weights the small task hardly learns, with GradNorm both have come equally far."""
    equal = relative_losses(lambda layer: gs.ConstantWeights(2))
    balanced = relative_losses(lambda layer: gs.GradNorm(2, layer=layer, alpha=0.12))
    assert equal[0] / equal[1] > 1.5
    assert 1 / 1.15 < balanced[0] / balanced[1] < 1.15
    assert balanced[0] < equal[0]
