"""Calls of the cross-Gram solvers whose iteration leaves the numbers, and from weights that are off the simplex."""

from __future__ import annotations

import torch
from ops.solver_calls import SolverCall

OPTIONS = {"modo": [0.1, 0.1], "sdmgrad": [0.3, 0.5, 20.0, 0.3]}


def call(name: str, A: list[list[float]], state: list[float], options: list[float] | None = None) -> SolverCall:
    """One call with memory."""
    matrix, memory = (torch.tensor(values, dtype=torch.float64) for values in (A, state))
    return SolverCall(matrix, name, options or OPTIONS[name], None, memory, None)


def overflowing(name: str) -> list[SolverCall]:
    """The moved point, or the memory, is not finite; K is."""
    A, w = [[1.0, 0.25, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.5, 0.25, 0.25]
    large = [[1e-200, 1e300, 0.0], [-1e300, 1e-200, 0.0], [0.0, 0.0, 1e-200]]
    return [
        call(name, A, w, [1e200, 1e200] if name == "modo" else [1e300, 0.5, 20.0, 1e300]),
        call(name, large, w, [1e200, 0.0] if name == "modo" else None),
        call(name, A, [0.5, torch.nan, 0.5]),
        call(name, A, [0.5, torch.inf, 0.5]),
    ]


def unbalanced(name: str) -> SolverCall:
    """Two tasks have shared all the weight, when a third one appears."""
    return call(name, [[1.0, 0.25, -0.5], [0.5, 2.0, 0.125], [-0.25, 0.0, 0.5]], [0.75, 0.25, 1 / 3])
