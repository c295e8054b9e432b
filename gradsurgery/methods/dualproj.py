"""DualProj: project the mean gradient on the dual cone of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from .dual_cone import DualConeMethod
from .registry import register


@register(
    "dualproj",
    family="gram",
    paper="Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017 (arXiv:1706.08840)",
    properties=(
        "permutation_equivariant",
        "non_conflicting",
        "mean_without_conflict",
        "weights_nonnegative",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class DualProj(DualConeMethod):
    """π(Σ_i p_i g_i), π the projection on the cone {x : ⟨g_j, x⟩ >= 0 for every j}.

    The result is Gᵀw with w = argmin wᵀKw over w >= p, found exactly by an active-set method, without a ridge: it conflicts with no
    task beyond rounding. (A K with negative curvature, which no gradients have, gets one of that size: it shows the errors of K.)
    A zero gradient constrains nothing; it counts for the mean 1/T.

    Options:
        pref: p, one number >= 0 a task; None: 1/T with T the number of tasks present.
        reg_eps: ε of K / tr K + ε I in place of K; 0 is exact, TorchJD's default is 1e-4.
        norm_eps: the trace of K below which nothing is projected; 0 is scale-free, TorchJD's default is 1e-4.
    """

    solver = "dualproj"
