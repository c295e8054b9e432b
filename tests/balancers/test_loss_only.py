"""Geometric mean, smooth Tchebycheff, IMTL-L, analytic uncertainty, constant and random weights against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracles import random_weights
from torch import Tensor

import gradsurgery as gs


def leaves(*values: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]


def gradients(losses: list[Tensor]) -> list[float]:
    return [loss.grad.item() for loss in losses]  # type: ignore[union-attr]


# ---- geometric mean


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_geometric_mean_of_many_small_or_large_losses(size: float) -> None:
    """Their product, 1e-960 or 1e960, is no number of any type."""
    losses = leaves(*[size] * 32)
    value = gs.GeometricMean(32)(losses)
    value.backward()
    assert value.item() == pytest.approx(size, rel=1e-6)
    assert gradients(losses) == pytest.approx([1 / 32] * 32, rel=1e-6)


def test_the_geometric_mean_of_the_tasks_present() -> None:
    value = gs.GeometricMean(("a", "b", "c"))({"a": torch.tensor(2.0), "c": torch.tensor(8.0)})
    assert value.item() == pytest.approx(4.0)


def test_the_geometric_mean_of_losses_that_are_not_positive() -> None:
    negative = leaves(2.0, -1.0)
    value = gs.GeometricMean(2)(negative)
    value.backward()
    assert value.isnan()
    assert all(map(math.isnan, gradients(negative)))
    zero = leaves(2.0, 0.0)
    value = gs.GeometricMean(2)(zero)
    value.backward()
    assert value.item() == 0.0
    assert math.isnan(gradients(zero)[1])


# ---- smooth Tchebycheff


def test_stch_is_a_smooth_maximum() -> None:
    losses = [torch.tensor(x, dtype=torch.float64) for x in (3.0, 1.0, 2.9)]
    for mu in (1.0, 0.1, 1e-3, 1e-300):
        value = gs.SmoothTchebycheff(3, mu=mu, weights=1.0, reference=0.5)(losses).item()
        assert 2.5 <= value <= 2.5 + mu * math.log(3) + 1e-12


def test_stch_options_by_name_and_absent_tasks() -> None:
    balancer = gs.SmoothTchebycheff(
        ("a", "b", "c"), mu=0.5, weights={"c": 3.0, "a": 1.0, "b": 2.0}, reference=torch.tensor([0.1, 0, 0.2])
    )
    value = balancer({"c": torch.tensor(0.6, dtype=torch.float64), "a": torch.tensor(0.9, dtype=torch.float64)})
    expected = 0.5 * math.log(math.exp(1 * 0.8 / 0.5) + math.exp(3 * 0.4 / 0.5))
    assert value.item() == pytest.approx(expected, rel=1e-7)
    assert balancer.weights[1] == 0
    assert not {"_preferences", "_reference"} & set(balancer.state_dict()), "options are no state"


def test_stch_warm_up_and_nadir() -> None:
    """sum log L for two epochs; then log(L / nadir), with the nadir of the second, by the formula of the authors' code."""
    balancer = gs.SmoothTchebycheff(3, mu=0.7, weights=1.0, warmup=2)
    epochs = [[(9.0, 9.0, 4.0)], [(1.0, 20.0, None), (3.0, 40.0, None)]]
    for epoch in epochs:
        for values in epoch:
            losses = [None if v is None else torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
            value = balancer(losses)
            value.backward()
            assert value.item() == pytest.approx(sum(math.log(v) for v in values if v is not None))
            assert [x.grad.item() for x in losses if x is not None] == pytest.approx([1 / v for v in values if v is not None])  # type: ignore[union-attr]
        balancer.end_epoch()
    nadir = torch.tensor([2.0, 30.0, 4.0], dtype=torch.float64)
    resumed = gs.SmoothTchebycheff(3, mu=0.7, weights=1.0, warmup=2)
    resumed.load_state_dict(balancer.state_dict())
    for each in (balancer, resumed):
        each.end_epoch()  # of no account after the warm-up
        L = torch.tensor([1.5, 33.0, 1.0], dtype=torch.float64, requires_grad=True)
        expected = 0.7 * (torch.log(L / nadir) / 0.7).exp().sum().log()
        (gradient,) = torch.autograd.grad(expected, L)
        losses = leaves(1.5, 33.0, 1.0, dtype=torch.float64)
        value = each(losses)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        assert gradients(losses) == pytest.approx(gradient.tolist(), rel=1e-12)
        torch.testing.assert_close(each.weights, gradient)


def test_stch_after_warm_up_does_not_depend_on_the_units() -> None:
    shares = []
    for unit in (1.0, 2.0**40):
        balancer = gs.SmoothTchebycheff(2, warmup=1)
        balancer([torch.tensor(unit * 3.0), torch.tensor(5.0)])
        balancer.end_epoch()
        balancer([torch.tensor(unit * 2.0), torch.tensor(4.0)])
        shares.append(balancer.weights * torch.tensor([unit, 1.0]))
    torch.testing.assert_close(*shares)


def test_stch_says_nan_of_a_task_that_the_warm_up_did_not_see() -> None:
    balancer = gs.SmoothTchebycheff(2, warmup=1)
    balancer([torch.tensor(3.0), None])
    balancer.end_epoch()
    assert balancer([torch.tensor(3.0), None]).isfinite()
    assert balancer([torch.tensor(3.0), torch.tensor(1.0)]).isnan()


def test_stch_reaches_a_point_of_a_concave_front_that_no_weighted_sum_does() -> None:
    """L = (cos p, sin p), a quarter of a circle that bulges away from 0: a weighted sum is least at one of its ends."""
    ends = {}
    for name, balancer in {"sum": gs.ConstantWeights(2), "stch": gs.SmoothTchebycheff(2, mu=0.01)}.items():
        p = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([p], lr=0.02)
        for _ in range(500):
            optimizer.zero_grad()
            balancer([p.cos(), p.sin()]).backward()
            optimizer.step()
            with torch.no_grad():
                p.clamp_(0, math.pi / 2)
        ends[name] = p.item()
    assert ends["sum"] == 0.0
    assert ends["stch"] == pytest.approx(math.pi / 4, abs=0.05)


# ---- IMTL-L


def test_imtll_formula_and_optimum() -> None:
    balancer = gs.IMTLLoss(("a", "b"), initial_log_scales={"b": -1.0, "a": 0.5})
    losses = leaves(2.0, 30.0)
    value = balancer(losses)
    value.backward()
    assert value.item() == pytest.approx(math.exp(0.5) * 2 - 0.5 + math.exp(-1) * 30 + 1, rel=1e-6)
    assert gradients(losses) == pytest.approx([math.exp(0.5), math.exp(-1)], rel=1e-6)
    assert balancer.log_scales.grad is not None
    assert balancer.log_scales.grad.tolist() == pytest.approx([math.exp(0.5) * 2 - 1, math.exp(-1) * 30 - 1], rel=1e-6)
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        balancer([torch.tensor(2.0), torch.tensor(30.0)]).backward()
        optimizer.step()
    assert (balancer.weights * torch.tensor([2.0, 30.0])).tolist() == pytest.approx([1.0, 1.0], rel=1e-3)


def test_imtll_leaves_the_scale_of_an_absent_task_alone() -> None:
    balancer = gs.IMTLLoss(2)
    balancer([None, torch.tensor(3.0)]).backward()
    assert balancer.log_scales.grad is not None
    assert balancer.log_scales.grad.tolist() == pytest.approx([0.0, 2.0])


# ---- analytic uncertainty


def test_uwso_formula() -> None:
    losses = leaves(0.5, 2.0, 0.25, dtype=torch.float64)
    balancer = gs.SoftmaxUncertainty(3, temp=4.0)
    value = balancer([losses[0], None, losses[2]])
    value.backward()
    raw = [math.exp(1 / (0.5 * 4)), math.exp(1 / (0.25 * 4))]
    expected = [x / sum(raw) for x in raw]
    assert [losses[0].grad.item(), losses[2].grad.item()] == pytest.approx(expected, rel=1e-12)  # type: ignore[union-attr]
    assert value.item() == pytest.approx(0.5 * expected[0] + 0.25 * expected[1], rel=1e-12)
    assert balancer.weights.tolist() == pytest.approx([expected[0], 0.0, expected[1]])


# ---- constant weights


def test_constant_weights_are_the_weighted_sum() -> None:
    balancer = gs.ConstantWeights(("a", "b", "c"), weights={"a": 1.0, "c": 3.0, "b": 2.0})
    assert balancer.weights.tolist() == [1.0, 2.0, 3.0]
    assert balancer([torch.tensor(x) for x in (1.0, 10.0, 100.0)]).item() == 321.0
    assert balancer({"c": torch.tensor(1.0)}).item() == 3.0
    assert gs.ConstantWeights(2)([torch.tensor(2.0), torch.tensor(3.0)]).item() == 5.0


# ---- random weights


def test_rlw_draws_standard_normal_logits() -> None:
    balancer = gs.RandomLossWeighting(3)
    losses = [torch.ones(())] * 3
    drawn = []
    for _ in range(4000):
        balancer(losses)
        drawn.append(balancer.weights)
    w = torch.stack(drawn)
    # Differences of log-weights are those of two independent normals: mean 0, variance 2, correlation 1/2.
    differences = (w[:, :2] / w[:, 2:]).log()
    assert differences.mean(0).abs().max() < 5 * math.sqrt(2 / 4000)
    torch.testing.assert_close(differences.T.cov(), torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), rtol=0, atol=0.25)
    assert abs((w.mean(0) - 1 / 3).abs().max()) < 0.02
    for step in (0, 17):
        assert w[step].tolist() == pytest.approx(random_weights.weights([0, 1, 2], 0, step), rel=1e-12)


