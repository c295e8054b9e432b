"""PCD; see ``csrc/weights/pcd.h``. options: tau, beta, eps, primary; given: tau, or None; state: [T, 2]"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import Quadratic, minimise, rounding_of
from .problem import Problem, Reduced, Report


def pcd(problem: Problem) -> tuple[Tensor, Report]:
    """The direction nearest to the primary gradient that serves every other task at least a little, at the primary's length."""
    tau, beta, eps, primary_task = (*problem.options[:3], int(problem.options[3]))
    K, T = problem.gram, problem.tasks
    taus = torch.full_like(K[0], tau) if problem.given is None else problem.given
    present = ~taus.isnan()
    average = K.diagonal()
    if problem.state is not None:
        memory = problem.state.reshape(T, 2)
        memory[present, 0] = beta * memory[present, 0] + (1 - beta) * average[present]
        memory[present, 1] += 1
        average = memory[:, 0] / (1 - beta ** memory[:, 1])
    s = torch.where(present & (average + eps > 0), (average + eps).rsqrt(), 0.0)
    if not 0 <= primary_task < T or not K[primary_task, primary_task] > 0:
        return torch.zeros_like(taus), Report()
    reduced = Reduced.of(K)
    C, task, scale = reduced.gram, reduced.task, reduced.scale
    primary = task.tolist().index(primary_task)
    start = s[primary_task] * scale[primary]
    wanted, had = taus[task] * s[task] * scale * C.diagonal(), start * C[:, primary]
    found = minimise(Quadratic(C), wanted - had, wanted + had.abs(), excluded=primary)
    y = found.y if found.bounded else torch.zeros_like(found.y)
    y[primary] = start
    square, absolute = y @ C @ y, y @ C.abs() @ y
    vanishes = not square > rounding_of(len(y)) * absolute
    factor = 0.0 if vanishes else (K[primary_task, primary_task] / square).sqrt()
    return reduced.spread(factor * y, T), Report(found.converged, vanishes or not found.bounded, iterations=found.iterations)
