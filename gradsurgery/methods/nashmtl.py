"""Nash-MTL: the tasks' bargaining solution."""

from __future__ import annotations

from dataclasses import dataclass

from gradsurgery.options import check_number

from .registry import SolverMethod, Step, register


@register(
    "nashmtl",
    family="gram",
    paper="Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022 (arXiv:2202.01017)",
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
class NashMTL(SolverMethod):
    """K w = 1 / w, w > 0; then w ← w·min(1, max_norm / ‖Σ w_t g_t‖).

    Solved to rounding at every step, for it costs microseconds, so that weights need not be kept for several steps. Before the
    clip ‖Σ_t w_t g_t‖² is the number of tasks with a gradient that is not zero: the clip to 1 always acts, and the result has
    unit length. Every task improves, and only the directions of the gradients count.

    Tasks with a zero gradient get w = 0. Where a convex combination of the gradients is zero to rounding, the status says
    stationary, and the weights are those of ``fairgrad``.

    Options:
        max_norm: the longest combined gradient, in the units of the gradients; 0 for no clip.
    """

    solver = "nashmtl"
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, at_least=0)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.max_norm)]
