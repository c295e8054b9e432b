"""Analytic uncertainty weighting: the optimal variances in place of learned ones, tempered by a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradsurgery.options import check_number

from .loss_only import LossOnlyBalancer
from .registry import register


@register(
    "uwso",
    paper="Kirchdorfer et al., Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning, GCPR 2024 (arXiv:2408.07985)",
    properties=("positive_losses", "permutation_equivariant", "weights_sum_to_one"),
)
class SoftmaxUncertainty(LossOnlyBalancer):
    """sum_t w_t L_t with w = softmax(1 / (temp L)) over the tasks present, held constant in the backward pass.

    The losses have to be positive: 1/L is the weight that uncertainty weighting is at its optimum with, and a loss of zero gives
    NaN. The weights depend on the unit of the losses, which ``temp`` has to fit: 1 / (temp L) far above 1 leaves the task with the
    smallest loss alone.

    Args:
        tasks: the tasks' names, or their number.
        temp: temperature, positive; the paper tunes it for each data set.
        process_group: as for every ``Balancer``.
    """

    def __init__(self, tasks: Sequence[str] | int, *, temp: float = 1.0, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(temp=temp)
        check_number("temp", temp, above=0)
        self.temp = temp

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        w = (1 / (self.temp * losses.detach())).softmax(0)
        return (w * losses).sum(), w

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, temp={self.temp}"
