"""IMTL-L: learned scales that bring all losses to one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Balancer, PerTask
from .registry import register


@register(
    "imtll",
    paper="Liu et al., Towards Impartial Multi-task Learning, ICLR 2021",
    properties=("learned", "separable", "permutation_equivariant"),
)
class IMTLLoss(Balancer):
    """sum_t exp(s_t) L_t - s_t, with learned log-scales s_t.

    At the optimum of s every scaled loss exp(s_t) L_t is 1, whatever its unit. ``balancer.parameters()`` belongs in an optimizer.

    Args:
        tasks: the tasks' names, or their number.
        initial_log_scales: s at the start, for all tasks or one each.
        process_group: as for every ``Balancer``.
    """

    def __init__(self, tasks: Sequence[str] | int, *, initial_log_scales: PerTask = 0.0, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(initial_log_scales=initial_log_scales)
        self.log_scales = nn.Parameter(torch.tensor(self._each("initial_log_scales", initial_log_scales)))

    @property
    def weights(self) -> Tensor:
        """exp(s). [T]"""
        return self.log_scales.detach().exp()

    def terms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """exp(s_t) L_t - s_t by task; a task that is absent leaves its s_t alone."""
        return {t: self.log_scales[t].exp() * loss - self.log_scales[t] for t, loss in losses.items()}
