"""Median: the middle task decides, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .coordinatewise import CoordinatewiseMethod
from .registry import register


@register(
    "median",
    family="coordinatewise",
    paper="Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018 (arXiv:1803.01498)",
    properties=("permutation_equivariant", "one_task_identity", "duplicate_invariant_direction"),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class Median(CoordinatewiseMethod):
    """median of g_1, …, g_n at each coordinate, the mean of the middle two for an even number n.

    n counts the tasks that have a gradient at the coordinate's position. Where a gradient is infinite or NaN the result is NaN,
    in the middle or not, so that a gradient scaler skips the step.
    """

    rule: ClassVar[str] = "median"
