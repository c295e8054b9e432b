"""SDMGrad and MoDo as their papers write them, with a projection by bisection instead of sorting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def project(v: Tensor) -> Tensor:
    """The simplex's nearest point: max(v - c, 0) with the c for which that sums to 1."""
    low, high = float(v.max()) - 1.0, float(v.max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((v - middle).clamp_min(0).sum()) > 1:
            low = middle
        else:
            high = middle
    return (v - high).clamp_min(0)


@dataclass
class SDMGradOracle:
    """w between calls."""

    lr: float = 10.0
    momentum: float = 0.5
    n_iter: int = 20
    lam: float = 0.3
    w: Tensor | None = None

    def __call__(self, A: Tensor) -> Tensor:
        T = len(A)
        w = torch.full((T,), 1 / T, dtype=torch.float64) if self.w is None else self.w
        even = torch.full((T,), 1 / T, dtype=torch.float64)
        scale = sum(max(float(A[t, t]), 0.0) ** 0.5 for t in range(T)) / T
        velocity = torch.zeros(T, dtype=torch.float64)
        for _ in range(self.n_iter):
            velocity = self.momentum * velocity + A @ (w + self.lam * even) / scale**2
            w = project(w - self.lr * velocity)
        self.w = w
        return (w + self.lam * even) / (1 + self.lam)


@dataclass
class MoDoOracle:
    """w between calls."""

    gamma: float = 0.1
    rho: float = 0.1
    w: Tensor | None = None

    def __call__(self, A: Tensor) -> Tensor:
        w = torch.full((len(A),), 1 / len(A), dtype=torch.float64) if self.w is None else self.w
        self.w = project(w - self.gamma * (A @ w + self.rho * w))
        return self.w
