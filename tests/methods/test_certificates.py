"""The solvers' answers, checked from K and w alone over many random K: certified to 1e-9, or truly stationary."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from methods.certificates import CERTIFICATES, CERTIFIED, PRESENT, ROUNDING, families, vanishing, verify, wide
from torch import Tensor

import gradsurgery as gs

TASKS = range(2, 33)


@lru_cache(maxsize=2)
def sample(tasks: int, count: int) -> tuple[dict[str, Tensor], dict[tuple[str, int], float]]:
    """(K by family, what ``vanishing`` said of some of them)"""
    return families(tasks, count), {}


def run(name: str, options: dict[str, Any], tasks: int, count: int) -> None:
    certificate, _ = CERTIFICATES[name]
    by_family, known = sample(tasks, count)
    for family, K in by_family.items():
        solution = gs.methods()[name].build(**options).solve(K)
        assert solution.status is not None
        seen = {b: value for (of, b), value in known.items() if of == family}
        try:
            verify(K, solution.weights, solution.status, certificate, options, seen)
        except AssertionError as error:
            raise AssertionError(f"{name} {options}, {tasks} tasks, {family}: {error}") from error
        known.update({(family, b): value for b, value in seen.items()})


@pytest.mark.parametrize(("name", "options"), PRESENT)
@pytest.mark.parametrize("tasks", TASKS)
def test_certified(name: str, options: dict[str, Any], tasks: int) -> None:
    run(name, options, tasks, count=10)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "options"), PRESENT)
@pytest.mark.parametrize("tasks", TASKS)
def test_ten_thousand_certified(name: str, options: dict[str, Any], tasks: int) -> None:
    run(name, options, tasks, count=2000)


# --- the judge is judged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), PRESENT)
@pytest.mark.parametrize("tasks", [2, 5, 16])
def test_a_wrong_answer_is_refused(name: str, options: dict[str, Any], tasks: int) -> None:
    certificate, _ = CERTIFICATES[name]
    for family in ("benign", "mixed signs"):
        K = families(tasks, 20, seed=1)[family]
        solution = gs.methods()[name].build(**options).solve(K)
        w, status = solution.weights, solution.status
        assert status is not None
        assert verify(K, w, status, certificate, options, {}) == 0
        nudge = 1 + 1e-6 * torch.linspace(-1, 1, tasks, dtype=w.dtype)
        scaled = w * nudge
        for wrong in (scaled * (w.sum(1) / scaled.sum(1))[:, None], torch.full_like(w, 1 / tasks), -w):
            refused = certificate(wide(K), wide(wrong), options) > CERTIFIED
            different = ((wrong - w).abs() > 1e-8 * w.abs().amax(1, keepdim=True)).any(1).numpy()
            assert different.any()
            assert refused[different].all()


@pytest.mark.parametrize(("name", "options"), PRESENT)
def test_a_liar_is_found(name: str, options: dict[str, Any]) -> None:
    certificate, _ = CERTIFICATES[name]
    K = families(4, 20, seed=2)["opposed"]
    solution = gs.methods()[name].build(**options).solve(K)
    assert solution.status is not None
    for column, value, message in ((1, 1.0, "called stationary, but"), (0, 0.0, "not converged")):
        status = solution.status.clone()
        status[7, column] = value
        with pytest.raises(AssertionError, match=message):
            verify(K, solution.weights, status, certificate, options, {})
    w = solution.weights.clone()
    w[7, 0] = torch.nan
    with pytest.raises(AssertionError):
        verify(K, w, solution.status, certificate, options, {})


@pytest.mark.parametrize(("name", "options"), [case for case in PRESENT if case.values[0] in ("fairgrad", "nashmtl")])
def test_stationary_gradients_are_called_so(name: str, options: dict[str, Any]) -> None:
    """These have no answer where a combination vanishes; other methods do."""
    generator = torch.Generator().manual_seed(3)
    for tasks in TASKS:
        G = torch.randn(20, tasks, 2 * tasks, generator=generator, dtype=torch.float64)
        G[:, -1] = -(torch.rand(20, tasks - 1, 1, generator=generator, dtype=torch.float64) * G[:, :-1]).sum(1)
        for scale in (torch.zeros(()), torch.rand(20, tasks, 1, generator=generator) * 16 - 8):
            K = (G * 10 ** scale.double()) @ (G * 10 ** scale.double()).mT
            solution = gs.methods()[name].build(**options).solve(K.tril() + K.tril(-1).mT)
            assert solution.status is not None
            assert bool((solution.status[:, :2] == 1).all())
            assert bool(solution.weights.isfinite().all())


def test_no_size_of_weights_hides_that_a_combination_vanishes() -> None:
    """For opposite gradients every residual drowns in the rounding of large enough weights."""
    K = torch.tensor([[[1.0, -3.0], [-3.0, 9.0]]], dtype=torch.float64)
    for size in (1.0, 1e4, 1e8, 1e12):
        w = size * torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        certificate, variants = CERTIFICATES["fairgrad"]
        for options in variants:
            assert float(certificate(wide(K), wide(w), options).max()) > CERTIFIED


def test_vanishing_is_the_shortest_combination() -> None:
    K = torch.tensor([[4.0, -1.0], [-1.0, 9.0]], dtype=torch.float64)
    assert vanishing(K) == pytest.approx((1 - 1 / 6) / 2)
    G = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    assert vanishing(G @ G.T) <= ROUNDING
