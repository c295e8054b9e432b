"""Sum: the plain multi-task gradient, every method's baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .registry import NO_STATE, Method, State, check_gram, register


@register(
    "sum",
    family="scalarization",
    paper="equal weights",
    properties=(
        "permutation_equivariant",
        "homogeneous",
        "linear_under_scaling",
        "sum_without_conflict",
        "weights_at_least_one",
        "zero_row_neutral",
    ),
)
@dataclass(frozen=True)
class Sum(Method):
    """w_t = 1."""

    def weights(self, gram: Tensor, state: State = NO_STATE, present: Sequence[bool] | None = None) -> Tensor:
        check_gram(gram)
        return gram.new_ones(gram.shape[0])
