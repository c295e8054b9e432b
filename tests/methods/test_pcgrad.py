"""PCGrad against its Algorithm 1, its closed form for two tasks, and the beliefs about it that do not hold."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.gradients import assert_equal_vectors, magnitude, matrices
from oracles.pcgrad import pcgrad, projected
from torch import Tensor

import gradsurgery as gs
from gradsurgery.ops import reference

_host = pytest.importorskip("gradsurgery._host", reason="gradsurgery is installed without compiled code")


def rows(*given: list[float]) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


def aggregate(G: Tensor, **options: Any) -> Tensor:
    """PCGrad, in ascending order unless told."""
    result = gs.aggregate(G, "pcgrad", **({"order": "ascending"} | options))
    assert isinstance(result, Tensor)
    return result


@st.composite
def orders(draw: st.DrawFn, tasks: int) -> Tensor:
    return torch.tensor([draw(st.permutations(range(tasks))) for _ in range(tasks)])


# --- the algorithm ----------------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_equals_the_explicit_projections(data: st.DataObject) -> None:
    G = data.draw(matrices())
    T = len(G)
    order = data.draw(orders(T))
    for chosen, include_self, reduction in itertools.product(("ascending", order), (False, True), ("sum", "mean")):
        expected = pcgrad(G, chosen, include_self, reduction)  # type: ignore[arg-type]
        w = gs.weights(gs.gram(G), "pcgrad", order=chosen, include_self=include_self, reduction=reduction)
        assert_equal_vectors(w @ G, expected, magnitude(w, G))
        actual = aggregate(G, order=chosen, include_self=include_self, reduction=reduction)
        assert_equal_vectors(actual, expected, magnitude(w, G))


@given(data=st.data())
def test_reference_host_and_compiled_agree(data: st.DataObject) -> None:
    G = data.draw(matrices(tasks=(1, 9)))
    K, T = G @ G.T, len(G)
    order = data.draw(orders(T))
    seed, step = data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.integers(0, 2**40))
    include_self, scale = data.draw(st.booleans()), data.draw(st.sampled_from([1.0, 1.0 / T]))
    for given_order, key in ((None, None), (order, None), (None, (seed, step))):
        compiled, plain = (
            function(K, given_order, None if key is None else torch.tensor(key), include_self, scale)
            for function in (torch.ops.gradsurgery.pcgrad_weights, reference.pcgrad_weights)
        )
        host = _host.pcgrad_weights(K.numpy(), None if given_order is None else given_order.numpy(), key, include_self, scale)
        assert torch.equal(compiled, torch.from_numpy(host))
        torch.testing.assert_close(plain, compiled, rtol=1e-9, atol=1e-9 * float(compiled.abs().max()))


def test_many_tasks() -> None:
    """Beyond the 32 tasks that the kernel keeps on the stack."""
    for T in (31, 32, 33, 70):
        G = torch.randn(T, 20, dtype=torch.float64)
        order = torch.stack([torch.randperm(T) for _ in range(T)])
        expected = pcgrad(G, order)
        torch.testing.assert_close(aggregate(G, order=order), expected)
        K = gs.gram(G)
        compiled, plain = (
            function(K, None, torch.tensor([1, 2])) for function in (torch.ops.gradsurgery.pcgrad_weights, reference.pcgrad_weights)
        )
        torch.testing.assert_close(plain, compiled)


@given(G=matrices(tasks=(2, 2)))
def test_two_tasks_have_a_closed_form(G: Tensor) -> None:
    K = gs.gram(G)
    k11, k12, k22 = float(K[0, 0]), float(K[0, 1]), float(K[1, 1])
    expected = [1 - k12 / k11, 1 - k12 / k22] if k12 < 0 else [1.0, 1.0]
    for options in ({"order": "ascending"}, {"seed": 1}, {"include_self": True, "seed": 2}):
        torch.testing.assert_close(gs.weights(K, "pcgrad", **options), torch.tensor(expected, dtype=torch.float64))


@given(G=matrices(tasks=(2, 2)))
def test_two_tasks_are_left_without_conflict_and_the_sum_descends(G: Tensor) -> None:
    out = aggregate(G)
    rounding = 1e-12 * (1 + magnitude(gs.weights(gs.gram(G), "pcgrad"), G))
    assert bool((G @ out >= -rounding * G.norm(dim=1)).all())
    assert float(G.sum(0) @ out) >= -rounding * float(G.norm())


def test_zero_gradients_neither_project_nor_are_projected_on() -> None:
    G = rows([1, 2], [0, 0], [-2, 1], [-1, -3])
    assert torch.equal(aggregate(G), aggregate(G[[0, 2, 3]]))
    assert torch.equal(aggregate(torch.zeros(3, 4)), torch.zeros(4))


def test_options_reach_the_kernel() -> None:
    G = rows([-4, -4], [2, -4], [2, 4])
    order = torch.tensor([[2, 1, 0]] * 3)
    outcomes = {
        tuple(aggregate(G, **options).tolist()) for options in ({}, {"include_self": True}, {"order": order}, {"reduction": "mean"})
    }
    assert len(outcomes) == 4
    torch.testing.assert_close(aggregate(G, reduction="mean") * 3, aggregate(G))
    torch.testing.assert_close(aggregate(G, order=order.int()), aggregate(G, order=order))
    absent = gs.aggregate([G[0], None, G[1], G[2]], "pcgrad", order="ascending", reduction="mean")
    torch.testing.assert_close(absent, aggregate(G, reduction="mean"))  # the mean is over the tasks present


# --- trouble ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gram_matrix_that_is_not_finite_gives_nan_and_keeps_the_step(bad: float, device: torch.device) -> None:
    K = torch.eye(3, dtype=torch.float64, device=device)
    K[2, 1] = bad
    for function in (torch.ops.gradsurgery.pcgrad_weights, reference.pcgrad_weights):
        key = torch.tensor([7, 8], device=device)
        assert function(K, None, key).isnan().all()
        assert function(K).isnan().all()
        assert key.tolist() == [7, 8]
    if device.type == "cpu":
        assert torch.from_numpy(_host.pcgrad_weights(K.numpy())).isnan().all()


@pytest.mark.parametrize("index", [3, -1, 2**40, -(2**63)])
def test_an_order_outside_the_tasks_gives_nan(index: int, device: torch.device) -> None:
    """On CUDA nobody waits to look at an order; out of range, it must neither crash nor look like an answer."""
    K = torch.eye(3, dtype=torch.float64, device=device)
    order = torch.arange(3, device=device).expand(3, 3).clone()
    order[2, 2] = index
    for function in (torch.ops.gradsurgery.pcgrad_weights, reference.pcgrad_weights):
        assert function(K, order).isnan().all()
    if device.type == "cpu":
        assert torch.from_numpy(_host.pcgrad_weights(K.numpy(), order.numpy())).isnan().all()


# --- beliefs that do not hold -----------------------------------------------------------------------------------------------------


def test_three_tasks_may_still_conflict_and_the_sum_may_rise() -> None:
    """The combined gradient is exactly opposed to the sum's: a step along it raises the total loss and two of the three."""
    G = rows([2, -3], [4, 3], [-3, 0])
    out = aggregate(G)
    torch.testing.assert_close(out, pcgrad(G))
    assert float(out[0]) == pytest.approx(-0.0831, abs=5e-5)
    assert float(out[1]) == pytest.approx(0, abs=1e-12)
    assert torch.equal(G.sum(0), torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert (gs.gram(G) @ gs.weights(gs.gram(G), "pcgrad", order="ascending") < -0.1).tolist() == [True, True, False]


def test_a_projected_gradient_may_conflict_with_its_own_task() -> None:
    """Why it matters whether a task also meets itself."""
    G = rows([-4, -4], [2, -4], [2, 4])
    assert float(projected(G)[2] @ G[2]) == pytest.approx(-1.6)
    torch.testing.assert_close(aggregate(G), rows([1.2, -1.0])[0])
    torch.testing.assert_close(aggregate(G, include_self=True), rows([1.36, -0.68])[0])
    assert float(projected(G, include_self=True)[2] @ G[2]) == pytest.approx(0, abs=1e-12)


def test_the_order_matters_from_three_tasks_on() -> None:
    G = rows([-4, -4], [2, -4], [2, 4])
    swapped = aggregate(G[[1, 0, 2]])
    assert not torch.allclose(swapped, aggregate(G))
    every = [torch.tensor(o) for o in itertools.product(itertools.permutations(range(3)), repeat=3)]
    permutation = [1, 0, 2]
    distribution, permuted = (
        sorted(tuple(round(x, 9) for x in aggregate(g, order=o).tolist()) for o in every) for g in (G, G[permutation])
    )
    assert distribution == permuted, "the distribution over random orders does not depend on how tasks are numbered"
    assert len(set(distribution)) > 1


def test_surgery_layer_by_layer_is_not_surgery_on_the_whole() -> None:
    first, second = rows([1, 0], [-1, 1]), rows([2, 0], [3, 0])
    whole = aggregate(torch.cat([first, second], dim=1))
    layers = torch.cat([aggregate(first), aggregate(second)])
    assert torch.equal(whole, rows([0, 1, 5, 0])[0])  # 1*(-1) + 2*3 > 0: no conflict
    assert not torch.allclose(layers, whole)


def test_surgery_of_an_average_is_not_the_average_of_surgeries() -> None:
    one, other = rows([1, 0], [-1, 1]), rows([1, 0], [3, 1])
    assert not torch.allclose(aggregate((one + other) / 2), (aggregate(one) + aggregate(other)) / 2)


def test_surgery_does_not_commute_with_a_preconditioner_or_weight_decay() -> None:
    G = rows([1, 0], [-1, 1])
    diagonal, parameters = torch.tensor([1.0, 10.0], dtype=torch.float64), torch.tensor([5.0, 0.0], dtype=torch.float64)
    assert not torch.allclose(aggregate(G * diagonal), aggregate(G) * diagonal)
    assert not torch.allclose(aggregate(G + parameters), aggregate(G) + 2 * parameters)
