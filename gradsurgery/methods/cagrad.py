"""CAGrad: the direction near the mean gradient that serves the worst task best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .preference import beside, equal_shares, is_complete
from .registry import SolverMethod, Step, register


@register(
    "cagrad",
    family="gram",
    paper="Liu et al., Conflict-Averse Gradient Descent for Multi-Task Learning, NeurIPS 2021 (arXiv:2110.14048)",
    properties=("permutation_equivariant", "weights_nonnegative"),
    degree=1.0,
)
@dataclass(frozen=True)
class CAGrad(SolverMethod):
    """max_d min_i ⟨g_i, d⟩ over ‖d − g₀‖ <= c ‖g₀‖, with g₀ = Σ g_i / T.

    d = g₀ + λ Σ w_i g_i, with w in the simplex and ‖d − g₀‖ = c ‖g₀‖; exact, by a search over active sets. c >= 1 conflicts with no
    task; a smaller c may, even with two tasks. Where g_w = Σ w_i g_i of the best w is zero (a Pareto-stationary point, or a present
    task with a zero gradient that decides), the formula is 0/0: the result is g₀, and the status says stationary. Means are over
    the tasks present; one without gradient in this step is left out.

    Options:
        c: how far from the mean, relative to its length. >= 0
        rescale: 0: d as in the paper, 1: d / (1 + c²), 2: d / (1 + c).
    """

    solver = "cagrad"
    c: float = 0.5
    rescale: Literal[0, 1, 2] = 0

    def __post_init__(self) -> None:
        if isinstance(self.c, bool) or not isinstance(self.c, (int, float)) or not 0 <= self.c < math.inf:
            raise ValueError(f"c: expected a finite number >= 0, found {self.c!r}.")
        if self.rescale not in (0, 1, 2):
            raise ValueError(f"rescale: expected 0, 1 or 2, found {self.rescale!r}.")

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.c), 1.0 / (1.0, 1.0 + self.c**2, 1.0 + self.c)[self.rescale]]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return None if is_complete(step) else beside(gram, equal_shares(gram.shape[-1], step))
