"""SDMGrad on a cross-Gram matrix; see ``csrc/weights/sdmgrad.h``. options: lr, momentum, iterations, lambda"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report
from .simplex import overflowed, present_tasks, project_simplex, recall


def sdmgrad(problem: Problem) -> tuple[Tensor, Report]:
    """Projected gradient descent with momentum from the weights of the step before."""
    lr, momentum, iterations, pull = problem.options
    task = present_tasks(problem)
    w = recall(problem, task)
    if w.isnan().any():
        return overflowed(problem, 0)
    A = problem.gram[task][:, task]
    scale = float(A.diagonal().clamp_min(0.0).sqrt().mean())
    report = Report(converged=scale > 0, stationary=None)
    if scale > 0:
        velocity = torch.zeros_like(w)
        for k in range(int(iterations)):
            velocity = momentum * velocity + (A / scale / scale) @ (w + pull / len(w))
            w = project_simplex(w - lr * velocity)
            if w.isnan().any():
                return overflowed(problem, k + 1)
        report.iterations = int(iterations)
    if problem.state is not None:
        problem.state[task] = w
    spread = torch.zeros(problem.tasks, dtype=w.dtype, device="cpu")
    spread[task] = (w + pull / len(w)) / (1.0 + pull)
    return spread, report
