"""What balancers share that look at the mean losses of whole epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .loss_only import LossOnlyBalancer


class EpochBalancer(LossOnlyBalancer):
    """Keeps each task's mean loss over an epoch, of which the loop says the end with ``balancer.end_epoch()``.

    Means are over the calls in training in which the task was present and its loss finite; an epoch without any has none.
    """

    _sums: Tensor
    _counts: Tensor

    def __init__(self, tasks: Sequence[str] | int, *, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self.register_buffer("_sums", torch.zeros(len(self.tasks), dtype=torch.float64))  # of this epoch's losses
        self.register_buffer("_counts", torch.zeros(len(self.tasks), dtype=torch.float64))

    def end_epoch(self) -> None:
        """Says that an epoch has ended."""
        raise NotImplementedError

    @torch.no_grad()
    def _enter(self, losses: Tensor, here: list[int]) -> None:
        """Adds the losses of a call to the epoch's. [n]"""
        fine = losses.isfinite()
        self._sums = self._sums + self._scattered(torch.where(fine, losses, 0.0), here)
        self._counts = self._counts + self._scattered(fine.double(), here)

    def _close(self) -> Tensor:
        """The epoch's means, NaN where there is none; and a new epoch begins. [T]"""
        means = self._sums / self._counts
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        return means
