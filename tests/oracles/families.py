"""Matrices of task gradients whose rank and stationarity are known: small integers, so that both are exact in float64.

G is strongly stationary when some w > 0 has Gᵀw = 0: then no change helps a task but at another's cost. It is stationary when some
w >= 0 other than 0 has: then no change helps all tasks at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)
SCALES = (0.0, 1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15)


def integers(rows: int, columns: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, (rows, columns), generator=generator).double()


def ranked(tasks: int, numel: int, rank: int, seed: int = 0) -> Tensor:
    """[T, N] of the rank, as a product of two integer matrices with unit blocks."""
    generator = torch.Generator().manual_seed(((seed * 16 + tasks) * 16 + numel) * 16 + rank)
    left, right = integers(tasks, rank, -3, 3, generator), integers(rank, numel, -3, 3, generator)
    left[:rank] = left[:rank].tril(-1) + torch.eye(rank).double()
    right[:, :rank] = right[:, :rank].triu(1) + torch.eye(rank).double()
    return (left @ right)[torch.randperm(tasks, generator=generator)]


def all_ranks(tasks: tuple[int, int] = (1, 11)) -> Iterator[Tensor]:
    """Every T and N of SIZES at every rank, from 0."""
    for T in SIZES:
        for N in SIZES:
            for rank in range(min(T, N) + 1):
                if tasks[0] <= T <= tasks[1]:
                    yield ranked(T, N, rank)


def strongly_stationary(tasks: int, numel: int, rank: int) -> Tensor:
    """The last task is minus a positive combination of all others. rank < T."""
    generator = torch.Generator().manual_seed(tasks * 1000 + numel)
    G = ranked(tasks - 1, numel, rank, seed=1)
    return torch.cat([G, -integers(1, tasks - 1, 1, 3, generator) @ G])


def weakly_stationary(tasks: int, numel: int, rank: int) -> Tensor:
    """All but the last task are strongly stationary in the first N - 1 coordinates, and the last alone has the last one."""
    G = strongly_stationary(tasks - 1, numel - 1, rank)
    last = integers(1, numel - 1, -3, 3, torch.Generator().manual_seed(tasks * 1000 + numel))
    return torch.cat([torch.cat([G, torch.zeros(tasks - 1, 1).double()], 1), torch.cat([last, torch.ones(1, 1).double()], 1)])


def improvable(tasks: int, numel: int, rank: int) -> Tensor:
    """Not stationary: the first coordinate helps everybody."""
    G = ranked(tasks, numel, rank, seed=2)
    G[:, 0] = 1 + torch.arange(tasks) % 3
    return G


def stationary_sizes(tasks: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """(T, N, rank) with 1 <= rank < T - 1, N."""
    for T in SIZES:
        for N in SIZES:
            for rank in range(1, min(T - 1, N)):
                if tasks[0] <= T <= tasks[1]:
                    yield T, N, rank


def with_zero_rows(tasks: int, numel: int, zeros: int) -> Tensor:
    """Of which so many tasks have no gradient."""
    G = ranked(tasks, numel, min(tasks, numel), seed=3)
    G[torch.randperm(tasks, generator=torch.Generator().manual_seed(tasks))[:zeros]] = 0
    return G
