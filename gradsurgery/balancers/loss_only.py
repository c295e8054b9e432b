"""What balancers share whose loss is a function of the losses alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Balancer


class LossOnlyBalancer(Balancer):
    """L = B(L_1, ..., L_T) with weights w_t = dB/dL_t, of which a subclass gives both.

    T numbers are computed in float64 and the loss is returned in the losses' dtype (float32 at least). Buffers follow the losses'
    device, and nothing waits for it.
    """

    _weights: Tensor

    def __init__(self, tasks: Sequence[str] | int, *, process_group: Any = None) -> None:
        super().__init__(tasks, process_group=process_group)
        self.register_buffer("_weights", torch.full((len(self.tasks),), torch.nan, dtype=torch.float64))

    @property
    def weights(self) -> Tensor:
        """w of the last call in training, 0 for tasks that were absent, NaN before the first; without graph. [T], float64"""
        return self._weights.clone()

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        """The balanced loss and its weights.

        Args:
            losses: of the tasks present, with their graph. [n], float64
            here: the positions of these tasks. [n]

        Returns:
            B, a scalar with graph; and dB/dL without. [n]
        """
        raise NotImplementedError

    def total(self, losses: dict[int, Tensor]) -> Tensor:
        stacked = torch.stack(list(losses.values()))
        return self._evaluate(stacked.double(), list(losses))[0].to(stacked.dtype)

    def terms(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """w_t L_t, and an equal share of what is missing to B, by task."""
        stacked = torch.stack(list(losses.values()))
        value, w = self._evaluate(stacked.detach().double(), list(losses))
        rest = (value - (w * stacked.detach()).sum()) / len(losses)
        return {t: (w[i] * loss.double() + rest).to(stacked.dtype) for i, (t, loss) in enumerate(losses.items())}

    def _evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        self._follow(losses.device)
        value, w = self.evaluate(losses, here)
        if self._learning:
            with torch.no_grad():
                self._weights = self._scattered(w, here)
        return value, w

    def _follow(self, device: torch.device) -> None:
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.device != device:
                self._buffers[name] = buffer.to(device)

    def _taken(self, values: Tensor, here: list[int]) -> Tensor:
        """The numbers of the tasks present. [n]

        Piece by piece, for an index from the host would have to be copied to the device, which waits.
        """
        if len(here) == len(self.tasks):
            return values
        each = values.unbind()
        return torch.stack([each[t] for t in here])

    def _scattered(self, values: Tensor, here: list[int], elsewhere: Tensor | None = None) -> Tensor:
        """``values`` of the tasks present at their positions, and those of ``elsewhere`` [T], or 0, at others. [T]"""
        if len(here) == len(self.tasks):
            return values.detach().clone()
        every = list((torch.zeros_like(self._weights) if elsewhere is None else elsewhere).unbind())
        for t, value in zip(here, values.detach().unbind(), strict=True):
            every[t] = value
        return torch.stack(every)
