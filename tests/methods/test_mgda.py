"""MGDA: closed forms, normalisers, zero and absent gradients, and what its status says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from methods.gradients import assert_equal_vectors, magnitude, matrices
from oracles.mgda import mgda
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Step, build


def rows(*given: list[float]) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


def status(G: Tensor, **options: Any) -> list[float]:
    """(converged, stationary)"""
    said = build("mgda", **options).solve(gs.gram(G)).status
    assert said is not None
    return said[:2].tolist()


@given(G=matrices(tasks=(2, 2)))
def test_two_tasks_have_a_closed_form(G: Tensor) -> None:
    K = gs.gram(G)
    apart = float((G[0] - G[1]).square().sum())
    assume(apart > 0)
    gamma = min(1.0, max(0.0, float((G[1] - G[0]) @ G[1]) / apart))
    expected = torch.tensor([gamma, 1 - gamma], dtype=torch.float64)
    assert_equal_vectors(gs.weights(K, "mgda") @ G, expected @ G, magnitude(expected, G))


@given(G=matrices())
def test_every_task_gains_as_much_as_the_length(G: Tensor) -> None:
    """<g_i, out> >= |out|^2, with equality where w_i > 0."""
    w = gs.weights(gs.gram(G), "mgda")
    out = w @ G
    gains, square = G @ out, float(out @ out)
    rounding = 1e-12 * magnitude(w, G) * (G.norm(dim=1) + magnitude(w, G))
    assert bool((gains >= square - rounding).all())
    assert bool(((w * (gains - square)).abs() <= rounding).all())


@given(G=matrices(tasks=(2, 2)))
def test_two_unit_gradients_are_averaged(G: Tensor) -> None:
    assume(bool(G.any(dim=1).all()))
    units = G / G.norm(dim=1, keepdim=True)
    w = gs.weights(gs.gram(G), "mgda", gn="l2")
    assert_equal_vectors(w @ G, units.mean(0), 1.0)


@pytest.mark.parametrize("gn", ["none", "l2", "loss", "loss+"])
@given(data=st.data())
def test_the_normalised_hull(gn: str, data: st.DataObject) -> None:
    G = data.draw(matrices(tasks=(2, 5), scaled=False))
    assume(bool(G.any(dim=1).all()))
    losses = torch.tensor(data.draw(st.lists(st.floats(0.1, 10.0), min_size=len(G), max_size=len(G))), dtype=torch.float64)
    out = gs.aggregate(G, "mgda", gn=gn, losses=losses)
    assert isinstance(out, Tensor)
    scale = float((G.norm(dim=1) / (losses if gn == "loss" else 1)).max()) if gn in ("none", "loss") else 1 / float(losses.min())
    assert_equal_vectors(out, mgda(G, gn, losses), scale + 1, 1e-7)


def test_a_zero_gradient_blocks_unless_ignored_and_an_absent_one_is_left_out() -> None:
    g, h = [3.0, 1.0], [-1.0, 2.0]
    G = rows(g, [0, 0], h)
    pair = gs.weights(gs.gram(rows(g, h)), "mgda")
    for gn in ("none", "l2"):
        assert gs.weights(gs.gram(G), "mgda", gn=gn).tolist() == [0, 1, 0]
        assert status(G, gn=gn) == [1, 1]
    assert gs.weights(gs.gram(rows(g, [0, 0], [0, 0])), "mgda").tolist() == [0, 0.5, 0.5]
    assert gs.weights(gs.gram(torch.zeros(4, 2)), "mgda").tolist() == [0.25] * 4
    torch.testing.assert_close(gs.weights(gs.gram(G), "mgda", ignore_zero_rows=True)[[0, 2]], pair)
    assert gs.weights(gs.gram(torch.zeros(2, 2)), "mgda", ignore_zero_rows=True).tolist() == [0, 0]
    absent: Any = [G[0], None, G[2]]
    torch.testing.assert_close(gs.aggregate(absent, "mgda"), pair @ rows(g, h))
    for gn in ("loss", "loss+"):
        expected = gs.aggregate(rows(g, h), "mgda", gn=gn, losses=[2.0, 5.0])
        torch.testing.assert_close(gs.aggregate(absent, "mgda", gn=gn, losses=[2.0, None, 5.0]), expected)
        told = torch.tensor([2.0, 7.0, 5.0])
        torch.testing.assert_close(gs.aggregate(absent, "mgda", gn=gn, losses=told), expected)
        assert told.tolist() == [2, 7, 5]


def test_the_status_says_where_no_direction_improves_all() -> None:
    assert status(rows([1, 0], [-2, 0])) == [1, 1]
    torch.testing.assert_close(gs.weights(gs.gram(rows([1, 0], [-2, 0])), "mgda"), rows([2 / 3, 1 / 3])[0])
    assert status(rows([1, 0], [-2, 0], [0, 1])) == [1, 1]
    assert status(rows([1, 0], [-2, 1e-4])) == [1, 0]
    assert status(rows([1, 0, 0], [-0.5, 3**0.5 / 2, 0], [-0.5, -(3**0.5) / 2, 0])) == [1, 1]


@pytest.mark.parametrize("exponent", [-300, -60, 60, 300])
def test_scaling_by_a_power_of_two_changes_no_bit(exponent: int) -> None:
    G = torch.randn(5, 9, dtype=torch.float64)
    w = gs.weights(gs.gram(G), "mgda")
    assert torch.equal(gs.weights(gs.gram(G * 2.0**exponent), "mgda"), w)


@pytest.mark.parametrize("loss", [0.0, -1.0, torch.inf, torch.nan])
def test_a_loss_that_normalises_nothing_gives_nan(loss: float) -> None:
    w = gs.weights(torch.eye(2, dtype=torch.float64), "mgda", gn="loss", losses=[1.0, loss])
    assert w.isnan().all()


def test_errors() -> None:
    K = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="losses: method 'mgda' needs the tasks' losses"):
        gs.weights(K, "mgda", gn="loss")
    with pytest.raises(ValueError, match=r"gn: expected one of 'none', 'l2', 'loss', 'loss\+', found 'l1'"):
        gs.weights(K, "mgda", gn="l1")
    with pytest.raises(TypeError, match="ignore_zero_rows: expected True or False, found int"):
        gs.weights(K, "mgda", ignore_zero_rows=1)


def test_losses_are_asked_for_by_the_normaliser_alone() -> None:
    method = build("mgda", gn="loss")
    K = gs.gram(torch.randn(3, 5, dtype=torch.float64))
    w = method.weights(K, Step(losses=torch.ones(3, dtype=torch.float64)))
    torch.testing.assert_close(w, gs.weights(K, "mgda"))


@pytest.mark.parametrize("gn", ["loss", "loss+"])
def test_a_task_without_loss_is_absent(gn: str) -> None:
    K = gs.gram(torch.randn(3, 5, dtype=torch.float64))
    w = gs.weights(K, "mgda", gn=gn, losses=[1.0, None, 2.0])
    assert w[1] == 0
    pair = gs.weights(K[::2, ::2].contiguous(), "mgda", gn=gn, losses=[1.0, 2.0])
    torch.testing.assert_close(w[::2], pair)
