"""IMTL-G: the combination with the same projection on every task's gradient."""

from __future__ import annotations

from dataclasses import dataclass

from .registry import SolverMethod, register


@register(
    "imtlg",
    family="gram",
    paper="Liu et al., Towards Impartial Multi-Task Learning, ICLR 2021",
    properties=("permutation_equivariant", "zero_row_neutral", "one_task_identity", "duplicate_invariant_direction"),
    degree=1.0,
)
@dataclass(frozen=True)
class IMTLG(SolverMethod):
    """w = v / 1ᵀv with v = K⁺d, d_t = ‖g_t‖: Σ w_t = 1, and out has the same projection on every g_t / ‖g_t‖.

    Found as v = D⁻¹ C⁺ 1 from the cosines C = D⁻¹ K D⁻¹, which is the same while the gradients are linearly independent; where they
    are not (eigenvalues of C up to some 1e-14, or of the size of a negative one, which shows the errors of K;
    ``Statistics.status.rank`` tells), gradients' lengths still do not decide which of them count.

    Not a descent method: for T >= 3 the weights may be negative, and where 1ᵀv < 0 the result ascends every task's loss, as for
    [[−1, 0, 2], [−1, −1, 4], [−1, 1, 1]]. Where 1ᵀv is zero to rounding no such combination exists, and w = 0. Tasks with a zero
    gradient drop out.
    """

    solver = "imtlg"
