"""PCGrad in Gram space with plain PyTorch: a matrix product in the gradients' type, the scans in Python, a weighted product."""

from __future__ import annotations

import torch
from torch import Tensor

from .explicit import draw, orders
from .provider import Provider, Run


def solve(gram: list[list[float]]) -> list[float]:
    """w [T] of K [T][T]: each task's row of dot products follows its projections."""
    tasks = len(gram)
    weights = [1.0] * tasks
    for i in range(tasks):
        dots = gram[i]
        for j in draw(i, tasks):
            if dots[j] < 0:
                a = -dots[j] / gram[j][j]
                weights[j] += a
                dots = [r + a * k for r, k in zip(dots, gram[j], strict=True)]
    return weights


def prepare(grads: Tensor) -> Run:
    out = torch.empty_like(grads[0])
    columns = grads.T  # [N, T]

    def run() -> Tensor:
        weights = solve(torch.mm(grads, columns).tolist())
        return torch.mv(columns, torch.tensor(weights, dtype=grads.dtype, device=grads.device), out=out)

    return run


GRAM = Provider("gram", "Gram in PyTorch", prepare, orders)
