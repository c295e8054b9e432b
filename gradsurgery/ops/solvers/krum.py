"""Multi-Krum; see ``csrc/weights/krum.h``. options: f, m"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report


def krum(problem: Problem) -> tuple[Tensor, Report]:
    """The m tasks with the smallest sum of squared distances to their T - f - 2 nearest others, averaged."""
    f, m = (int(option) for option in problem.options)
    K, T = problem.gram, problem.tasks
    squares = K.diagonal()
    distances = squares[:, None] + squares - 2.0 * K
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(dim=1).values[:, : max(T - f - 2, 0)].sum(1)
    w = torch.zeros_like(squares)
    w[scores.argsort(stable=True)[:m]] = 1.0 / m
    return w, Report()
