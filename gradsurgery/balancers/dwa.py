"""Dynamic weight average: tasks whose losses fall more slowly weigh more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.options import check_integer, check_number

from .epochs import EpochBalancer
from .registry import register


@register(
    "dwa",
    paper="Liu et al., End-to-End Multi-Task Learning with Attention, CVPR 2019 (arXiv:1803.10704)",
    properties=("counts_epochs", "permutation_equivariant", "homogeneous", "weights_sum_to_tasks"),
)
class DynamicWeightAverage(EpochBalancer):
    """sum_t w_t L_t with w = T softmax(r / temp), r_t = L_t(e-1) / L_t(e-2) of the last two epochs' mean losses.

    Say that an epoch has ended with ``balancer.end_epoch()``, or give ``window``::

        for epoch in range(epochs):
            for batch in loader:
                balancer(losses(batch)).backward()
                ...
            balancer.end_epoch()

    In the first two epochs w = 1. Means are over the calls in training in which the task was present and its loss finite; an epoch
    without any leaves the task's two means alone. A task without a finite ratio (not seen in two epochs yet, or at loss zero) has
    r_t = 1.

    Args:
        tasks: the tasks' names, or their number.
        temp: temperature, positive; the larger, the more even the weights. 2 in the paper.
        window: an epoch is so many calls in training, and ``end_epoch`` does nothing.
        process_group: as for every ``Balancer``.
    """

    _means: Tensor

    def __init__(
        self, tasks: Sequence[str] | int, *, temp: float = 2.0, window: int | None = None, process_group: Any = None
    ) -> None:
        super().__init__(tasks, process_group=process_group)
        self._agree(temp=temp, window=window)
        check_number("temp", temp, above=0)
        if window is not None:
            check_integer("window", window, at_least=1)
        T = len(self.tasks)
        self.temp, self.window = temp, window
        # Row 0 of the last epoch, row 1 of the one before.
        self.register_buffer("_means", torch.full((2, T), torch.nan, dtype=torch.float64))
        self._calls = 0  # in this window

    @property
    def weights(self) -> Tensor:
        """w, summing to T. [T], float64"""
        rates = self._means[0] / self._means[1]
        rates = torch.where(rates.isfinite(), rates, 1.0)
        return len(self.tasks) * (rates / self.temp).softmax(0)

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        w = self._taken(self.weights, here)
        if self._learning:
            self._enter(losses, here)
            self._calls += 1
            if self._calls == self.window:
                self._shift()
        return (w * losses).sum(), w

    def end_epoch(self) -> None:
        """This epoch's mean losses become the last epoch's, and the next one begins."""
        if self.window is None:
            self._shift()

    def _shift(self) -> None:
        means = self._close()
        self._means = torch.where(means.isnan(), self._means, torch.stack([means, self._means[0]]))
        self._calls = 0

    def get_extra_state(self) -> dict[str, Any]:
        """How far the window has got."""
        return super().get_extra_state() | {"calls": self._calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        self._calls = state["calls"]

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, temp={self.temp}, window={self.window}"
