"""Multi-Krum; see ``csrc/weights/krum.h``. options: f, m"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report


def krum(problem: Problem) -> tuple[Tensor, Report]:
    """The m tasks with the smallest sum of squared distances to their T - f - 2 nearest others, averaged."""
    K, T = problem.gram, problem.tasks
    neighbours = int(min(max(T - problem.options[0] - 2, 0), T - 1))
    m = int(min(max(problem.options[1], 1), T))
    squares = K.diagonal()
    distances = squares[:, None] + squares - 2.0 * K
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(dim=1).values[:, :neighbours].sum(1)
    w = torch.zeros_like(squares)
    w[scores.argsort(stable=True)[:m]] = 1.0 / m
    return w, Report()
