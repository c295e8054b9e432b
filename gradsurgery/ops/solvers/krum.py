"""Multi-Krum; see ``csrc/weights/krum.h``. options: f, m; given: which tasks take part"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report


def krum(problem: Problem) -> tuple[Tensor, Report]:
    """The m tasks with the smallest sum of squared distances to their T - f - 2 nearest others, averaged."""
    here = torch.arange(problem.tasks, device="cpu")
    if problem.given is not None:
        here = here[problem.given != 0]
    P = len(here)
    f, m = (int(min(max(option, 0), P)) for option in problem.options)
    K = problem.gram[here][:, here]
    squares = K.diagonal()
    distances = squares[:, None] + squares - 2.0 * K
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(dim=1).values[:, : max(P - f - 2, 0)].sum(1)
    w = torch.zeros_like(problem.gram[0])
    w[here[scores.argsort(stable=True)[:m]]] = 1.0 / max(m, 1)
    return w, Report(stationary=None)
