"""GradVac; see ``csrc/weights/gradvac.h``. options: beta; state: phi [T, T]"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Problem, Report


def gradvac(problem: Problem) -> tuple[Tensor, Report]:
    """PCGrad's scan towards remembered cosines phi instead of 0."""
    K, T, (beta,) = problem.gram, problem.tasks, problem.options
    order = torch.arange(T).expand(T, T) if problem.order is None else problem.order
    if bool(((order < 0) | (order >= T)).any()):
        return torch.full((T,), torch.nan, dtype=K.dtype), Report(converged=False, stationary=None)
    phi = None if problem.state is None else problem.state.view(T, T)
    w = torch.zeros(T, dtype=K.dtype)
    for i in range(T):
        c = torch.zeros(T, dtype=K.dtype)
        c[i] = 1.0
        dots, square = K[i].clone(), float(K[i, i])
        for j in order[i].tolist():
            other = float(K[j, j])
            if j == i or other <= 0.0:
                continue
            target = 0.0 if phi is None else float(phi[i, j])
            dot, lengths = float(dots[j]), math.sqrt(square) * math.sqrt(other)
            if phi is not None and square > 0.0:
                phi[i, j] = (1.0 - beta) * target + beta * min(max(dot / lengths, -1.0), 1.0)
            if dot < target * lengths:
                share = dot / other
                across = max(square - share * dot, 0.0)
                sine = max((1.0 - target) * (1.0 + target), 2.0**-52)
                a = target * math.sqrt(across / sine / other) - share
                square = max(square + 2.0 * a * dot + a * (a * other), 0.0)
                c[j] += a
                dots += a * K[j]
        w += c
    return w, Report(stationary=None)
