"""PCGrad as its paper prints it (Algorithm 1): explicit projections of full vectors in float64, without a Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor


def pcgrad(
    rows: Tensor,
    order: Literal["ascending"] | Sequence[Sequence[int]] | Tensor = "ascending",
    include_self: bool = False,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """The combined gradient [N] of the tasks' gradients ``rows`` [T, N]; row i of ``order`` is what task i meets, in turn."""
    G = rows.double()
    T = len(G)
    total = G.new_zeros(G.shape[1])
    for i in range(T):
        g = G[i].clone()
        for j in range(T) if isinstance(order, str) else [int(j) for j in order[i]]:
            if j == i and not include_self:
                continue
            dot, square = g @ G[j], G[j] @ G[j]
            if dot < 0 and square > 0:
                g = g - dot / square * G[j]
        total += g
    return total if reduction == "sum" else total / T
