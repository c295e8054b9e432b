"""PCD: follow one task, and give every other a small guaranteed share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import MOST_TASKS, check_integer, check_number

from .preference import beside, check_count, checked_numbers, is_complete
from .registry import SolverMethod, Step, register


@register(
    "pcd",
    family="gram",
    paper="Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective Optimization, "
    "TMLR 2026 (arXiv:2606.29521)",
    properties=("weights_nonnegative", "one_task_identity"),
)
@dataclass(frozen=True)
class PCD(SolverMethod):
    """min_d ½‖d − g̃_p‖² subject to ⟨g̃_j, d⟩ >= τ_j ‖g̃_j‖² for j ≠ p; then d at the length of g_p.

    g̃_i = g_i / √(v̂_i + ε), where v̂_i is the bias-corrected moving average of ‖g_i‖² over the steps in which task i was present
    (without memory: ‖g_i‖² itself). The program is solved exactly by an active-set method. Constraints that no d satisfies together
    are dropped, and the result is g_p. Where the only secondary gradient is exactly opposed to the primary's and its τ_j > 0, d is
    −g_p times a positive factor, and the result −g_p: the constraint wins over the primary task. Where d vanishes to rounding, the
    result is zero; the status says stationary of that, and of constraints that were dropped. The result is zero, too, where the
    primary task has a zero gradient or none. A zero or absent gradient constrains nothing.

    Options:
        tau: τ_j in [0, 1], the share of the progress along its own gradient that a secondary task is guaranteed: one for all, or
            one number a task, of which the primary's is not used.
        beta: decay of the moving averages, in [0, 1).
        eps: ε >= 0; with 0 the result does not depend on the scale of any secondary gradient.
        primary: index of the primary task.
    """

    solver = "pcd"
    state_name = "square_norms"
    tau: float | Sequence[float] | Tensor = 0.02
    beta: float = 0.999
    eps: float = 1e-8
    primary: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.tau, (tuple, list, Tensor)):
            object.__setattr__(self, "tau", checked_numbers("tau", self.tau, at_least=0, at_most=1))
        else:
            check_number("tau", self.tau, at_least=0, at_most=1)
        check_number("beta", self.beta, at_least=0, below=1)
        check_number("eps", self.eps, at_least=0)
        check_integer("primary", self.primary, at_least=0, at_most=MOST_TASKS)

    def task_state(self, grads: TaskGradients, groups: int = 1) -> dict[str, Tensor]:
        """(moving average of ‖g_i‖², steps in it) for every task. [T, 2], or [G, T, 2] for several groups"""
        shape = (grads.tasks, 2) if groups == 1 else (groups, grads.tasks, 2)
        return {"square_norms": torch.zeros(shape, dtype=torch.float64, device=grads.device)}

    def options(self, tasks: int, step: Step) -> list[float]:
        if self.primary >= tasks:
            raise ValueError(f"primary: expected the index of one of {tasks} tasks, found {self.primary}.")
        shared = self.tau if isinstance(self.tau, (int, float)) else 0.0
        return [float(shared), float(self.beta), float(self.eps), float(self.primary)]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        T = gram.shape[-1]
        if isinstance(self.tau, (int, float)):
            if is_complete(step):
                return None
            taus = [float(self.tau)] * T
        else:
            check_count("tau", self.tau, T)
            taus = list(self.tau)
        if step.present is not None:
            taus = [tau if present else torch.nan for tau, present in zip(taus, step.present, strict=True)]
        return beside(gram, taus)
