"""Uncertainty weighting against its formulas, and its own resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gradsurgery as gs


def test_classification_has_twice_the_factor() -> None:
    balancer = gs.UncertaintyWeighting(("a", "b"), kinds=("classification", "regression"), initial_log_vars=(0.3, 0.3))
    torch.testing.assert_close(balancer.weights, torch.tensor([1.0, 0.5]) * math.exp(-0.3))
    torch.testing.assert_close(balancer.variances, torch.full((2,), math.exp(0.3)))


@pytest.mark.parametrize("form", ["kendall", "exponential", "liebel"])
@pytest.mark.parametrize("loss", [0.05, 1.0, 20.0])
def test_learned_variance_reaches_the_documented_optimum(form: Any, loss: float) -> None:
    balancer = gs.UncertaintyWeighting(1, form=form).double()
    optimizer = torch.optim.LBFGS(balancer.parameters(), lr=0.5, max_iter=200, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = balancer([torch.tensor(loss, dtype=torch.float64)])
        value.backward()
        return value

    optimizer.step(closure)
    expected = (loss + math.sqrt(loss**2 + 8 * loss)) / 4 if form == "liebel" else loss
    assert balancer.variances.item() == pytest.approx(expected, rel=1e-4)


def test_liebel_is_never_negative() -> None:
    balancer = gs.UncertaintyWeighting(1, form="liebel", initial_log_vars=-20.0)
    assert balancer([torch.tensor(0.0)]).item() >= 0


def test_absent_task_leaves_its_variance_alone() -> None:
    balancer = gs.UncertaintyWeighting(("a", "b"))
    balancer({"b": torch.tensor(3.0)}).backward()
    assert balancer.log_vars.grad is not None
    assert balancer.log_vars.grad[0] == 0
    assert balancer.log_vars.grad[1] != 0


def test_weighted_terms_add_up_to_the_loss() -> None:
    balancer = gs.UncertaintyWeighting(("a", "b"), initial_log_vars=(0.5, -1.0))
    losses = {"b": torch.tensor(3.0), "a": torch.tensor(0.2)}
    terms = balancer.weighted(losses)
    assert set(terms) == {"a", "b"}
    torch.testing.assert_close(sum(terms.values()), balancer(losses))


def test_resumes_to_the_same_bits() -> None:
    def run(balancer: gs.UncertaintyWeighting, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            balancer([torch.tensor(1.0 + step), torch.tensor(0.1 * step)]).backward()
            optimizer.step()

    def fresh() -> tuple[gs.UncertaintyWeighting, torch.optim.Optimizer]:
        balancer = gs.UncertaintyWeighting(2)
        return balancer, torch.optim.Adam(balancer.parameters(), lr=0.1)

    whole, optimizer = fresh()
    run(whole, optimizer, range(10))
    half, half_optimizer = fresh()
    run(half, half_optimizer, range(5))
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(half.state_dict())
    resumed_optimizer.load_state_dict(half_optimizer.state_dict())
    run(resumed, resumed_optimizer, range(5, 10))
    assert torch.equal(resumed.log_vars, whole.log_vars)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "gal"}, "form: expected one of 'kendall', 'exponential', 'liebel', found 'gal'"),
        ({"kinds": "ranking"}, r"kinds\['a'\]: expected one of 'regression', 'classification', found 'ranking'"),
        ({"kinds": ("regression",)}, "each of 2 tasks"),
        ({"initial_log_vars": (0.0, 0.0, 0.0)}, "initial_log_vars: expected one number or 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.UncertaintyWeighting(("a", "b"), **options)
