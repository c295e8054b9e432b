"""MoDo: one projected gradient step of the weights on a cross-Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

from gradsurgery.options import check_number

from .cross import CrossMethod
from .registry import Step, register


@register(
    "modo",
    family="cross",
    paper="Chen et al., Three-Way Trade-Off in Multi-Objective Learning, NeurIPS 2023 (arXiv:2305.20057)",
    properties=("permutation_equivariant", "weights_nonnegative", "weights_sum_to_one", "one_task_identity"),
    needs=("against",),
)
@dataclass(frozen=True)
class MoDo(CrossMethod):
    """w ← Π_Δ(w − γ (A w + ρ w)), once a step from the w before.

    w starts at 1/T and is memory. γ counts in the units of 1/‖g‖², so that the size of the gradients matters, as in the paper.

    Options:
        gamma: γ, the step of the weights.
        rho: ρ, weight decay of the weights.
    """

    solver = "modo"
    state_name = "modo_weights"
    gamma: float = 0.1
    rho: float = 0.1

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, above=0)
        check_number("rho", self.rho, at_least=0)

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.gamma), float(self.rho)]
