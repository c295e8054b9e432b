"""MGDA: the shortest vector in the convex hull of the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradsurgery.options import check_bool, check_choice

from .preference import beside, is_complete
from .registry import SolverMethod, Step, register, required_losses


@register(
    "mgda",
    family="gram",
    paper="Désidéri, Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization, Comptes Rendus Mathématique 2012; "
    "Sener & Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018 (arXiv:1810.04650)",
    properties=(
        "permutation_equivariant",
        "non_conflicting",
        "weights_nonnegative",
        "weights_sum_to_one",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class MGDA(SolverMethod):
    """min_w ‖Σ w_i g_i‖² over w >= 0, Σ w_i = 1.

    ⟨g_i, out⟩ >= ‖out‖² for every task, with equality where w_i > 0. The minimum is exact (an active-set method, not Frank-Wolfe):
    wᵀKw − min_i (Kw)_i is zero to rounding. Where some convex combination of the gradients vanishes, ``out`` is that zero, and the
    status says stationary; its w need not be the only one.

    With a normaliser γ the hull is that of g_i / γ_i, and these are what is combined: w_i γ_i >= 0 sums to one. A present task
    whose gradient is zero blocks all others, with or without a normaliser: w = 1 on it (shared equally by several), ``out`` = 0. A
    task without gradient in this step is left out.

    Options:
        gn: the normaliser γ_i: "none" (1), "l2" (‖g_i‖), "loss" (L_i) or "loss+" (L_i ‖g_i‖). Losses must be positive and finite,
            else w is NaN.
        ignore_zero_rows: leave present tasks with a zero gradient out, too.
    """

    solver = "mgda"
    gn: Literal["none", "l2", "loss", "loss+"] = "none"
    ignore_zero_rows: bool = False

    def __post_init__(self) -> None:
        check_choice("gn", self.gn, ("none", "l2", "loss", "loss+"))
        check_bool("ignore_zero_rows", self.ignore_zero_rows)

    @property
    def needs(self) -> frozenset[str]:
        """The losses, where they normalise."""
        return frozenset({"losses"} if self.gn in ("loss", "loss+") else ())

    def options(self, tasks: int, step: Step) -> list[float]:
        return [float(self.gn in ("l2", "loss+")), float(self.ignore_zero_rows)]

    def given(self, gram: Tensor, step: Step) -> Tensor | None:
        T = gram.shape[-1]
        factors = required_losses(self, step) if "losses" in self.needs else None
        if step.present is None or is_complete(step):
            return factors
        if factors is None:
            return beside(gram, [1.0 if present else torch.nan for present in step.present])
        factors = factors.clone()
        for t in range(T):
            if not step.present[t]:
                factors[t].fill_(torch.nan)
        return factors
