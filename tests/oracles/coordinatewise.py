"""GradDrop, sign agreement, trimmed mean and median one coordinate at a time, in Python's own numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 as its paper defines it."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def uniform(seed: int, step: int, coordinate: int) -> float:
    """GradDrop's U of one coordinate."""
    halves = [half for number in (step, coordinate // 4) for half in (number % 2**32, number // 2**32 % 2**32)]
    counter = (halves[0], halves[1], halves[2], halves[3])
    return (philox((seed % 2**32, seed // 2**32 % 2**32), counter)[coordinate % 4] + 0.5) / 2**32


def graddrop(x: Sequence[float], U: float, leak: Sequence[float] | None = None) -> float:
    """Algorithm 1 of the paper, with exactly rounded sums."""
    total, size = math.fsum(x), math.fsum(abs(v) for v in x)
    if size == 0:
        return 0.0
    P = (1 + total / size) / 2
    shares = [0.0] * len(x) if leak is None else leak
    return math.fsum(v * (1.0 if (P > U and v > 0) or (P < U and v < 0) else share) for v, share in zip(x, shares, strict=True))


def sign_agreement(x: Sequence[float], threshold: float = 1.0, mean: bool = True) -> float:
    votes = sum((v > 0) - (v < 0) for v in x)
    if abs(votes / len(x)) < threshold:
        return 0.0
    return math.fsum(x) / (len(x) if mean else 1)


def trimmed_mean(x: Sequence[float], trim: int) -> float:
    kept = sorted(x)[trim : len(x) - trim]
    return math.fsum(kept) / len(kept)


def median(x: Sequence[float]) -> float:
    ordered, half = sorted(x), len(x) // 2
    return ordered[half] if len(x) % 2 else (ordered[half - 1] + ordered[half]) / 2


def by_coordinate(rows: Sequence[Tensor] | Tensor, rule: Callable[[list[float], int], float]) -> Tensor:
    """rule(values of the tasks, k) at every coordinate k. [N] float64"""
    columns = torch.stack([row.double().reshape(-1) for row in rows]).T.tolist()
    return torch.tensor([rule(column, k) for k, column in enumerate(columns)], dtype=torch.float64, device=rows[0].device)
