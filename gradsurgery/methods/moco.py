"""MoCo: multi-objective descent on moving averages of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_number

from .buffered import BufferedMethod, among, present_mask, remember
from .registry import NO_STEP, Solution, Step, register, required_losses


@register(
    "moco",
    family="buffered",
    paper="Fernando et al., Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach, ICLR 2023",
    properties=("permutation_equivariant", "weights_nonnegative", "weights_sum_to_one"),
    degree=0.0,
    needs=("losses",),
)
@dataclass(frozen=True)
class MoCo(BufferedMethod):
    """y_t ← y_t + β/k^σ (L_t g_t/‖g_t‖ − y_t); λ ← softmax(λ − γ/k^τ (YYᵀ + ρI) λ); out = Σ λ_t y_t in step k.

    As LibMTL writes it: the paper projects λ onto the simplex rather than applying the softmax, and does not normalise the
    gradients. λ starts at 1/T and y at zero; both, and k, are memory. A zero gradient counts as zero. With absent tasks the
    softmax is over those present, and the others keep their λ. The statistics' K is of the gradients; w combines the y.
    The size of the result is that of the losses and not of the gradients: under a gradient scaler, unscale the gradients first and
    call ``aggregate`` on them.

    Options:
        beta: β, the rate of the averages.
        beta_sigma: σ, how fast that decays.
        gamma: γ, the step of λ.
        gamma_sigma: τ, how fast that decays.
        rho: ρ, weight decay of λ.
    """

    beta: float = 0.5
    beta_sigma: float = 0.5
    gamma: float = 0.1
    gamma_sigma: float = 0.5
    rho: float = 0.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0, at_most=1)
        check_number("beta_sigma", self.beta_sigma, at_least=0)
        check_number("gamma", self.gamma, at_least=0)
        check_number("gamma_sigma", self.gamma_sigma, at_least=0)
        check_number("rho", self.rho, at_least=0)

    def task_numbers(self, tasks: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "moco_lambda": torch.full((tasks,), 1.0 / tasks, dtype=torch.float64, device=device),
            "moco_count": torch.zeros((), dtype=torch.float64, device=device),
        }

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        state, buffers = self.begin(grads, step, bool(groups))
        losses, mask = required_losses(self, step), present_mask(grads, step)
        arrived = ops.gram(grads.entries, grads.tasks, grads.stacked)
        norms = arrived.diagonal().sqrt()
        scales = torch.where(norms == 0, 0.0, losses / norms)
        count = state["moco_count"] + 1
        finite = arrived.isfinite().all() & scales.isfinite().all()
        K = ops.ema_gram_(buffers, grads.entries, grads.tasks, grads.stacked, scales, self.beta * count**-self.beta_sigma, finite)
        valid = K.isfinite().all()
        old = among(mask, state["moco_lambda"], 0.0)
        descent = K @ old + self.rho * old
        w = among(mask, old - self.gamma * count**-self.gamma_sigma * descent, -torch.inf).softmax(0)
        remember(valid, mask, state["moco_lambda"], w)
        remember(valid, None, state["moco_count"], count)
        ops.combine_(out, buffers, w, True, accumulate)
        return Solution(arrived, w, combined=K)