def test_rlw_draws_by_seed_and_step_whatever_is_present() -> None:
    whole, part, other = gs.RandomLossWeighting(3, seed=5), gs.RandomLossWeighting(3, seed=5), gs.RandomLossWeighting(3, seed=6)
    one = torch.ones(())
    for _ in range(3):
        whole([one] * 3)
        part([one, None, one])
        other([one] * 3)
        w = whole.weights
        w[1] = 0
        torch.testing.assert_close(part.weights, w / w.sum())
        assert not torch.allclose(other.weights, whole.weights)


def test_rlw_draws_what_method_random_draws() -> None:
    balancer, surgery = gs.RandomLossWeighting(3, seed=11), gs.GradientAggregator("random", seed=11)
    for _ in range(3):
        balancer([torch.ones(())] * 3)
        surgery.aggregate(torch.eye(3))
        assert torch.equal(balancer.weights, surgery.weights)  # type: ignore[arg-type]
    restored = gs.RandomLossWeighting(3)
    restored.load_state_dict(balancer.state_dict())
    for each in (restored, balancer):
        each([torch.ones(())] * 3)
    assert torch.equal(restored.weights, balancer.weights)


def test_rlw_takes_the_expectation_in_eval_mode() -> None:
    balancer = gs.RandomLossWeighting(4).eval()
    assert balancer([torch.tensor(float(x)) for x in range(4)]).item() == 1.5


