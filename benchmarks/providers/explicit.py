"""The paper's Algorithm 1 as written, over full vectors: up to T^2 passes, each a dot product and, on conflict, an update in place.

As fast as plain PyTorch makes it: buffers are allocated once, norms are taken once a call, nothing is copied but each task's own
gradient, and the first task is projected where the sum is built.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from .provider import Provider, Run


def draw(task: int, tasks: int) -> list[int]:
    others = [j for j in range(tasks) if j != task]
    random.shuffle(others)
    return others


def prepare(grads: Tensor) -> Run:
    rows = grads.unbind()  # T views [N]
    tasks = len(rows)
    out, scratch = torch.empty_like(rows[0]), torch.empty_like(rows[0])

    def run() -> Tensor:
        squares = [float(torch.dot(g, g)) for g in rows]
        for i in range(tasks):
            projected = scratch if i else out
            projected.copy_(rows[i])
            for j in draw(i, tasks):
                dot = float(torch.dot(projected, rows[j]))
                if dot < 0:
                    projected.add_(rows[j], alpha=-dot / squares[j])
            if i:
                out.add_(projected)
        return out

    return run


def orders(tasks: int) -> list[list[int]]:
    return [draw(i, tasks) for i in range(tasks)]


EXPLICIT = Provider("explicit", "explicit, in place", prepare, orders)
