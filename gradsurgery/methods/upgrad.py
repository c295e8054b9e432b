"""UPGrad: project each gradient on the dual cone of all of them, then average."""

from __future__ import annotations

from dataclasses import dataclass

from .dual_cone import DualConeMethod
from .registry import register


@register(
    "upgrad",
    family="gram",
    paper="Quinton & Rey, Jacobian Descent for Multi-Objective Optimization, 2024 (arXiv:2406.16232)",
    properties=(
        "permutation_equivariant",
        "linear_under_scaling",
        "non_conflicting",
        "mean_without_conflict",
        "weights_nonnegative",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class UPGrad(DualConeMethod):
    """Σ_i p_i π(g_i), π the projection on the cone {x : ⟨g_j, x⟩ >= 0 for every j}.

    π(g_i) = Gᵀv with v = argmin vᵀKv over v >= e_i, found exactly by an active-set method, without a ridge: the result conflicts
    with no task beyond rounding. (A K with negative curvature, which no gradients have, gets one of that size: it shows the errors
    of K.) w_i >= p_i. A zero gradient constrains nothing; it counts for the mean 1/T.

    Options:
        pref: p, one number >= 0 a task; None: 1/T with T the number of tasks present.
        reg_eps: ε of K / tr K + ε I in place of K; 0 is exact, TorchJD's default is 1e-4.
        norm_eps: the trace of K below which nothing is projected; 0 is scale-free, TorchJD's default is 1e-4.
    """

    solver = "upgrad"
