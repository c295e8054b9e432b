"""Mean: the sum over the number of tasks present."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .registry import NO_STEP, Method, Step, present_count, register


@register(
    "mean",
    family="scalarization",
    paper="equal weights",
    properties=(
        "permutation_equivariant",
        "linear_under_scaling",
        "mean_without_conflict",
        "weights_nonnegative",
        "weights_sum_to_one",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class Mean(Method):
    """w_t = 1/T, with T the number of tasks present."""

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        T = gram.shape[-1]
        return gram.new_full((T,), 1.0 / present_count(T, step))
