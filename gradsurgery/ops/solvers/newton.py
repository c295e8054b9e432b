"""K w = w^(-1/alpha), w > 0, by a damped Newton method; see ``csrc/weights/newton.h``, whose names these are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Reduced, Report

_STEPS, _LINE_STEPS = 200, 40
_ROUNDING = 2.0**-52
_RESIDUAL, _POLISHED = 2.0**-40, 2.0**-48
_RIDGE = 2.0**-36
_SUSPICIOUS = 2.0**-26


def solve_fair(reduced: Reduced, p: float) -> tuple[Tensor, Report]:
    """v = D w of the fair weights w for p = 1/alpha. [n]"""
    if len(reduced.task) == 0:
        return torch.zeros(0, dtype=reduced.gram.dtype), Report(stationary=True)
    v, report, curvature = _newton(reduced, p)
    if p != 1.0 and not report.stationary and (not report.converged or curvature < _SUSPICIOUS):
        _, decided, _ = _newton(reduced, 1.0)  # whether a combination vanishes does not depend on p
        report.iterations += decided.iterations
        report.stationary = decided.stationary
        report.converged = report.converged and not decided.stationary
    if report.stationary:
        ridge = _RIDGE
        while not report.converged and ridge < 1.0:
            v, ridged, _ = _newton(Reduced(reduced.gram + ridge * reduced.gram.diagonal().diag(), reduced.scale, reduced.task), p)
            report.iterations += ridged.iterations
            report.converged = ridged.converged
            ridge *= 256.0
    return v, report


def _newton(reduced: Reduced, p: float) -> tuple[Tensor, Report, float]:
    """(v, report, least t_i / (A_ii v_i))"""
    A, d = reduced.gram, reduced.scale
    n, squares = len(A), A.diagonal()
    unit = d ** ((p - 1.0) / (p + 1.0)) * squares ** (-1.0 / (p + 1.0))
    v, last, curvature = unit.clone(), math.inf, math.inf
    for iteration in range(_STEPS):
        image, target = A @ v, squares * unit * (v / unit) ** -p
        error = (image - target).abs() / target
        slack = n * _ROUNDING * (A.abs() @ v) / target
        curvature = _least(target / (squares * v))
        reach = float(v @ squares.sqrt())
        if not float(v @ image) > 16.0 * n * _ROUNDING * reach**2:
            return v, Report(converged=False, stationary=True, iterations=iteration), curvature
        if bool((error <= _RESIDUAL + slack).all()):
            worst = -_least(-error)
            if worst <= _POLISHED or worst > 0.5 * last:
                return v, Report(iterations=iteration), curvature
            last = worst
        step = _direction(A, p * target / v, target - image)
        relative = step / v
        lowest = _least(relative)
        border = -1.0 / lowest if lowest < 0.0 else math.inf
        if _least(-relative.abs()) < -0.125:
            step = step * _length(A, p, unit, v, image, step, border)
        v = v + step
    return v, Report(converged=False, iterations=_STEPS), curvature


def _least(values: Tensor) -> float:
    return float(values.min())


def _direction(A: Tensor, bend: Tensor, downhill: Tensor) -> Tensor:
    """(A + H)^-1 (t - A v), with as much added to the diagonal as a factor takes. [n]"""
    shift = 0.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(A + torch.diag(bend + shift * A.diagonal()))
        if not int(failed) or shift > len(A):
            return torch.cholesky_solve(downhill[:, None], factor)[:, 0]
        shift = 16.0 * shift or len(A) * _ROUNDING


def _length(A: Tensor, p: float, unit: Tensor, v: Tensor, image: Tensor, step: Tensor, border: float) -> float:
    """Where the derivative along the step has lost three quarters of its size, or up to .99 of the way to the border."""
    squares = A.diagonal()
    across, along = float(step @ image), float(step @ (A @ step))
    start = across - float(step @ (squares * unit * (v / unit) ** -p))
    low, high = 0.0, 0.99 * border
    length = min(high, 1.0)
    for _ in range(_LINE_STEPS):
        there = v + length * step
        target = squares * unit * (there / unit) ** -p
        slope = across + length * along - float(target @ step)
        bend = along + float((p * target / there) @ step.square())
        if abs(slope) <= 0.25 * abs(start) or (slope < 0.0 and length >= high):
            break
        if slope < 0.0:
            low = length
        else:
            high = length
        following = length - slope / bend if bend else math.inf
        if low < following < high and following <= 8.0 * length:
            length = following
        else:
            length = 0.5 * (low + high) if high < 8.0 * length else 8.0 * length
    return length
