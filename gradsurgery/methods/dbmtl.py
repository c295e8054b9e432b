"""DB-MTL: moving averages of the gradients of log-losses, brought to one length."""

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
    "dbmtl",
    family="buffered",
    paper="Lin et al., Dual-Balancing for Multi-Task Learning, 2023 (arXiv:2308.12029)",
    properties=("permutation_equivariant", "weights_nonnegative"),
    degree=1.0,
    needs=("losses",),
)
@dataclass(frozen=True)
class DBMTL(BufferedMethod):
    """y_t ← g_t/L_t + β/k^σ (y_t − g_t/L_t); out = Σ w_t y_t with w_t = max_i ‖y_i‖ / ‖y_t‖ in step k.

    g_t/L_t is the gradient of log L_t: losses must be positive; others, with a gradient that is not zero, give NaN. A zero gradient
    counts as zero whatever its loss, and a zero y_t weighs nothing. y starts at zero; y and k are memory. The statistics'
    K is of the gradients; w combines the y. Without the 1e-8 that implementations add to losses and norms, scaling all gradients
    and nothing else scales the result. Under a gradient scaler tell the losses unscaled: the y then carry the loss scale, and for
    some steps after a change of it the old one, too.

    Options:
        beta: β, how much of the average is kept. With 0 there is none, but the buffers are kept all the same.
        beta_sigma: σ, how fast that decays.
    """

    beta: float = 0.9
    beta_sigma: float = 0.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, at_least=0, below=1)
        check_number("beta_sigma", self.beta_sigma, at_least=0)

    def task_numbers(self, tasks: int, device: torch.device) -> dict[str, Tensor]:
        return {"dbmtl_count": torch.zeros((), dtype=torch.float64, device=device)}

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
        scales = torch.where(arrived.diagonal() == 0, 0.0, 1.0 / losses)
        count = state["dbmtl_count"] + 1
        finite = arrived.isfinite().all() & (scales.isfinite() & (scales >= 0)).all()
        K = ops.ema_gram_(
            buffers, grads.entries, grads.tasks, grads.stacked, scales, 1.0 - self.beta * count**-self.beta_sigma, finite
        )
        valid = K.isfinite().all()
        norms = K.diagonal().sqrt()
        w = among(mask, torch.where(norms == 0, 0.0, norms.max() / norms), 0.0)
        remember(valid, None, state["dbmtl_count"], count)
        w = torch.where(valid, w, torch.nan)
        ops.combine_(out, buffers, w, True, accumulate)
        return Solution(arrived, w, combined=K)
