"""UPGrad and DualProj; see ``csrc/weights/dual_cone.h``. options: p, norm_eps, reg_eps; given: p, or None"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import Quadratic, minimise, rounding_of
from .problem import Problem, Reduced, Report


def upgrad(problem: Problem) -> tuple[Tensor, Report]:
    """The sum of the projections of every p_i g_i on the dual cone."""
    reduced, preference = Reduced.of(problem.gram), _preference(problem)
    return _projected(problem, reduced, preference, torch.diag(preference[reduced.task] * reduced.scale))


def dualproj(problem: Problem) -> tuple[Tensor, Report]:
    """The projection of sum_i p_i g_i on the dual cone."""
    reduced, preference = Reduced.of(problem.gram), _preference(problem)
    return _projected(problem, reduced, preference, (preference[reduced.task] * reduced.scale)[None])


def _preference(problem: Problem) -> Tensor:
    return torch.full_like(problem.gram[0], problem.options[0]) if problem.given is None else problem.given


def _projected(problem: Problem, reduced: Reduced, preference: Tensor, combinations: Tensor) -> tuple[Tensor, Report]:
    """The sum of the projections of the combinations Gᵀu, u the rows of ``combinations`` [R, n]."""
    _, norm_eps, reg_eps = problem.options
    trace = problem.gram.trace()
    C = reduced.gram + torch.diag(reg_eps * trace / reduced.scale / reduced.scale)
    projected = [u for u in combinations if u.any()] if trace >= norm_eps else []
    form = Quadratic(C)
    # z >= 0 with which u + z is the projection of u; no ray, for sum_i d_i g_i = 0 leaves the objective as it is
    found = [minimise(form, -(C @ u), C.abs() @ u, rays=False) for u in projected]
    vanishes = [_is_null(C, u + each.y) for u, each in zip(projected, found, strict=True)]
    z = sum((each.y for each in found), torch.zeros_like(reduced.scale))
    report = Report(all(each.converged for each in found), any(vanishes), iterations=sum(each.iterations for each in found))
    return preference + reduced.spread(z, problem.tasks), report


def _is_null(C: Tensor, v: Tensor) -> bool:
    """Whether the gradients combined by v >= 0 vanish as far as K can tell."""
    return bool(v @ C @ v <= rounding_of(len(v)) * (v @ C.abs() @ v))
