"""Trimmed mean: leave out the extremes of every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradsurgery.capture.gradients import TaskGradients
from gradsurgery.options import MOST_TASKS, check_integer

from .coordinatewise import CoordinatewiseMethod, present_at_positions
from .registry import register


@register(
    "trimmed_mean",
    family="coordinatewise",
    paper="Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018 (arXiv:1803.01498)",
    properties=("permutation_equivariant",),
    degree=1.0,
)
@dataclass(frozen=True, eq=False)
class TrimmedMean(CoordinatewiseMethod):
    """mean of what is left of g_1, …, g_n at each coordinate without the ``trim`` smallest and the ``trim`` largest values.

    n counts the tasks that have a gradient at the coordinate's position, and must be more than 2 · trim wherever there is one.
    Where a gradient is infinite or NaN the result is NaN, trimmed or not, so that a gradient scaler skips the step.

    Options:
        trim: how many values are left out at either end.
    """

    rule: ClassVar[str] = "trimmed_mean"
    trim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("trim", self.trim, at_least=0, at_most=MOST_TASKS)

    def rule_options(self, grads: TaskGradients) -> list[float]:
        for p, present in enumerate(present_at_positions(grads)):
            if present and 2 * self.trim >= present:
                where = "" if grads.single else f" at tensor {p}"
                raise ValueError(
                    f"trim: expected less than half of the {present} tasks that have a gradient{where}, found {self.trim}, which "
                    "leaves nothing to average."
                )
        return [float(self.trim)]
