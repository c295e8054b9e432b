"""Constant: weights that the user chose, the baseline that tuning has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .preference import beside, check_count, checked_numbers
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
            object.__setattr__(self, "weights", checked_numbers(self.weights, "weights", -math.inf))

    def solve(self, gram: Tensor, step: Step = NO_STEP) -> Solution:
        check_gram(gram)
        if self.weights is None:
            return Solution(gram, gram.new_ones(gram.shape[:-1]))
        check_count(self.weights, "weights", gram.shape[-1])
        w = beside(gram, self.weights)  # type: ignore[arg-type]  # a tuple of numbers since __post_init__
        return Solution(gram, w.expand(gram.shape[:-1]).contiguous())
