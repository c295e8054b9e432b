"""Mean: the sum over the number of tasks present."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .registry import NO_STATE, Method, State, check_gram, register


@register(
    "mean",
    family="scalarization",
    paper="equal weights",
    properties=("permutation_equivariant", "homogeneous", "linear_under_scaling"),
)
@dataclass(frozen=True)
class Mean(Method):
    """w_t = 1/T, with T the number of tasks present."""

    def weights(self, gram: Tensor, state: State = NO_STATE, present: Sequence[bool] | None = None) -> Tensor:
        check_gram(gram)
        T = gram.shape[0]
        return gram.new_full((T,), 1.0 / (T if present is None else sum(present)))
