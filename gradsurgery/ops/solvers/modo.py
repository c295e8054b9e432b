"""MoDo on a cross-Gram matrix; see ``csrc/weights/modo.h``. options: gamma, rho"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report
from .simplex import overflowed, present_tasks, project_simplex, recall


def modo(problem: Problem) -> tuple[Tensor, Report]:
    """One projected gradient step from the weights of the step before."""
    gamma, rho = problem.options
    task = present_tasks(problem)
    w = recall(problem, task)
    if w.isnan().any():
        return overflowed(problem, 0)
    w = project_simplex(w - gamma * (problem.gram[task][:, task] @ w + rho * w))
    if w.isnan().any():
        return overflowed(problem, 1)
    if problem.state is not None:
        problem.state[task] = w
    spread = torch.zeros(problem.tasks, dtype=w.dtype, device="cpu")
    spread[task] = w
    return spread, Report(stationary=None, iterations=1)
