"""Relative error of PCGrad against explicit projections in float64 on the same numbers, from benign to nearly opposed gradients."""

from __future__ import annotations

import pytest
import torch
from oracles.pcgrad import pcgrad
from torch import Tensor

import gradsurgery as gs


def random(T: int, N: int) -> Tensor:
    return torch.randn(T, N, dtype=torch.float64)


def shared(T: int, N: int) -> Tensor:
    """One direction that tasks share, with both signs."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(T)[:T, None]
    return random(T, N) + 0.5 * signs * random(1, N)


def scales(T: int, N: int) -> Tensor:
    return random(T, N) * torch.logspace(-4, 4, T, dtype=torch.float64)[:, None]


def opposed(T: int, N: int, delta: float) -> Tensor:
    """Tasks that pull one direction both ways and differ by delta: the condition number of the cosines is about T / delta^2."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(T)[:T, None]
    return signs * random(1, N) + delta * random(T, N)


# Largest relative error of the combined gradient (norms) by the type it is stored in. 32- and 16-bit results are one rounding away
# from float64's answer; float64 itself loses about the condition number.
CASES = {
    "random": (random, 2e-15),
    "shared": (shared, 2e-15),
    "scales": (scales, 2e-15),
    "opposed 1e-1": (lambda T, N: opposed(T, N, 1e-1), 1e-13),
    "opposed 1e-2": (lambda T, N: opposed(T, N, 1e-2), 1e-12),
    "opposed 1e-3": (lambda T, N: opposed(T, N, 1e-3), 1e-11),
    "opposed 1e-4": (lambda T, N: opposed(T, N, 1e-4), 1e-10),
}
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("tasks", [2, 4, 8, 16])
@pytest.mark.parametrize("case", CASES)
def test_relative_error(case: str, tasks: int) -> None:
    draw, bound = CASES[case]
    for N in (1_000, 20_000):
        exact = draw(tasks, N)
        for stored in (torch.float64, torch.float32, torch.bfloat16):
            given = exact.to(stored)
            expected = pcgrad(given)
            out = gs.aggregate(given, "pcgrad", order="ascending", out=torch.empty(N, dtype=torch.float64))
            wide = gs.combine(
                given, gs.weights(gs.gram(given), "pcgrad", order="ascending"), out=torch.empty(N, dtype=torch.float32)
            )
            narrow = gs.aggregate(given, "pcgrad", order="ascending")
            for result, rounding in ((out, 0.0), (wide, ROUNDING[torch.float32]), (narrow, ROUNDING.get(stored, 0.0))):
                assert isinstance(result, Tensor)
                error = float((result.double() - expected).norm() / expected.norm())
                assert error <= rounding + bound, f"{case} T={tasks} N={N} {stored} -> {result.dtype}: {error:.2e}"


def test_the_sum_keeps_what_explicit_float32_loses() -> None:
    """Not a bound but the point: projecting full float32 vectors loses the condition number, K in float64 does not."""
    G = opposed(8, 20_000, 1e-4).float()
    expected, explicit = pcgrad(G), torch.zeros(20_000)
    for i, row in enumerate(G):
        g = row.clone()
        for j, other in enumerate(G):
            dot = g @ other
            if j != i and dot < 0:
                g -= dot / (other @ other) * other
        explicit += g
    ours = gs.aggregate(G, "pcgrad", order="ascending")
    assert isinstance(ours, Tensor)
    errors = [float((x.double() - expected).norm() / expected.norm()) for x in (explicit, ours)]
    assert errors[1] < 1e-7 < 100 * errors[1] < errors[0]
