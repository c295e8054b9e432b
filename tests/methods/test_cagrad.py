"""CAGrad: its invariant, its three lengths, stationary points and zero gradients, and the beliefs about it that do not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.gradients import assert_equal_vectors, magnitude, matrices
from oracles.cagrad import cagrad
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import build


def rows(*given: list[float]) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


def stationary(G: Tensor, **options: Any) -> bool:
    said = build("cagrad", **options).solve(gs.gram(G)).status
    assert said is not None
    assert said[0] == 1
    return bool(said[1])


@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 1.0, 3.0])
@given(G=matrices(tasks=(2, 5), scaled=False))
def test_equals_the_search_on_full_vectors(c: float, G: Tensor) -> None:
    w = gs.weights(gs.gram(G), "cagrad", c=c)
    expected = cagrad(G, c)
    least, wanted = float((G @ (w @ G)).min()), float((G @ expected).min())
    scale = magnitude(w, G) * float(G.norm(dim=1).max())
    if stationary(G, c=c):
        assert wanted <= 1e-7 * scale, "nothing gives every task more than zero"
        return
    assert least >= wanted - 1e-7 * scale, "as good for the worst task"
    if abs(least) > 1e-6 * scale:
        assert_equal_vectors(w @ G, expected, magnitude(w, G), 1e-3)  # the optimum is flat


@given(data=st.data())
def test_it_goes_as_far_from_the_mean_as_it_may(data: st.DataObject) -> None:
    """|out - g_0| = c |g_0|, but where nothing better than the mean is to be had."""
    G, c = data.draw(matrices()), data.draw(st.floats(0.0, 4.0))
    w = gs.weights(gs.gram(G), "cagrad", c=c)
    mean = G.mean(0)
    distance = float((w @ G - mean).norm())
    if stationary(G, c=c):
        assert torch.equal(w, torch.full_like(w, 1 / len(G)))
    else:
        rounding = 1e-7 * (magnitude(w, G) + c * magnitude(torch.full_like(w, 1 / len(G)), G))
        assert distance == pytest.approx(c * float(mean.norm()), abs=rounding, rel=1e-9)


@given(data=st.data())
def test_three_lengths_of_one_direction(data: st.DataObject) -> None:
    G, c = data.draw(matrices()), data.draw(st.floats(0.0, 4.0))
    K = gs.gram(G)
    w = gs.weights(K, "cagrad", c=c, rescale=0)
    torch.testing.assert_close(gs.weights(K, "cagrad", c=c, rescale=1) * (1 + c * c), w)
    torch.testing.assert_close(gs.weights(K, "cagrad", c=c, rescale=2) * (1 + c), w)


@given(G=matrices())
def test_without_distance_it_is_the_mean(G: Tensor) -> None:
    assert torch.equal(gs.weights(gs.gram(G), "cagrad", c=0.0), torch.full((len(G),), 1 / len(G), dtype=torch.float64))


def test_one_task_is_lengthened() -> None:
    G = rows([3, 4])
    torch.testing.assert_close(gs.weights(gs.gram(G), "cagrad", c=0.5), rows([1.5])[0])
    torch.testing.assert_close(gs.weights(gs.gram(G), "cagrad", c=0.5, rescale=2), rows([1.0])[0])


@given(data=st.data())
def test_a_large_c_conflicts_with_no_task(data: st.DataObject) -> None:
    G, c = data.draw(matrices()), data.draw(st.floats(1.0, 4.0))
    if not stationary(G, c=c):
        w = gs.weights(gs.gram(G), "cagrad", c=c)
        assert bool((gs.gram(G) @ w >= -1e-9 * G.norm(dim=1) * magnitude(w, G)).all())


def test_a_small_c_may_conflict_with_two_tasks_already() -> None:
    G = rows([1, 0], [-10, 1])
    assert float((gs.gram(G) @ gs.weights(gs.gram(G), "cagrad", c=0.4)).min()) < -0.1


def test_where_the_best_combination_vanishes_the_mean_stays() -> None:
    opposed = rows([1, 0], [-2, 0])
    assert stationary(opposed, c=1.5)
    assert gs.weights(gs.gram(opposed), "cagrad", c=1.5).tolist() == [0.5, 0.5]
    assert not stationary(opposed, c=0.5), "with a short reach the first task alone is served"
    torch.testing.assert_close(gs.weights(gs.gram(opposed), "cagrad", c=0.5), rows([0.75, 0.5])[0])
    assert stationary(rows([1, 0], [-1, 0]), c=0.5)
    assert stationary(torch.zeros(3, 2, dtype=torch.float64))


def test_a_zero_gradient_gets_nothing_and_bounds_what_the_worst_gets() -> None:
    agreeing = rows([1, 0], [0, 1], [0, 0])
    assert stationary(agreeing), "no d gives the zero gradient more than 0, and the mean gives that to all"
    assert torch.equal(gs.weights(gs.gram(agreeing), "cagrad"), torch.full((3,), 1 / 3, dtype=torch.float64))
    hard = rows([1, 0], [-3, 0.1], [0, 0])
    assert not stationary(hard, c=0.2), "some task still loses"
    w = gs.weights(gs.gram(hard), "cagrad", c=0.2)
    torch.testing.assert_close(w @ hard, cagrad(hard, 0.2), rtol=1e-6, atol=1e-9)
    absent = gs.aggregate([hard[0], None, hard[1]], "cagrad", c=0.2)
    torch.testing.assert_close(absent, gs.aggregate(hard[:2], "cagrad", c=0.2))


@pytest.mark.parametrize("exponent", [-300, -60, 60, 300])
def test_scaling_by_a_power_of_two_changes_no_bit(exponent: int) -> None:
    G = torch.randn(5, 9, dtype=torch.float64)
    assert torch.equal(gs.weights(gs.gram(G * 2.0**exponent), "cagrad"), gs.weights(gs.gram(G), "cagrad"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"c": -0.1}, ValueError, r"c: expected a finite number >= 0 and <= 1e\+150, found -0.1"),
        ({"c": torch.inf}, ValueError, r"c: expected a finite number >= 0 and <= 1e\+150, found inf"),
        ({"c": "x"}, TypeError, "c: expected a number, found str"),
        ({"rescale": 3}, ValueError, "rescale: expected one of 0, 1, 2, found 3"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(torch.eye(2, dtype=torch.float64), "cagrad", **options)
