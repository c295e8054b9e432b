"""PCGrad: project each task's gradient off those it conflicts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import check_bool, check_choice

from .orders import Order, arrange, check_order, initial_key
from .registry import NO_STEP, Method, Solution, Step, check_gram, present_count, register


@register(
    "pcgrad",
    family="gram",
    paper="Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020 (arXiv:2001.06782)",
    properties=(
        "linear_under_scaling",
        "sum_without_conflict",
        "weights_at_least_one",
        "weights_nonnegative",
        "zero_row_neutral",
        "one_task_identity",
    ),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class PCGrad(Method):
    """g_i ← g_i − (g_i·g_j / ‖g_j‖²) g_j wherever g_i·g_j < 0, j in a random order for each i; then Σ g_i.

    Computed in Gram space: T scans over K instead of T^2 passes over the gradients, and the same to rounding. Tasks with a zero
    gradient neither project nor are projected on. Not non-conflicting for T >= 3.

    Options:
        order: "random", an independent order for each task and step, as in the paper; "ascending"; or an int64 tensor [T, T] whose
            row i is the order in which task i meets the others.
        include_self: also meet j = i, as the authors' and several other implementations do; the paper does not.
        reduction: "sum" (the paper), or "mean" over the tasks present.
        seed: of the random orders of a ``GradientAggregator``, whose state is (seed, step). Without state (``gradsurgery.weights``,
            ``gradsurgery.aggregate``) None draws from torch's default generator; an integer gives the order of its step 0.
    """

    order: Order = "random"
    include_self: bool = False
    reduction: Literal["sum", "mean"] = "sum"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_order(self.order, self.seed)
        check_bool("include_self", self.include_self)
        check_choice("reduction", self.reduction, ("sum", "mean"))

    def initial_state(self) -> dict[str, Tensor]:
        """The counter (seed, step) behind the random orders."""
        return initial_key(self.order, self.seed)

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        check_gram(gram)
        order, key = self._arrange(gram.shape[-1], gram.device, step.state.get("key"))
        return ops.pcgrad_weights(gram.contiguous(), order, key, self.include_self, self._scale(gram.shape[-1], step))

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        return Solution(gram, self.weights(gram, step))  # of all groups at once, each with an order of its own

    def surgery_(
        self,
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step = NO_STEP,
        groups: Sequence[int] = (),
        accumulate: bool = False,
    ) -> Solution:
        if groups:
            return super().surgery_(out, grads, step, groups, accumulate)
        return self._fused_(ops.pcgrad_, out, grads, step, accumulate)

    def samples_surgery_(
        self, out: Sequence[Tensor], grads: TaskGradients, step: Step = NO_STEP, accumulate: bool = False
    ) -> Solution:
        return self._fused_(ops.pcgrad_samples_, out, grads, step, accumulate)

    def _fused_(
        self,
        operator: Callable[..., tuple[Tensor, Tensor]],
        out: Sequence[Tensor],
        grads: TaskGradients,
        step: Step,
        accumulate: bool,
    ) -> Solution:
        T = grads.tasks
        order, key = self._arrange(T, grads.device, step.state.get("key"))
        scale = 1.0 if self.reduction == "sum" else 1.0 / sum(grads.present if step.present is None else step.present)
        K, w = operator(out, grads.entries, T, grads.stacked, order, key, self.include_self, scale, accumulate)
        return Solution(K, w)

    def small_weights(self, gram: Any) -> Tensor | None:
        problem = ops.small_gram(gram)
        if problem is None:
            return None
        T = problem[1]
        order, key = arrange(self.order, self.seed, T, _CPU, None)
        return ops.weights_of_small_gram(problem, order, key, self.include_self, 1.0 if self.reduction == "sum" else 1.0 / T)

    def small_matrix_(self, out: Any, grads: Tensor) -> bool:
        problem = ops.small_matrix(out, grads)
        if problem is None:
            return False
        T = problem[2]
        order, key = arrange(self.order, self.seed, T, _CPU, None)
        scale = 1.0 if self.reduction == "sum" else 1.0 / T
        ops.pcgrad_small_(problem, out, order, key, self.include_self, scale)
        return True

    def _scale(self, tasks: int, step: Step) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / present_count(tasks, step)

    def _arrange(self, tasks: int, device: torch.device, key: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return arrange(self.order, self.seed, tasks, device, key)


_CPU = torch.device("cpu")
