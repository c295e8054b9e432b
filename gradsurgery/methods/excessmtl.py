"""ExcessMTL: more weight for tasks that are far from what they can reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_number

from .buffered import BufferedMethod, among, present_mask, remember
from .registry import NO_STEP, Solution, Step, present_count, register


@register(
    "excessmtl",
    family="buffered",
    paper="He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024 (arXiv:2402.02009)",
    properties=("permutation_equivariant", "weights_nonnegative"),
    degree=1.0,
)
@dataclass(frozen=True)
class ExcessMTL(BufferedMethod):
    """w_t ∝ w_t exp(η e_t/e_t⁽⁰⁾) with e_t = Σ g_t²/√S_t, S_t ← S_t + g_t²; out = Σ w_t g_t.

    e_t estimates the excess risk by the diagonal of AdaGrad's curvature; e_t⁽⁰⁾ is the first that was not zero. The buffers hold
    √S, which has the range of the gradients; S, e⁽⁰⁾ and log w are memory, so that no weight gets too small to come back. No eps:
    a coordinate without any gradient so far adds nothing. A stateless call takes the first step, whose weights are all equal with
    init="ones". Absent tasks keep their weight, and weigh nothing in the step. Where η e/e⁽⁰⁾ is out of range the result is NaN,
    and the weights stay.

    Options:
        step: η of the weights.
        init: "ones": w starts at 1 and sums to the number of tasks present, and a task's first step counts e/e⁽⁰⁾ = 1 (LibMTL);
            "simplex": w starts at 1/T and sums to 1, and a task's first step counts e itself, which is not free of the gradients'
            scale (TorchJD).
    """

    step: float = 0.01
    init: Literal["ones", "simplex"] = "ones"

    def __post_init__(self) -> None:
        check_number("step", self.step, above=0)
        if self.init not in ("ones", "simplex"):
            raise ValueError(f"init: expected 'ones' or 'simplex', found {self.init!r}.")

    def task_numbers(self, tasks: int, device: torch.device) -> dict[str, Tensor]:
        start = 0.0 if self.init == "ones" else -math.log(tasks)
        return {
            "excess_log_weights": torch.full((tasks,), start, dtype=torch.float64, device=device),
            "excess_baseline": torch.zeros(tasks, dtype=torch.float64, device=device),
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
        mask = present_mask(grads, step)
        K = ops.gram(grads.entries, grads.tasks, grads.stacked)
        risk = ops.excess_risk_(buffers, grads.entries, grads.tasks, grads.stacked, K.isfinite().all())
        known, baseline = state["excess_log_weights"], state["excess_baseline"]
        relative = torch.where(baseline == 0, 1.0 if self.init == "ones" else risk, risk / baseline)
        total = float(present_count(grads.tasks, Step(present=grads.present))) if self.init == "ones" else 1.0
        moved = known + self.step * relative
        valid = risk.isfinite().all() & among(mask, moved, 0.0).isfinite().all()
        logs = math.log(total) + among(mask, moved, -torch.inf).log_softmax(0)
        w = torch.where(valid, logs.exp(), torch.nan)
        remember(valid, mask, known, logs)
        remember(valid, mask, baseline, torch.where(baseline == 0, risk, baseline))
        ops.combine_(out, grads.entries, w, grads.stacked, accumulate)
        return Solution(K, w)
