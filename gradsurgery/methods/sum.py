"""Sum: the plain multi-task gradient, every method's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .registry import NO_STEP, Method, Step, register


@register(
    "sum",
    family="scalarization",
    paper="equal weights",
    properties=(
        "permutation_equivariant",
        "linear_under_scaling",
        "sum_without_conflict",
        "weights_at_least_one",
        "weights_nonnegative",
        "zero_row_neutral",
        "one_task_identity",
        "duplicate_invariant_direction",
    ),
    degree=1.0,
)
@dataclass(frozen=True)
class Sum(Method):
    """w_t = 1."""

    def weights(self, gram: Tensor, step: Step = NO_STEP) -> Tensor:
        return gram.new_ones(gram.shape[-1])
