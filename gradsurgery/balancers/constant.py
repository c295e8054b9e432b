"""Constant weights: the tuned scalarisation that every balancer is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import PerTask
from .loss_only import LossOnlyBalancer
from .registry import register


@register(
    "constant",
    paper="fixed weights; see Xin et al., Do Current Multi-Task Optimization Methods in Deep Learning Even Help?, NeurIPS 2022",
    properties=("permutation_equivariant", "homogeneous"),
)
class ConstantWeights(LossOnlyBalancer):
    """sum_t w_t L_t with constant w.

    Several processes exchange nothing: the value is of this rank's losses, and 0 without any. The ranks' mean is the batch's.

    Args:
        tasks: the tasks' names, or their number.
        weights: w, for all tasks or one each.
        process_group: as for every ``Balancer``.
    """

    _exchanges: ClassVar[bool] = False

    _constant: Tensor

    def __init__(self, tasks: Sequence[str] | int, *, weights: PerTask = 1.0, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(weights=weights)
        constant = torch.tensor(self._each("weights", weights), dtype=torch.float64)
        self.register_buffer("_constant", constant, persistent=False)

    @property
    def weights(self) -> Tensor:
        """w. [T], float64"""
        return self._constant.clone()

    def total(self, losses: dict[int, Tensor]) -> Tensor:
        return super().total(losses) if losses else self._constant.new_zeros((), dtype=torch.float32)

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        w = self._taken(self._constant, here)
        return (w * losses).sum(), w
