"""The paper's Algorithm 1 as one writes it down, and as published implementations have it: an expression for each projection.

Every projection makes temporaries of N coordinates and takes the norm anew; ``explicit.py`` is the same algorithm without either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .explicit import draw, orders
from .provider import Provider, Run


def prepare(grads: Tensor) -> Run:
    rows = grads.unbind()  # T views [N]
    tasks = len(rows)

    def run() -> Tensor:
        projected = [g.clone() for g in rows]
        for i in range(tasks):
            for j in draw(i, tasks):
                dot = torch.dot(projected[i], rows[j])
                if dot < 0:
                    projected[i] -= dot * rows[j] / rows[j].norm() ** 2
        return torch.stack(projected).sum(dim=0)

    return run


WRITTEN = Provider("written", "explicit, as written", prepare, orders)
