"""MGDA; see ``csrc/weights/mgda.h``. options: norms, leave zeros out; given: factors of the normalisers"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import Quadratic, minimise, rounding_of
from .problem import Problem, Reduced, Report


def mgda(problem: Problem) -> tuple[Tensor, Report]:
    """The shortest vector in the convex hull of the normalised gradients."""
    norms, ignore = (bool(option) for option in problem.options)
    K, T = problem.gram, problem.tasks
    factor = torch.ones_like(K[0]) if problem.given is None else problem.given
    zero = ~(K.diagonal() > 0)
    blocking = zero & ~factor.isnan()
    if bool((~zero & ~((factor > 0) & factor.isfinite())).any()):
        return torch.full_like(factor, torch.nan), Report(converged=False)
    if bool(blocking.any()) and not ignore:
        return blocking / blocking.sum().to(K), Report(stationary=True)
    reduced = Reduced.of(K)
    C = reduced.gram
    b = factor[reduced.task] * (C.diagonal().sqrt() if norms else 1 / reduced.scale)
    form = Quadratic(C)
    found = minimise(form, b, b, positive=True)
    y = found.y
    vanishes = bool(b @ y - form.ridge * (y.square() @ C.diagonal()) <= rounding_of(len(b)) * (y @ C.abs() @ y))
    report = Report(found.converged, len(b) > 0 and (vanishes or not found.bounded), iterations=found.iterations)
    return reduced.spread(y / (b @ y), T), report
