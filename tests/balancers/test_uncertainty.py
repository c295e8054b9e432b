"""Uncertainty weighting against its formulas, conformance values, and its own resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "conformance.json").read_text())["vectors"]
FORMS = {"kendall: sum exp(-s)L/2 + s/2": "kendall", "unscaled": "exponential", "liebel": "liebel"}


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["method"] == "uw"], ids=lambda v: v["id"])
def test_conformance(vector: dict[str, Any]) -> None:
    form, s = FORMS[vector["params"]["form"]], vector["params"]["s"]
    # The vectors give Liebel's sigma itself; ours is s = log sigma^2, hence ds/dsigma = 2 / sigma.
    log_vars = [2 * math.log(x) for x in s] if form == "liebel" else s
    balancer = gs.UncertaintyWeighting(len(s), form=form, initial_log_vars=log_vars).double()
    with torch.no_grad():
        balancer.log_vars.copy_(torch.tensor(log_vars, dtype=torch.float64))
    losses = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in vector["losses"]]
    value = balancer(losses)
    value.backward()
    assert value.item() == pytest.approx(vector["expected_value"], abs=vector["atol"])
    assert balancer.weights.tolist() == pytest.approx(vector["expected_w"], abs=vector["atol"])
    assert [x.grad.item() for x in losses] == pytest.approx(vector["expected_w"], abs=vector["atol"])  # type: ignore[union-attr]
    chain = [2 / x for x in s] if form == "liebel" else [1.0] * len(s)
    found = [g * c for g, c in zip(balancer.log_vars.grad.tolist(), chain, strict=True)]  # type: ignore[union-attr]
    assert found == pytest.approx(vector["expected_dparams"], rel=1e-9, abs=vector["atol"])


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
        ({"form": "gal"}, "form: expected 'kendall', 'exponential' or 'liebel', found 'gal'"),
        ({"kinds": "ranking"}, "kinds: expected 'regression' or 'classification'"),
        ({"kinds": ("regression",)}, "each of 2 tasks"),
        ({"initial_log_vars": (0.0, 0.0, 0.0)}, "initial_log_vars: expected one number or 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.UncertaintyWeighting(("a", "b"), **options)


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({"c": torch.tensor(1.0)}, ValueError, "losses: expected tasks among a, b, found c"),
        ([torch.tensor(1.0)], ValueError, r"losses: expected 2 \(a, b\), found 1"),
        ({"a": 1.0}, TypeError, "losses.'a'.: expected a scalar tensor, found float"),
        ({"a": torch.ones(3)}, TypeError, r"found shape \[3\]; reduce it"),
        ({}, ValueError, "expected the loss of at least one task, found none"),
        ([None, None], ValueError, "expected the loss of at least one task, found none"),
        (torch.tensor(1.0), TypeError, "losses: expected a dict by task or a sequence, found Tensor"),
    ],
)
def test_bad_losses(losses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.UncertaintyWeighting(("a", "b"))(losses)


@pytest.mark.parametrize("tasks", ["ab", (), 0, ("a", "a"), (1, 2)])
def test_bad_tasks(tasks: Any) -> None:
    with pytest.raises(ValueError, match="tasks: expected a positive number or different names"):
        gs.UncertaintyWeighting(tasks)
