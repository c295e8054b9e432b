"""PCGrad as its paper prints it (Algorithm 1): explicit projections of full vectors in float64, without a Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Order = Literal["ascending"] | Sequence[Sequence[int]] | Tensor


def projected(rows: Tensor, order: Order = "ascending", include_self: bool = False) -> Tensor:
    """g_i^PC for every task, from the tasks' gradients ``rows`` [T, N]; row i of ``order`` is what task i meets, in turn. [T, N]"""
    G = rows.double()
    T = len(G)
    result = []
    for i in range(T):
        g = G[i].clone()
        for j in range(T) if isinstance(order, str) else [int(j) for j in order[i]]:
            if j == i and not include_self:
                continue
            dot, square = g @ G[j], G[j] @ G[j]
            if dot < 0 and square > 0:
                g = g - dot / square * G[j]
        result.append(g)
    return torch.stack(result)


def pcgrad(
    rows: Tensor,
    order: Order = "ascending",
    include_self: bool = False,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """The combined gradient. [N]"""
    each = projected(rows, order, include_self)
    return each.sum(0) if reduction == "sum" else each.sum(0) / len(each)
