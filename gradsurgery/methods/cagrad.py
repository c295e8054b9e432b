"""CAGrad: the direction near the mean gradient that serves the worst task best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gradsurgery.options import check_choice, check_number

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
        c: how far from the mean, relative to its length; 0 <= c <= 1e150.
        rescale: 0: d as in the paper, 1: d / (1 + c²), 2: d / (1 + c).
    """

    solver = "cagrad"
    c: float = 0.5
    rescale: Literal[0, 1, 2] = 0

    def __post_init__(self) -> None:
        check_number("c", self.c, at_least=0, at_most=1e150)  # beyond, c² has no float64
        check_choice("rescale", self.rescale, (0, 1, 2))

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.c), 1.0 / (1.0, 1.0 + float(self.c) ** 2, 1.0 + self.c)[self.rescale]]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return None if is_complete(step) else beside(gram, equal_shares(gram.shape[-1], step))