# ---- options


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (gs.SmoothTchebycheff, {"mu": 0.0}, ValueError, "mu: expected a finite number > 0, found 0.0"),
        (gs.SmoothTchebycheff, {"warmup": 0}, ValueError, "warmup: expected an integer >= 1, found 0"),
        (gs.SmoothTchebycheff, {"mu": math.nan}, ValueError, "mu: expected a finite number > 0, found nan"),
        (gs.SmoothTchebycheff, {"weights": (1.0, -1.0)}, ValueError, r"weights\['b'\]: expected a finite number >= 0, found -1.0"),
        (
            gs.SmoothTchebycheff,
            {"reference": {"a": 1.0}},
            ValueError,
            r"reference: expected one number or 2 \(a, b\), found {'a': 1.0}",
        ),
        (gs.ConstantWeights, {"weights": (1.0,)}, ValueError, r"weights: expected one number or 2 \(a, b\), found \(1.0,\)"),
        (gs.ConstantWeights, {"weights": torch.ones(2, 2)}, ValueError, "weights: expected one number or 2"),
        (gs.IMTLLoss, {"initial_log_scales": (0.0,) * 3}, ValueError, "initial_log_scales: expected one number or 2"),
        (gs.SoftmaxUncertainty, {"temp": -1}, ValueError, "temp: expected a finite number > 0, found -1"),
        (gs.RandomLossWeighting, {"seed": 2**63}, ValueError, "seed: expected an integer of 64 bits, found"),
        (gs.RandomLossWeighting, {"seed": 1.0}, TypeError, "seed: expected an integer or None, found float"),
        (gs.DynamicWeightAverage, {"temp": 0}, ValueError, "temp: expected a finite number > 0, found 0"),
        (gs.DynamicWeightAverage, {"window": 0}, ValueError, "window: expected an integer >= 1, found 0"),
        (gs.FAMO, {"lr": -1.0}, ValueError, "lr: expected a finite number >= 0, found -1.0"),
        (gs.FAMO, {"weight_decay": math.nan}, ValueError, "weight_decay: expected a finite number >= 0, found nan"),
        (gs.FAMO, {"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0"),
        (gs.FAMO, {"min_losses": (0.0,)}, ValueError, "min_losses: expected one number or 2"),
    ],
)
def test_bad_options(cls: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cls(("a", "b"), **options)
