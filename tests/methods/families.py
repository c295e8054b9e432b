"""Families of random gradients from benign to hopeless, many at a time, for the certificates of exact methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def signs(tasks: int) -> Tensor:
    """+1, -1, +1, … [T, 1]"""
    return torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(tasks)[:tasks, None]


def benign(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    numel = 2 * tasks + 1
    return normal(generator, count, tasks, numel) + 0.4 * signs(tasks) * normal(generator, count, 1, numel)


def row_scales(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    """1e-8 .. 1e8. [count, T, 1]"""
    return 10.0 ** (16 * torch.rand(count, tasks, 1, generator=generator, dtype=torch.float64) - 8)


def opposed(delta: float) -> Callable[[torch.Generator, int, int], Tensor]:
    def draw(generator: torch.Generator, count: int, tasks: int) -> Tensor:
        numel = 2 * tasks + 1
        return signs(tasks) * normal(generator, count, 1, numel) + delta * normal(generator, count, tasks, numel)

    return draw


def together(delta: float) -> Callable[[torch.Generator, int, int], Tensor]:
    def draw(generator: torch.Generator, count: int, tasks: int) -> Tensor:
        numel = 2 * tasks + 1
        return normal(generator, count, 1, numel) + delta * normal(generator, count, tasks, numel)

    return draw


def scaled(draw: Callable[[torch.Generator, int, int], Tensor]) -> Callable[[torch.Generator, int, int], Tensor]:
    return lambda generator, count, tasks: draw(generator, count, tasks) * row_scales(generator, count, tasks)


def deficient(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    return normal(generator, count, tasks, max(1, tasks // 2))


def in_a_plane(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    return normal(generator, count, tasks, 2)


def duplicated(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    G = normal(generator, count, tasks, 2 * tasks + 1)
    G[:, tasks // 2 :] = G[:, : tasks - tasks // 2].clone()
    return G


def negated(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    """The second half is minus the first: Pareto-stationary."""
    G = normal(generator, count, tasks, 2 * tasks + 1)
    G[:, tasks // 2 :] = -G[:, : tasks - tasks // 2].clone()
    return G


def integers(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    """Small ones in four dimensions: ties, exact dependence, zeros."""
    return torch.randint(-2, 3, (count, tasks, 4), generator=generator).double()


def summing_to_zero(generator: torch.Generator, count: int, tasks: int) -> Tensor:
    G = normal(generator, count, tasks, 2 * tasks + 1)
    return G - G.mean(1, keepdim=True)


FAMILIES: dict[str, Callable[[torch.Generator, int, int], Tensor]] = {
    "benign": benign,
    "rows scaled": scaled(benign),
    **{f"opposed {delta:g}": opposed(delta) for delta in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)},
    "opposed 0.001, rows scaled": scaled(opposed(1e-3)),
    "opposed 1e-06, rows scaled": scaled(opposed(1e-6)),
    "together 0.001": together(1e-3),
    "together 1e-06": together(1e-6),
    "deficient": deficient,
    "deficient, rows scaled": scaled(deficient),
    "in a plane": in_a_plane,
    "in a plane, rows scaled": scaled(in_a_plane),
    "duplicated": duplicated,
    "duplicated, rows scaled": scaled(duplicated),
    "negated": negated,
    "integers": integers,
    "summing to zero": summing_to_zero,
}


def grams(family: str, tasks: int, count: int, seed: int = 0) -> Tensor:
    """K of ``count`` draws. [count, T, T]"""
    G = FAMILIES[family](torch.Generator().manual_seed(1000 * seed + tasks), count, tasks)
    K = G @ G.mT
    return (K + K.mT) / 2


def noisy(family: str, tasks: int, count: int, noise: float) -> tuple[Tensor, Tensor]:
    """G [count, T, N], and its K [count, T, T] with errors of some ``noise`` times |g_i| |g_j|."""
    generator = torch.Generator().manual_seed(tasks)
    G = FAMILIES[family](generator, count, tasks)
    error, norms = normal(generator, count, tasks, tasks), G.norm(dim=2)
    K = G @ G.mT + noise * norms[:, :, None] * norms[:, None] * (error + error.mT) / 2**0.5
    return G, K.tril() + K.tril(-1).mT
