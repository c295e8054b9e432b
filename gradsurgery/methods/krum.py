"""Krum: average the tasks whose gradients lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradsurgery.options import MOST_TASKS, check_integer

from .preference import presence
from .registry import SolverMethod, Step, present_count, register


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

    T counts the tasks present, and must be at least f + 3 and m; one without gradient in this step is nobody's neighbour and is
    not kept. Of equal scores the first task wins, so that reordering tied tasks changes which are kept.

    Options:
        n_byzantine: f, how many tasks may be corrupt.
        n_selected: m, how many are averaged (multi-Krum for more than one).
    """

    solver = "krum"
    n_byzantine: int = 0
    n_selected: int = 1

    def __post_init__(self) -> None:
        check_integer("n_byzantine", self.n_byzantine, at_least=0, at_most=MOST_TASKS)
        check_integer("n_selected", self.n_selected, at_least=1, at_most=MOST_TASKS)

    def options(self, tasks: int, step: Step) -> list[float]:
        present = present_count(tasks, step)
        if self.n_byzantine + 3 > present or self.n_selected > present:
            raise ValueError(
                f"krum: expected at least n_byzantine + 3 and n_selected tasks with a gradient, found {present} tasks for "
                f"n_byzantine={self.n_byzantine}, n_selected={self.n_selected}."
            )
        return [float(self.n_byzantine), float(self.n_selected)]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        return presence(step, gram)
