"""FairGrad and Nash-MTL on full vectors in float64: one task at a time until no task wants to change, without a Gram matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def own_weight(square: float, rest: float, power: float) -> float:
    """The root w > 0 of square w + rest = w^(-power), by bisection of its logarithm."""
    low, high = -700.0, 700.0
    for _ in range(200):
        middle = (low + high) / 2
        w = math.exp(middle)
        if square * w + rest < math.exp(min(-power * middle, 700.0)):
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def weights(rows: Tensor, alpha: float = 1.0, sweeps: int = 3000) -> Tensor:
    """w > 0 with <g_i, sum_t w_t g_t> = w_i^(-1/alpha), by descent in one coordinate after the other; 0 for zero gradients. [T]"""
    G = rows.double()
    squares = [float(g @ g) for g in G]
    w = torch.tensor([s ** (-1 / (1 + 1 / alpha)) if s > 0 else 0.0 for s in squares], dtype=torch.float64)
    for _ in range(sweeps):
        before = w.clone()
        out = w.to(G.device) @ G
        for i, square in enumerate(squares):
            if square > 0:
                others = out - float(w[i]) * G[i]
                w[i] = own_weight(square, float(others @ G[i]), 1 / alpha)
                out = others + float(w[i]) * G[i]
        if bool(((w - before).abs() <= 1e-14 * w).all()):
            return w
    raise AssertionError(f"the oracle did not converge in {sweeps} sweeps")


def fairgrad(rows: Tensor, alpha: float = 1.0) -> Tensor:
    """The combined gradient. [N]"""
    return weights(rows, alpha).to(rows.device) @ rows.double()


def nashmtl(rows: Tensor, max_norm: float = 1.0) -> Tensor:
    """The combined gradient, clipped to ``max_norm`` unless that is 0. [N]"""
    out = fairgrad(rows)
    norm = float(out.norm())
    return out * (max_norm / norm) if 0 < max_norm < norm else out
