"""CAGrad; see ``csrc/weights/cagrad.h``. options: c, factor; given: b, or None"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import ENOUGH, Quadratic, minimise, rounding_of, solve_active
from .problem import Problem, Reduced, Report


def cagrad(problem: Problem) -> tuple[Tensor, Report]:
    """The d within c |g_0| of the mean g_0 that gives the worst task most."""
    c, factor = problem.options
    T = problem.tasks
    b = torch.full((T,), 1.0 / T, dtype=torch.float64) if problem.given is None else problem.given
    reduced = Reduced.of(problem.gram)
    C, inverse = reduced.gram, 1 / reduced.scale
    mean = b[reduced.task] * reduced.scale
    progress, absolute = C @ mean, C.abs() @ mean
    square, unit = float(mean @ progress), rounding_of(len(mean))
    phi = c * max(square, 0.0) ** 0.5
    report = Report(stationary=not square > unit * float(mean @ absolute))
    zero_row = bool(((b > 0) & ~(problem.gram.diagonal() > 0)).any())
    zero = [0.0] if zero_row else []
    form = Quadratic(C)
    y = torch.zeros_like(mean)
    n = len(mean)
    found, again = not phi > 0 or bool(report.stationary), phi > 0 and not report.stationary
    while again:
        low = min([*(progress * reduced.scale).tolist(), *zero, torch.inf])
        high = min([*((progress + phi * form.C.diagonal().sqrt()) * reduced.scale).tolist(), *zero, torch.inf])
        at_most_zero, found, mu = zero_row and high == 0.0, False, high
        for turn in range(4 * n + 80):
            if found:
                break
            reached = minimise(form, mu * inverse - progress, abs(mu) * inverse + absolute)
            report.iterations += reached.iterations
            report.converged = reached.converged
            if not reached.bounded:
                high, at_most_zero, mu = (0.0, True, 0.0) if mu > 0 else (mu, at_most_zero, (low + mu) / 2)
                continue
            y = reached.y
            length, natural, total = float(y @ form.C @ y), float(y @ form.C.abs() @ y), float(y @ inverse)
            excess = length - phi * phi
            enough = abs(excess) <= (unit if turn < 2 * n + 40 else ENOUGH) * (natural + phi * phi)
            if (at_most_zero and mu == 0 and (enough or excess < 0)) or (enough and length <= unit * natural):
                report.stationary = found = True
                y = torch.zeros_like(mean)
                break
            if enough:
                found = True
                break
            low, high = (low, mu) if excess > 0 else (mu, high)
            curvature = _curvature(form.C, reached.active, inverse)
            discriminant = total * total - curvature * excess
            if total > 0:
                mu -= excess / (total + discriminant**0.5) if discriminant >= 0 else (length - phi * length**0.5) / total
            if total <= 0 or not low < mu < high:
                mu = (low + high) / 2
                found = not low < mu < high
        again = not (found and report.converged) and form.add_ridge()
    report.converged = report.converged and found
    return factor * (b + reduced.spread(y, T)), report


def _curvature(C: Tensor, active: list[int], inverse: Tensor) -> float:
    """Of uᵀKu / 2 in mu, on this active set."""
    a = solve_active(C, active, inverse)
    return 0.0 if a is None else float(a @ inverse[active])
