"""Random loss weighting: new random weights at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .loss_only import LossOnlyBalancer
from .registry import register


@register(
    "rlw",
    paper="Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022 (arXiv:2111.10603)",
    properties=("random", "homogeneous", "weights_sum_to_one"),
)
class RandomLossWeighting(LossOnlyBalancer):
    """sum_t w_t L_t with w = softmax(u) over the tasks present, u ~ N(0, I) at every call in training.

    The weights sum to 1, as in the paper: the gradient is the mean's size, not the sum's. In eval mode they are their expectation,
    1/T, and nothing is drawn. u is a function of (seed, step, task) by a counter-based generator: a resumed run, another device and
    the other ranks draw the same, and torch's random state is left alone.

    Args:
        tasks: the tasks' names, or their number.
        seed: of the draws, 0 <= seed < 2^64.
    """

    def __init__(self, tasks: Sequence[str] | int, *, seed: int = 0) -> None:
        super().__init__(tasks)
        if not isinstance(seed, int):
            raise TypeError(f"seed: expected an integer, found {type(seed).__name__}.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 <= seed < 2^64, found {seed}.")
        self.seed, self.step = seed, 0

    def evaluate(self, losses: Tensor, here: list[int]) -> tuple[Tensor, Tensor]:
        if self._learning:
            # Philox with the step in the counter's second word of 64 bits; one step never reaches the next.
            philox = np.random.Philox(key=self.seed, counter=self.step << 64)
            u = np.random.Generator(philox).standard_normal(len(self.tasks))[here]
            self.step += 1
        else:
            u = np.zeros(len(here))
        w = torch.softmax(torch.from_numpy(u), 0).to(losses.device, non_blocking=True)
        return (w * losses).sum(), w

    def get_extra_state(self) -> dict[str, Any]:
        """The counter behind the draws."""
        return {"seed": self.seed, "step": self.step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken."""
        self.seed, self.step = state["seed"], state["step"]
