"""Nash-MTL; see ``csrc/weights/nashmtl.h``. options: max_norm (0: no clip)"""

from __future__ import annotations

import math

from torch import Tensor

from .newton import solve_fair
from .problem import Problem, Reduced, Report


def nashmtl(problem: Problem) -> tuple[Tensor, Report]:
    """K w = 1 / w, w > 0, times min(1, max_norm / |sum_t w_t g_t|)."""
    max_norm = problem.options[0]
    reduced = Reduced.of(problem.gram)
    v, report = solve_fair(reduced, 1.0)
    square = float(len(v))
    if report.stationary or not report.converged:
        square = max(float(v @ reduced.gram @ v), 0.0)
    norm = math.sqrt(square)
    if 0.0 < max_norm < norm:
        v = v * (max_norm / norm)
    return reduced.spread(v, problem.tasks), report
