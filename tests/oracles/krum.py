"""Krum and multi-Krum on full vectors: pairwise distances, no Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def krum(rows: Tensor, n_byzantine: int = 0, n_selected: int = 1) -> Tensor:
    """The mean of the n_selected rows nearest to their T - f - 2 nearest others. [N]"""
    G = rows.double()
    T = len(G)
    scores = []
    for i in range(T):
        distances = sorted(float((G[i] - G[j]).square().sum()) for j in range(T) if j != i)
        scores.append(sum(distances[: T - n_byzantine - 2]))
    kept = sorted(range(T), key=lambda t: scores[t])[:n_selected]
    return torch.stack([G[t] for t in kept]).mean(0)
