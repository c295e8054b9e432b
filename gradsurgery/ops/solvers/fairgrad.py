"""FairGrad; see ``csrc/weights/fairgrad.h``. options: alpha"""

from __future__ import annotations

from torch import Tensor

from .newton import solve_fair
from .problem import Problem, Reduced, Report


def fairgrad(problem: Problem) -> tuple[Tensor, Report]:
    """K w = w^(-1/alpha), w > 0."""
    reduced = Reduced.of(problem.gram)
    v, report = solve_fair(reduced, 1.0 / problem.options[0])
    return reduced.spread(v, problem.tasks), report
