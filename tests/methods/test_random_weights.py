"""Random and constant weights: the draws, who takes part in them, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from oracles.random_weights import normal, weights
from torch import Tensor

import gradsurgery as gs
from gradsurgery import ops

SEEDS = (0, 7, -1, 2**63 - 1)


def drawn(tasks: int, seed: int, step: int = 0, groups: int = 0, given: Tensor | None = None) -> Tensor:
    """The operator's weights. [T] or [G, T]"""
    K = torch.eye(tasks, dtype=torch.float64).expand(*([groups] if groups else []), tasks, tasks).contiguous()
    key = torch.tensor([seed, step])
    w, report = ops.solve(K, "random", [], given, None, None, key)
    assert key.tolist() == [seed, step + 1]
    assert bool((report[..., 0] == 1).all())
    return w


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_are_the_published_generator_and_transform(seed: int) -> None:
    for step in (0, 5, 2**40):
        for tasks in (1, 2, 7, 40):
            expected = torch.tensor(weights(list(range(tasks)), seed, step), dtype=torch.float64)
            torch.testing.assert_close(drawn(tasks, seed, step), expected, rtol=1e-13, atol=0)
        grouped = drawn(3, seed, step, groups=4)
        expected = torch.tensor([weights([0, 1, 2], seed, step, group) for group in range(4)], dtype=torch.float64)
        torch.testing.assert_close(grouped, expected, rtol=1e-13, atol=0)


def test_who_takes_part_draws_the_same_whoever_else_does() -> None:
    w = drawn(5, seed=3, given=torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(w[[0, 2, 4]], torch.tensor(weights([0, 2, 4], 3), dtype=torch.float64), rtol=1e-13, atol=0)
    assert w[[1, 3]].tolist() == [0.0, 0.0]
    G = torch.randn(3, 6, dtype=torch.float64)
    out = gs.aggregate([G[0], None, G[1], None, G[2]], "random", seed=3)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, w[[0, 2, 4]] @ G)


def test_draws_are_normal() -> None:
    """Moments and tails of 20,000 draws, and no correlation between tasks or steps."""
    z = torch.tensor([[normal(11, step, 0, task) for task in range(4)] for step in range(5000)], dtype=torch.float64)
    # w = softmax(z): differences of logarithms are those of z, from the operator that draws
    w = torch.stack([drawn(4, 11, step) for step in range(200)])
    torch.testing.assert_close(w.log().diff(dim=1), z[:200].diff(dim=1), rtol=1e-9, atol=1e-11)
    sigma = 1 / math.sqrt(z.numel())
    assert abs(float(z.mean())) < 4 * sigma
    assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2) * sigma
    assert abs(float((z.abs() > 2).double().mean()) - 0.0455) < 4 * math.sqrt(0.0455) * sigma
    correlation = torch.corrcoef(z.T)
    assert float((correlation - torch.eye(4)).abs().max()) < 4 / math.sqrt(5000)
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 * sigma


def test_an_aggregator_draws_anew_and_resumes() -> None:
    def run(surgery: gs.GradientAggregator, steps: int) -> list[list[float]]:
        result = []
        for _ in range(steps):
            z = torch.zeros(3, requires_grad=True)
            a, b = surgery.split(z * 1, 2)
            (a.sum() - 2 * b.sum()).backward()
            assert surgery.weights is not None
            result.append(surgery.weights.tolist())
        return result

    whole = run(gs.GradientAggregator("random", seed=5), 6)
    expected = torch.tensor([weights([0, 1], 5, step) for step in range(6)])
    torch.testing.assert_close(torch.tensor(whole), expected, rtol=1e-6, atol=0)
    first = gs.GradientAggregator("random", seed=5)
    assert run(first, 3) == whole[:3]
    second = gs.GradientAggregator("random", seed=99)
    second.load_state_dict(first.state_dict())
    assert run(second, 3) == whole[3:]


def test_without_memory_or_seed_the_default_generator_draws() -> None:
    K = torch.eye(3, dtype=torch.float64)
    torch.manual_seed(1)
    first, second = gs.weights(K, "random"), gs.weights(K, "random")
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(gs.weights(K, "random"), first)
    assert torch.equal(gs.weights(K, "random", seed=4), gs.weights(K, "random", seed=4))


def test_without_a_key_there_is_no_draw() -> None:
    w, _ = ops.solve(torch.eye(3, dtype=torch.float64), "random", [])
    assert w.isnan().all()


@pytest.mark.parametrize("seed", [1.5, "a", True])
def test_a_seed_that_is_no_integer_is_refused(seed: object) -> None:
    with pytest.raises(TypeError, match="seed: expected an integer or None, found"):
        gs.weights(torch.eye(2, dtype=torch.float64), "random", seed=seed)


# --- constant ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[0.5, -2.0], (0.5, -2.0), torch.tensor([0.5, -2.0]), torch.tensor([0.5, -2.0]).double()])
def test_constant_weights_are_those_given(given: object) -> None:
    G = torch.randn(2, 9)
    w = gs.weights(gs.gram(G), "constant", weights=given)
    assert (w.dtype, w.tolist()) == (torch.float64, [0.5, -2.0])
    grouped = gs.weights(torch.eye(2, dtype=torch.float64).expand(3, 2, 2), "constant", weights=given)
    assert grouped.tolist() == [[0.5, -2.0]] * 3
    torch.testing.assert_close(gs.aggregate(G, "constant", weights=given), 0.5 * G[0] - 2 * G[1])
    surgery = gs.GradientAggregator("constant", weights=given)
    z = torch.zeros(9, requires_grad=True)
    a, b = surgery.split(z * 1, 2)
    ((a * G[0]).sum() + (b * G[1]).sum()).backward()
    torch.testing.assert_close(z.grad, 0.5 * G[0] - 2 * G[1])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1.0, 2.0, 3.0], ValueError, "weights: expected 2 numbers, one a task, found 3"),
        ([[1.0, 2.0]], TypeError, r"weights\[0\]: expected a number, found list"),
        (torch.ones(1, 2), ValueError, r"weights: expected one number a task, found a tensor of shape \[1, 2\]"),
        ([1.0, math.inf], ValueError, r"weights\[1\]: expected a finite number, found inf"),
        ("12", TypeError, "weights: expected a tensor, tuple or list with one number a task, found str"),
        (2.0, TypeError, "weights: expected a tensor, tuple or list with one number a task, found float"),
    ],
)
def test_constant_weights_that_do_not_fit_are_refused(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(torch.eye(2, dtype=torch.float64), "constant", weights=given)
