"""FairGrad and Nash-MTL: their identities, any scale, zero gradients, and gradients of which a combination vanishes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods.certificates import fairgrad as certificate
from methods.certificates import families, wide
from oracles import fairgrad as oracle
from scipy.optimize import nnls
from torch import Tensor

import gradsurgery as gs
from gradsurgery.methods import Solution

ALPHAS = (0.25, 0.5, 1.0, 2.0, 5.0)


def solve(K: Tensor, name: str = "fairgrad", **options: Any) -> Solution:
    return gs.methods()[name].build(**options).solve(K)


def status(solution: Solution) -> tuple[bool, bool]:
    """(converged, stationary)"""
    assert solution.status is not None
    return bool(solution.status[0]), bool(solution.status[1])


def gradients(tasks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    return torch.randn(tasks, 2 * tasks + 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tasks", [1, 2, 4, 7])
def test_against_descent_on_full_vectors(tasks: int, alpha: float) -> None:
    for seed in range(3):
        G = gradients(tasks, seed)
        torch.testing.assert_close(solve(G @ G.T, alpha=alpha).weights, oracle.weights(G, alpha), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_task_improves_by_its_share(alpha: float) -> None:
    G = gradients(6)
    w = solve(G @ G.T, alpha=alpha).weights
    out = w @ G
    torch.testing.assert_close(G @ out, w ** (-1 / alpha), rtol=1e-10, atol=0.0)
    assert float(out @ out) == pytest.approx(float((w ** (1 - 1 / alpha)).sum()), rel=1e-10)


def test_two_tasks_in_closed_form() -> None:
    """w_i = 1 / (|g_i| sqrt(1 + cos)), so that the result is parallel to the sum of the unit vectors, from aligned to opposed."""
    for angle in (0.0, 0.3, 1.5, 2.0, 3.1, math.pi - 1e-3, math.pi - 1e-5):
        G = torch.tensor([[3.0, 0.0], [0.2 * math.cos(angle), 0.2 * math.sin(angle)]], dtype=torch.float64)
        K = G @ G.T
        norms = G.norm(dim=1)
        cosine = float(K[0, 1] / (norms[0] * norms[1]))
        w = solve(K).weights
        rounding = 1e-14 / (1 + cosine)
        torch.testing.assert_close(w, 1 / (norms * math.sqrt(1 + cosine)), rtol=1e-12 + rounding, atol=0.0)
        assert float(w[0] * norms[0]) == pytest.approx(float(w[1] * norms[1]), rel=1e-12 + rounding)


def test_the_ends_of_alpha() -> None:
    """alpha -> 0 is the sum; alpha -> infinity the direction of the shortest convex combination."""
    G = gradients(4)
    torch.testing.assert_close(solve(G @ G.T, alpha=1e-3).weights, torch.ones(4, dtype=torch.float64), rtol=2e-2, atol=0.0)
    out = solve(G @ G.T, alpha=1e3).weights @ G
    share, _ = nnls(torch.cat([G.T, 1e3 * torch.ones(1, 4)]).numpy(), [0.0] * G.shape[1] + [1e3])
    shortest = torch.from_numpy(share) @ G
    assert float(out @ shortest / (out.norm() * shortest.norm())) > 0.999


@pytest.mark.parametrize("alpha", ALPHAS)
def test_free_of_scale(alpha: float) -> None:
    K = families(5, 20)["mixed signs"]
    expected = solve(K, alpha=alpha).weights
    for scale in (1e-6, 1e6, 2.0**-200, 2.0**200):
        scaled = solve(scale**2 * K, alpha=alpha)
        torch.testing.assert_close(scaled.weights, scale ** (-2 * alpha / (alpha + 1)) * expected, rtol=1e-9, atol=0.0)
    rows = torch.tensor([1e-8, 1e8, 1.0, 1e-3, 1e4], dtype=torch.float64)
    if alpha == 1.0:
        scaled = solve(rows[:, None] * rows * K)
        torch.testing.assert_close(scaled.weights * rows, expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["fairgrad", "nashmtl"])
def test_zero_gradients_get_no_weight(name: str) -> None:
    G = gradients(3)
    K, padded = G @ G.T, torch.zeros(5, 5, dtype=torch.float64)
    present = torch.tensor([0, 2, 3])
    padded[present[:, None], present] = K
    w, extended = solve(K, name).weights, solve(padded, name)
    assert torch.equal(extended.weights[present], w)
    assert extended.weights[[1, 4]].tolist() == [0.0, 0.0]
    nothing = solve(torch.zeros(3, 3, dtype=torch.float64), name)
    assert nothing.weights.tolist() == [0.0, 0.0, 0.0]
    assert status(nothing) == (True, True), "zero is the combination of zeros"


STATIONARY = {
    "a pair": [[1.0, 2.0, 0.0, 0.0], [-3.0, -6.0, 0.0, 0.0]],
    "a pair and another": [[1.0, 2.0, 0.0, 0.0], [-3.0, -6.0, 0.0, 0.0], [1.0, -1.0, 1.0, 0.0]],
    "a triangle": [[1.0, 0.0, 0.0, 0.0], [-1.0, 2.0, 0.0, 0.0], [-1.0, -3.0, 0.0, 0.0], [0.0, 0.5, 2.0, 1.0]],
}


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows", STATIONARY.values(), ids=STATIONARY)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_vanishing_combination(rows: list[list[float]], alpha: float, scale: float) -> None:
    """It is said, and the weights are the documented ones: those in the combination stay, the others improve."""
    G = scale * torch.tensor(rows, dtype=torch.float64)
    K = G @ G.T
    solution = solve(K, alpha=alpha)
    w = solution.weights
    assert status(solution) == (True, True)
    assert bool((w > 0).all())
    ridged = K + 2.0**-36 * K.diagonal().diag()
    assert float(certificate(wide(ridged[None]), wide(w[None]), {"alpha": alpha}).max()) <= 1e-9
    progress = (G @ (w @ G)) / (G.norm(dim=1) * (w * G.norm(dim=1)).sum())
    assert bool((progress >= -1e-9).all())
    if len(G) > 2:
        assert float(progress[-1]) > 100 * float(progress[:-1].abs().max())


def test_opposed_up_to_rounding_and_beyond() -> None:
    """Nearly opposed gradients are solved as long as K tells them from opposed ones, and then called stationary."""
    for exponent in range(1, 12):
        delta = 10.0**-exponent
        G = torch.tensor([[1.0, 0.0], [-1.0, delta]], dtype=torch.float64)
        solution = solve(G @ G.T)
        assert status(solution) == (True, exponent >= 7), delta
        out = solution.weights @ G
        if exponent <= 6:
            assert float(out.norm()) == pytest.approx(math.sqrt(2), rel=1e-3)
            assert float(out[1] / out.norm()) == pytest.approx(1.0, abs=delta)


def test_an_indefinite_gram() -> None:
    """K that was rounded to float32 on the way: an answer with its certificate, or stationary; never a hang."""
    for tasks in (2, 5, 16):
        for family, K in families(tasks, 50).items():
            rounded = K.float().double()
            solution = solve(rounded)
            assert solution.status is not None
            assert bool(solution.weights.isfinite().all())
            plain = (solution.status[:, 0] == 1) & (solution.status[:, 1] == 0)
            assert family in ("opposed", "deficient") or bool(plain.all())
            if bool(plain.any()):
                assert float(certificate(wide(rounded[plain]), wide(solution.weights[plain]), {"alpha": 1.0}).max()) <= 1e-9


def test_nash_has_unit_length_and_the_direction_of_fairgrad() -> None:
    for tasks in (1, 2, 5, 12):
        for family, K in families(max(tasks, 2), 20).items():
            if family == "deficient":
                continue
            gram = K[:, :tasks, :tasks].contiguous()
            fair, nash, free = solve(gram).weights, solve(gram, "nashmtl").weights, solve(gram, "nashmtl", max_norm=0.0).weights
            assert torch.equal(free, fair)
            torch.testing.assert_close(nash, fair / math.sqrt(tasks), rtol=1e-14, atol=0.0)
            loose = solve(gram, "nashmtl", max_norm=2 * math.sqrt(tasks)).weights
            assert torch.equal(loose, fair)
    G = gradients(5)
    out = solve(G @ G.T, "nashmtl", max_norm=0.3).weights @ G
    assert float(out.norm()) == pytest.approx(0.3, rel=1e-12)
    assert bool((G @ out > 0).all())


def test_where_others_fall_back_to_the_sum() -> None:
    """[[1, 0], [-1, 1]], on which the usual convex solver fails."""
    K = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    w = solve(K, "nashmtl", max_norm=0.0).weights
    torch.testing.assert_close(K @ w, 1 / w)


@pytest.mark.parametrize("name", ["fairgrad", "nashmtl"])
def test_a_clip_of_a_vanishing_combination(name: str) -> None:
    G = torch.tensor(STATIONARY["a pair and another"], dtype=torch.float64)
    solution = solve(G @ G.T, name)
    assert status(solution) == (True, True)
    out = solution.weights @ G
    assert float(out.norm()) <= 1.0 + 1e-9
    assert float(out @ G[2]) > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fairgrad", {"alpha": 0.0}, r"alpha: expected a finite number > 0, found 0.0"),
        ("fairgrad", {"alpha": -1}, r"alpha: expected a finite number > 0, found -1"),
        ("fairgrad", {"alpha": math.inf}, r"alpha: expected a finite number > 0, found inf"),
        ("fairgrad", {"alpha": math.nan}, r"alpha: expected a finite number > 0, found nan"),
        ("nashmtl", {"max_norm": -1.0}, r"max_norm: expected a finite number >= 0, found -1.0"),
        ("nashmtl", {"max_norm": math.nan}, r"max_norm: expected a finite number >= 0, found nan"),
    ],
)
def test_bad_options(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.methods()[name].build(**options)
