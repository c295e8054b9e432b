"""GradVac as its paper prints it (Algorithm 1): explicit corrections of full vectors in float64, without a Gram matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .pcgrad import Order


def gradvac(rows: Tensor, order: Order = "ascending", targets: Tensor | None = None, beta: float = 0.01) -> Tensor:
    """The combined gradient; ``targets`` [T, T] are the averages of the cosines, updated in place. [N]"""
    G = rows.double()
    T = len(G)
    averages = torch.zeros(T, T, dtype=torch.float64) if targets is None else targets
    total = torch.zeros_like(G[0])
    for i in range(T):
        g = G[i].clone()
        for j in range(T) if isinstance(order, str) else [int(j) for j in order[i]]:
            norm, other = g.norm(), G[j].norm()
            if j == i or norm == 0 or other == 0:
                continue
            cosine, target = float(g @ G[j] / (norm * other)), float(averages[i, j])
            averages[i, j] = (1 - beta) * target + beta * cosine
            if cosine < target:
                sine, target_sine = math.sqrt(max(1 - cosine**2, 0.0)), math.sqrt(1 - target**2)
                g = g + norm * (target * sine - cosine * target_sine) / (other * target_sine) * G[j]
        total += g
    return total
