"""UPGrad and DualProj: identities, preferences, the ridge that others add, and the beliefs about them that do not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.gradients import assert_equal_vectors, magnitude, matrices
from oracles.dual_cone import dualproj, upgrad
from torch import Tensor

import gradsurgery as gs

METHODS = ["upgrad", "dualproj"]
ORACLES = {"upgrad": upgrad, "dualproj": dualproj}


def rows(*given: list[float]) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_equals_the_projections_of_full_vectors(method: str, data: st.DataObject) -> None:
    G = data.draw(matrices())
    pref = data.draw(st.lists(st.floats(0.0, 4.0), min_size=len(G), max_size=len(G)))
    for preference in (None, pref):
        w = gs.weights(gs.gram(G), method, pref=preference)
        assert_equal_vectors(w @ G, ORACLES[method](G, preference), magnitude(w, G), 1e-8)


@given(G=matrices(tasks=(2, 2)))
def test_two_tasks_give_pcgrad(G: Tensor) -> None:
    K = gs.gram(G)
    torch.testing.assert_close(2 * gs.weights(K, "upgrad"), gs.weights(K, "pcgrad", order="ascending"))
    torch.testing.assert_close(gs.weights(K, "upgrad", pref=(1.0, 1.0)), gs.weights(K, "pcgrad", order="ascending"))


@given(data=st.data())
def test_upgrad_adds_up_over_preferences_and_dualproj_does_not_conflict(data: st.DataObject) -> None:
    G = data.draw(matrices())
    T = len(G)
    K = gs.gram(G)
    pref = data.draw(st.lists(st.floats(0.0, 4.0), min_size=T, max_size=T))
    units = torch.eye(T).tolist()
    parts = [p * gs.weights(K, "upgrad", pref=unit) for p, unit in zip(pref, units, strict=True)]
    torch.testing.assert_close(gs.weights(K, "upgrad", pref=pref), torch.stack(parts).sum(0))
    w = gs.weights(K, "dualproj", pref=pref)
    assert bool((K @ w >= -1e-12 * K.diagonal().sqrt() * magnitude(w, G)).all())


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_absent_gradients(method: str) -> None:
    """Neither constrains; a zero one counts for the mean."""
    G = torch.randn(3, 5, dtype=torch.float64)
    expected = gs.aggregate(G, method)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(gs.aggregate([G[0], None, G[1], G[2]], method), expected)
    torch.testing.assert_close(gs.aggregate(torch.cat([G, torch.zeros(1, 5)]), method), 0.75 * expected)
    with_pref = gs.aggregate([G[0], None, G[1], G[2]], method, pref=[1.0, 5.0, 2.0, 3.0])
    torch.testing.assert_close(with_pref, gs.aggregate(G, method, pref=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize("method", METHODS)
def test_a_preference_may_be_a_tensor(method: str) -> None:
    K = gs.gram(torch.randn(3, 5))
    expected = gs.weights(K, method, pref=(1.0, 0.5, 2.0))
    assert torch.equal(gs.weights(K, method, pref=torch.tensor([1.0, 0.5, 2.0])), expected)
    assert torch.equal(gs.weights(K, method, pref=[1, 0.5, 2]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_ridge_of_others_conflicts_and_the_exact_projection_does_not(method: str) -> None:
    G = rows([1, 0], [-3, 0.03])
    K = gs.gram(G)

    def worst_cosine(**options: float) -> float:
        out = gs.weights(K, method, **options) @ G
        return float((G @ out / G.norm(dim=1) / out.norm()).min())

    assert worst_cosine() > -1e-9
    assert worst_cosine(reg_eps=1e-4) < -0.05
    assert torch.equal(gs.weights(K * 1e-12, method, norm_eps=1e-4), torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pref": [1.0]}, ValueError, "pref: expected 2 numbers, one a task, found 1"),
        ({"pref": []}, ValueError, "pref: expected one number a task, found none"),
        ({"pref": [1.0, -1.0]}, ValueError, r"pref\[1\]: expected a finite number >= 0, found -1.0"),
        ({"pref": [1.0, torch.inf]}, ValueError, r"pref\[1\]: expected a finite number >= 0, found inf"),
        ({"pref": [1.0, "x"]}, TypeError, r"pref\[1\]: expected a number, found str"),
        ({"pref": [1.0, True]}, TypeError, r"pref\[1\]: expected a number, found bool"),
        ({"pref": "ab"}, TypeError, "pref: expected a tensor, tuple or list with one number a task, found str"),
        ({"pref": torch.ones(2, 1)}, ValueError, r"pref: expected one number a task, found a tensor of shape \[2, 1\]"),
        ({"reg_eps": -1.0}, ValueError, "reg_eps: expected a finite number >= 0, found -1.0"),
        ({"norm_eps": torch.nan}, ValueError, "norm_eps: expected a finite number >= 0, found nan"),
    ],
)
def test_errors(method: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.weights(torch.eye(2, dtype=torch.float64), method, **options)


def test_not_every_task_gains_from_dualproj_what_it_gains_from_upgrad() -> None:
    """They agree with each other where the mean is the only thing to project, and in general do not."""
    G = rows([4, 1], [-1, 1], [1, -3])
    assert not torch.allclose(gs.weights(gs.gram(G), "upgrad"), gs.weights(gs.gram(G), "dualproj"))
