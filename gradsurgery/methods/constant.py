"""Constant: weights that the user chose, the baseline that tuning has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .preference import checked_numbers, given
from .registry import NO_STEP, Method, Solution, Step, check_gram, register


@register(
    "constant",
    family="scalarization",
    paper="given weights",
    properties=("linear_under_scaling",),
    degree=1.0,
)
@dataclass(frozen=True)
class Constant(Method):
    """w_t = weights_t.

    Options:
        weights: a number a task, of any sign; None: ones. [T]
    """

    weights: Sequence[float] | Tensor | None = None  # type: ignore[assignment]  # the option's name; ``solve`` alone calls what it hides

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", checked_numbers("weights", self.weights))

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        w = given("weights", self.weights, gram)
        if w is None:
            return Solution(gram, gram.new_ones(gram.shape[:-1]))
        return Solution(gram, w.expand(gram.shape[:-1]).contiguous())
