"""Krum: average the tasks whose gradients lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from .registry import SolverMethod, Step, register


@register(
    "krum",
    family="gram",
    paper="Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017",
    properties=("weights_nonnegative", "weights_sum_to_one"),
    degree=1.0,
)
@dataclass(frozen=True)
class Krum(SolverMethod):
    """w_t = 1/m for the m tasks of the smallest Σ ‖g_t − g_j‖² over their T − f − 2 nearest others j, 0 for the rest.

    Needs T >= f + 3 and T >= m. A task without gradient counts as a zero gradient. Of equal scores the first task wins, so
    that reordering tied tasks changes which are kept.

    Options:
        n_byzantine: f, how many tasks may be corrupt.
        n_selected: m, how many are averaged (multi-Krum for more than one).
    """

    solver = "krum"
    n_byzantine: int = 0
    n_selected: int = 1

    def __post_init__(self) -> None:
        if self.n_byzantine < 0:
            raise ValueError(f"n_byzantine: expected a number >= 0, found {self.n_byzantine}.")
        if self.n_selected < 1:
            raise ValueError(f"n_selected: expected a number >= 1, found {self.n_selected}.")

    def options(self, tasks: int, step: Step) -> list[float]:
        needed = max(self.n_byzantine + 3, self.n_selected)
        if tasks < needed:
            raise ValueError(
                f"krum: expected at least {needed} tasks for n_byzantine={self.n_byzantine} and n_selected={self.n_selected}, "
                f"found {tasks}."
            )
        return [float(self.n_byzantine), float(self.n_selected)]
