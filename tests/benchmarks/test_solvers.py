"""Solvers are checked before they are timed: by certificates that accept the right weights and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from certificates import CERTIFICATES
from rivals import RIVALS, Rival
from solvers import check_ours, check_rival, problems, solver_rows
from timing import Effort
from torch import Tensor

import gradsurgery as gs

CPU = torch.device("cpu")
TINY = Effort(sample_s=0.0, budget_s=0.0, rounds=(2, 2))
SQUARE = torch.tensor([[2.0, -1.0], [-1.0, 5.0]], dtype=torch.float64)  # K of two tasks in conflict, solved by hand below

_length = math.sqrt((10 - 1) / 9)  # of the shortest gradient: det K / (K11 + K22 - 2 K12)
_cosine = -1 / math.sqrt(10)
_equal = [math.sqrt(5), math.sqrt(2)]  # weights for which each task counts alike
_bargain = [1 / math.sqrt(2 * (1 + _cosine)), 1 / math.sqrt(5 * (1 + _cosine))]

# Closed forms for two tasks.
BY_HAND: Mapping[str, tuple[dict[str, Any], list[float]]] = {
    "mgda": ({}, [6 / 9, 3 / 9]),
    "fairgrad": ({"alpha": 1.0}, _bargain),
    "nashmtl": ({}, [x / math.sqrt(2) for x in _bargain]),
    "imtlg": ({}, [x / sum(_equal) for x in _equal]),
    "dualproj": ({}, [0.5, 0.5]),
    "upgrad": ({}, [(1 + 1 / 2) / 2, (1 + 1 / 5) / 2]),
}


@pytest.mark.parametrize("method", BY_HAND)
def test_certificates_accept_what_is_right(method: str) -> None:
    options, w = BY_HAND[method]
    assert CERTIFICATES[method](SQUARE, torch.tensor(w, dtype=torch.float64), **options) < 1e-14


def test_cagrads_certificate_accepts_the_best_of_a_grid() -> None:
    mean, radius = torch.tensor([0.5, 0.5], dtype=torch.float64), 0.5 * math.sqrt(5 / 4)

    shares = torch.linspace(0.6, 1.0, 400_001, dtype=torch.float64)
    x = torch.stack([shares, 1 - shares], 1)
    lengths = ((x @ SQUARE) * x).sum(1).sqrt()
    best = (x @ SQUARE @ mean + radius * lengths).argmin()
    w = mean + radius / lengths[best] * x[best]
    assert CERTIFICATES["cagrad"](SQUARE, w, c=0.5) < 1e-5
    assert CERTIFICATES["cagrad"](SQUARE, w, c=0.4) > 0.1


def test_alignedmtls_and_configs_certificates_accept_orthogonal_tasks() -> None:
    K = torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64))
    assert CERTIFICATES["alignedmtl"](K, torch.tensor([0.5, 1 / 3], dtype=torch.float64)) < 1e-15
    # Unit vectors e1, e2 have the bisector, on which the gradients project by sqrt 2 and 3 / sqrt 2.
    length = 5 / math.sqrt(2)
    w = torch.tensor([length / math.sqrt(2) / 2, length / math.sqrt(2) / 3], dtype=torch.float64)
    assert CERTIFICATES["config"](K, w) < 1e-15


@pytest.mark.parametrize("method", sorted(CERTIFICATES))
@pytest.mark.parametrize("tasks", [2, 5])
def test_certificates_refuse_the_mean_and_the_sum(method: str, tasks: int) -> None:
    options = RIVALS[method].options
    for G in problems(tasks, CPU):
        K, w = gs.gram(G), torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        right = {"dualproj": bool((K @ w >= 0).all()), "upgrad": bool((K >= 0).all())}.get(method, False)
        assert (CERTIFICATES[method](K, w, **options) <= (1e-12 if right else 1e-3)) == right
        assert not CERTIFICATES[method](K, tasks * w, **options) <= 1e-3


def test_every_rival_has_what_its_check_needs() -> None:
    assert set(RIVALS) <= set(gs.methods())
    for method, rival in RIVALS.items():
        assert (rival.orders is None) == (method in CERTIFICATES)


def test_problems_conflict_and_differ() -> None:
    for tasks in (2, 8):
        matrices = problems(tasks, CPU)
        assert all(torch.equal(a, b) for a, b in zip(matrices, problems(tasks, CPU), strict=True))
        assert not torch.equal(matrices[0], matrices[1])
        assert any(bool((gs.gram(G) < 0).any()) for G in matrices)


def closed_form(K: Tensor) -> Tensor:
    """MGDA of two tasks."""
    share = ((K[1, 1] - K[0, 1]) / (K[0, 0] + K[1, 1] - 2 * K[0, 1])).clamp(0, 1)
    return torch.stack([share, 1 - share])


def test_a_wrong_answer_of_ours_is_refused() -> None:
    rival, matrices = RIVALS["mgda"], problems(2, CPU)
    assert check_ours("mgda", closed_form, matrices, rival) < 1e-14
    with pytest.raises(AssertionError, match=r"gradsurgery: mgda leaves a residual of .* at T=2, where 1e-09 is allowed"):
        check_ours("mgda", lambda K: closed_form(K) + torch.tensor([1e-6, -1e-6], dtype=K.dtype), matrices, rival)


def test_a_rivals_error_is_told_and_another_problem_refused() -> None:
    rival, matrices = Rival(lambda tasks: closed_form), problems(2, CPU)

    def off(factor: float, K: Tensor) -> Tensor:
        return factor * closed_form(K)

    assert check_rival("mgda", closed_form, partial(off, 1.01), matrices, rival) == pytest.approx(0.01)
    with pytest.raises(AssertionError, match=r"torchjd: mgda is off by 1.0e.00 at T=2 at best"):
        check_rival("mgda", closed_form, partial(off, 2.0), matrices, rival)


@pytest.mark.parametrize("method", [method for method, rival in RIVALS.items() if rival.orders is not None])
def test_random_orders_are_followed(method: str) -> None:
    pytest.importorskip("torchjd")
    rival = RIVALS[method]
    for tasks in (2, 3, 8):
        matrices = problems(tasks, CPU)
        solve: Callable[[Tensor], Tensor] = rival.build(tasks)
        assert check_rival(method, solve, solve, matrices, rival) < 1e-6
    other = Rival(rival.build, orders=lambda T: [order[::-1] for order in rival.orders(T)] if rival.orders else [])
    assert (
        check_rival(method, solve, solve, problems(3, CPU)[:3], rival) < 1e-6 < check_rival(method, solve, solve, matrices, other)
    )


def test_rows() -> None:
    for package in ("torchjd", "cvxpy", "ecos"):
        pytest.importorskip(package)
    rows = solver_rows([2, 3], TINY, CPU)
    assert [(r["tasks"], r["method"], r["provider"]) for r in rows] == [
        (T, method, provider) for T in (2, 3) for method in RIVALS for provider in ("gradsurgery", "torchjd")
    ]
    for row in rows:
        assert row["kind"] == "solver"
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] < 1
        assert row["read_p50"] > 0
        assert row["error"] <= (1e-9 if row["provider"] == "gradsurgery" else 10)
