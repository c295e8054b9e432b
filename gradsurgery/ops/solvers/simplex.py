"""Projection onto the probability simplex; see ``csrc/weights/simplex.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Report


def project_simplex(v: Tensor) -> Tensor:
    """argmin |w - v|^2 over w >= 0, sum w = 1, by sorting; NaN where v is not finite. [n]"""
    if not bool(v.isfinite().all()):
        return torch.full_like(v, torch.nan)
    shifted = v - v.max()
    ordered = shifted.sort(descending=True).values
    thresholds = (ordered.cumsum(0) - 1.0) / torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)
    return (shifted - thresholds[ordered > thresholds][-1]).clamp_min(0.0)


def present_tasks(problem: Problem) -> Tensor:
    """Places of the tasks whose number in ``given`` is not zero; all without it. [n]"""
    numbers = torch.ones(problem.tasks, device="cpu") if problem.given is None else problem.given
    return numbers.nonzero()[:, 0]


def recall(problem: Problem, task: Tensor) -> Tensor:
    """The weights remembered of these tasks, brought onto their simplex; 1/n without memory. [n]"""
    if problem.state is None:
        return torch.full((len(task),), 1.0 / len(task), dtype=torch.float64, device="cpu")
    return project_simplex(problem.state[task])


def overflowed(problem: Problem, iterations: int) -> tuple[Tensor, Report]:
    """The answer where the iteration left the numbers."""
    return torch.full((problem.tasks,), torch.nan, dtype=torch.float64, device="cpu"), Report(False, iterations=iterations)
