"""FairGrad: weights under which the tasks' improvements are alpha-fair."""

from __future__ import annotations

from dataclasses import dataclass

from gradsurgery.options import check_number

from .registry import SolverMethod, Step, register


@register(
    "fairgrad",
    family="gram",
    paper="Ban & Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024 (arXiv:2402.15638)",
    properties=(
        "permutation_equivariant",
        "direction_invariant_to_row_scaling",
        "non_conflicting",
        "weights_nonnegative",
        "zero_row_neutral",
        "duplicate_invariant_direction",
    ),
    degree=0.0,
)
@dataclass(frozen=True)
class FairGrad(SolverMethod):
    """K w = w^(−1/α), w > 0, elementwise.

    Every task improves: g_i·Σ_t w_t g_t = w_i^(−1/α) > 0, and ‖Σ_t w_t g_t‖² = Σ_t w_t^(1−1/α), the number of tasks for α = 1.
    A(s G) = s^((1−α)/(1+α)) A(G). α -> 0 gives the sum; α = 1 is proportional fairness, for which only the directions of the
    gradients count; for α -> ∞ the least improvement is the largest (MGDA's direction). Nothing clips the result; ``nashmtl``
    is α = 1 with a clip.

    Tasks with a zero gradient get w = 0. Where a convex combination of the gradients is zero to rounding, no direction improves
    all tasks and the equation has no solution: the status says stationary, and the weights solve the equation with K_ii
    (1 + 2^-36) in place of K_ii (more, where K is more indefinite than that from rounding), by which the tasks in that combination
    come to (nearly) no change and the others improve.

    Options:
        alpha: α > 0.
    """

    solver = "fairgrad"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.alpha)]
