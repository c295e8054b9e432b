"""K in error by far more than float64 rounds, as of sums in float32, and gradients that depend on each other: no Gram matrix.

Its negative eigenvalues show how large the errors are, and the solvers answer as far as those allow.
"""

from __future__ import annotations

import pytest
import torch
from methods.families import noisy
from methods.gradients import CALM
from ops.solver_calls import SOLVER_METHODS, task_counts
from torch import Tensor

import gradsurgery as gs
from gradsurgery import ops
from gradsurgery.methods import Solution, SolverMethod, Step, build
from gradsurgery.ops import solvers

NOISES = (1e-8, 1e-7, 1e-6)
DEPENDENT = (
    *("deficient", "deficient, rows scaled", "in a plane", "duplicated", "duplicated, rows scaled", "negated", "integers"),
    *("summing to zero", "opposed 1e-06", "together 1e-06"),
)
TASKS = (2, 3, 5, 8, 16, 32)
COUNT = 20


def solve(name: str, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w [B, T], stationary [B], rank [B] of what has converged."""
    solution: Solution = build(name, **CALM.get(name, {})).solve(K)
    assert solution.status is not None
    converged, stationary, rank, iterations = solution.status.unbind(-1)
    assert bool(solution.weights.isfinite().all())
    assert bool((converged == 1).all()), f"{int((converged != 1).sum())} not converged"
    assert float(iterations.max()) <= 200 * K.shape[-1]
    return solution.weights, stationary == 1, rank


def combine(w: Tensor, G: Tensor) -> Tensor:
    """[B, N]"""
    return (w[:, None] @ G)[:, 0]


@pytest.mark.parametrize("family", DEPENDENT)
@pytest.mark.parametrize("name", SOLVER_METHODS)
def test_every_answer_is_bounded(name: str, family: str) -> None:
    """As Nash-MTL's and FairGrad's would be by K = 16 T 2^-52 |g_i| |g_j|, and others' by the gradients' own lengths."""
    for tasks in TASKS:
        for noise in NOISES if tasks in task_counts(name, tasks) else ():
            G, K = noisy(family, tasks, COUNT, noise)
            w, _, _ = solve(name, K)
            norms = G.norm(dim=2)
            if name in ("fairgrad", "nashmtl"):
                assert bool(((w * norms).sum(1) <= 2e7).all())
            else:
                assert bool((combine(w, G).norm(dim=1) <= 1e4 * norms.amax(1)).all())


@pytest.mark.parametrize("family", DEPENDENT)
@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "fairgrad", "nashmtl"])
def test_no_task_loses_more_than_the_noise_hides(name: str, family: str) -> None:
    """What the length of sum_t w_t g_t is uncertain by: sqrt(noise) sum_t w_t |g_t|. Projections need no more than noise itself."""
    for tasks in TASKS:
        for noise in NOISES:
            G, K = noisy(family, tasks, COUNT, noise)
            w, _, _ = solve(name, K)
            norms = G.norm(dim=2)
            progress = (G @ combine(w, G)[:, :, None])[:, :, 0]
            allowed = 100 * noise if name in ("upgrad", "dualproj") else noise**0.5
            assert bool((progress >= -allowed * norms * (w * norms).sum(1, keepdim=True)).all())


@pytest.mark.parametrize("family", DEPENDENT)
def test_cagrad_stays_near_the_mean(family: str) -> None:
    for tasks in TASKS:
        for noise in NOISES:
            G, K = noisy(family, tasks, COUNT, noise)
            w, _, _ = solve("cagrad", K)
            mean, apart = G.mean(1).norm(dim=1), (combine(w, G) - G.mean(1)).norm(dim=1)
            assert bool((apart <= 5 * mean + noise**0.5 * G.norm(dim=2).mean(1)).all())


@pytest.mark.parametrize("family", ["deficient", "in a plane", "duplicated"])
@pytest.mark.parametrize("name", ["imtlg", "config", "alignedmtl"])
def test_the_rank_is_that_of_the_gradients(name: str, family: str) -> None:
    """Where some eight eigenvalues are noise, one of them is negative, and tells."""
    for tasks in (16, 32):
        for noise in NOISES:
            G, K = noisy(family, tasks, COUNT, noise)
            w, _, rank = solve(name, K)
            exact, _, expected = solve(name, G @ G.mT)
            assert torch.equal(rank, expected)
            out, wanted = combine(w, G), combine(exact, G)
            close = (out - wanted).norm(dim=1) <= noise**0.5 * wanted.norm(dim=1)
            assert float(close.double().mean()) >= 0.9


@pytest.mark.parametrize("family", ["in a plane", "negated", "integers", "opposed 1e-06"])
@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "cagrad", "pcd", "imtlg", "config", "alignedmtl"])
def test_the_reference_agrees(name: str, family: str) -> None:
    """By the combined gradient, as far as the noise lets it be known: a K that is not convex may have several answers."""
    method = build(name)
    assert isinstance(method, SolverMethod)
    for tasks in (3, 5):
        for noise in NOISES:
            G, K = noisy(family, tasks, 6, noise)
            arguments = (K, method.solver, method.options(tasks, Step()))
            w, report = ops.solve(*arguments, method.given(K, Step()), None, None, None)
            other, said = solvers.solve(*arguments)
            assert torch.equal(said[:, :3], report[:, :3])
            apart, size = combine(other - w, G).norm(dim=1), (w.abs() * G.norm(dim=2)).sum(1)
            assert bool((apart <= noise**0.5 * size).all())


def test_a_matrix_far_from_any_gram_matrix_is_not_solved() -> None:
    """It would take more than a thousandth of the gradients' own squares to make it one."""
    K = torch.tensor([[1.0, -2.0, 0.5], [-2.0, 1.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    for name in ("upgrad", "dualproj"):
        solution = gs.methods()[name].build().solve(K)
        assert solution.status is not None
        assert bool(solution.weights.isfinite().all())
        assert float(solution.status[0]) == 0.0
